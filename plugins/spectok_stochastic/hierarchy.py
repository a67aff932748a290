"""HVQ-VAE: Hierarchical Quantized Autoencoders, Williams et al., NeurIPS 2020."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from spectok import losses
from spectok.errors import InputError
from spectok.loading import build_quantizer
from spectok.nn import ConvDecoder, ConvEncoder, GridTokens
from spectok.outputs import TokenizerOutput
from spectok.quantizers import Quantizer, QuantizerOutput, straight_through
from spectok.recipes.schema import QuantizerOption
from spectok.tokenizer import ImageTokenizer, check_divisible
from spectok_stochastic.probabilistic import ProbabilisticQuantizer
from spectok_stochastic.relaxation import NUM_SEEDS, RelaxedQuantizer, draw_image_seeds

SEED_STRIDE = 0x9E3779  # between layers; odd, so that no two layers of a stack share a seed


class LowerLayer(nn.Module):
    """The codes and the decoder of a layer that has others above it.

    Args:
        size: Height and width of its grid.
        quantizer: Quantizer of its latents.
        network: Maps quantised latents to the latents below, or to images.
    """

    def __init__(self, size: int, quantizer: Quantizer, network: nn.Module):
        super().__init__()
        self.token_space = GridTokens(size, size, quantizer.dim)
        self.quantizer, self.network = quantizer, network

    def forward(self, latents: Float[Tensor, "b d h w"]) -> Tensor:
        """Quantise latents that the layer above predicts, as in eval mode, and decode them."""
        z = self.token_space.to_vectors(latents)
        training = self.quantizer.training
        self.quantizer.eval()
        with torch.no_grad():
            codes = self.quantizer(z).z_q
        self.quantizer.train(training)
        z_q = straight_through(z.float(), codes).to(latents.dtype)
        return self.network(self.token_space.to_latents(z_q))


class HVQVAE(ImageTokenizer):
    """A chain of VQ-VAEs, each on the latents of the one below; the top one's codes are the tokens.

        images
          | encoder[0]       strided convolutions, residual blocks: latents z_1
          | encoder[1] …     each half as high and wide: z_l from z_(l-1), not quantised
        latents z_L (B, codebook_dim, H/f, W/f)
          | token_space      one vector per latent pixel
        z
          | quantizer        training: a random code by distance; eval: the nearest
        z_q
          | token_space      back on the grid
          | decoder[0]       a prediction of z_(L-1)
          | decoder[1] …     quantised by layer l's own codes, then decoded: z_(l-1), or images
        images

    Layer l is a VQ-VAE whose "images" are z_(l-1). In training each layer decodes its own codes::

        layer 1    |x - x̂|² + latent terms
        layer l    |sg[z_(l-1)] - ẑ_(l-1)|² + latent terms

    as means over entries. The latent terms of ``hqa`` are weighted as its bound has them, by the
    layer's latent entries per entry of its input; those of other quantizers are as they are.
    ``reconstruction`` of the output is decoded from the top, as :meth:`decode` does, and no term
    of its own compares it with the images.

    Args:
        image_size: Height and width, in pixels; divisible by ``downsample_factor``.
        in_channels: 1 for grey, 3 for colour.
        downsample_factor: Power of two f of the top layer; an image has (image_size / f)^2 tokens.
        num_layers: Layers L. All but the lowest halve their input, which divides by what is left
            of f.
        codebook_size: Codes in each layer's codebook; 256 in the released code.
        codebook_dim: Length of a code; 64 in the released code.
        channels: Hidden channels.
        num_blocks: Residual blocks in each encoder and in each decoder.
        residual_channels: Hidden channels of a residual block.
        quantizer: Name or mapping of any registered quantizer, used in each layer.
        only_layer: The layer, counted from 1, that learns while all others stay as they are; None:
            all learn at once. The paper trains one after the other from the lowest.

    Raises:
        InputError: If sizes or numbers of layers do not fit together.
    """

    encoder: nn.Sequential
    decoder: nn.Sequential

    fixed_size = None

    @register_to_config
    def __init__(
        self,
        image_size: Annotated[int, Field(ge=4)] = 32,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        downsample_factor: Annotated[int, Field(ge=1)] = 4,
        num_layers: Annotated[int, Field(ge=1)] = 2,
        codebook_size: Annotated[int, Field(ge=2)] = 512,
        codebook_dim: Annotated[int, Field(ge=1)] = 64,
        channels: Annotated[int, Field(ge=2)] = 128,
        num_blocks: Annotated[int, Field(ge=0)] = 2,
        residual_channels: Annotated[int, Field(ge=1)] = 32,
        quantizer: QuantizerOption = "hqa",
        only_layer: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        check_divisible(image_size, downsample_factor)
        _check_layers(num_layers, downsample_factor, only_layer)
        width = {
            "channels": channels,
            "num_blocks": num_blocks,
            "residual_channels": residual_channels,
        }
        factors = [downsample_factor // 2 ** (num_layers - 1)] + [2] * (num_layers - 1)
        inputs = [in_channels] + [codebook_dim] * (num_layers - 1)
        sizes = [image_size // math.prod(factors[: i + 1]) for i in range(num_layers)]
        self.image_shape = (in_channels, image_size, image_size)
        self.latent_shape = (codebook_dim, sizes[-1], sizes[-1])
        self.encoder = nn.Sequential(
            *(
                ConvEncoder(c, codebook_dim, downsample_factor=f, **width)
                for c, f in zip(inputs, factors)
            )
        )
        self.token_space = GridTokens(sizes[-1], sizes[-1], codebook_dim)
        quantizers = [
            build_quantizer(
                quantizer, dim=codebook_dim, num_tokens=s * s, codebook_size=codebook_size
            )
            for s in sizes
        ]
        self.quantizer = quantizers.pop()
        networks = [
            ConvDecoder(codebook_dim, c, downsample_factor=f, **width)
            for c, f in zip(inputs, factors)
        ]
        top = networks.pop()
        lower = [LowerLayer(*parts) for parts in zip(sizes, quantizers, networks)]
        self.decoder = nn.Sequential(top, *reversed(lower))
        self.only_layer = only_layer
        if only_layer is not None:
            for layer in range(1, num_layers + 1):
                for part in self.parts(layer):
                    part.requires_grad_(layer == only_layer)

    def parts(self, layer: int) -> tuple[nn.Module, GridTokens, Quantizer, nn.Module]:
        """Return the encoder, token space, quantizer and decoder of a layer, counted from 1."""
        number = len(self.encoder)
        encoder, below = self.encoder[layer - 1], self.decoder[number - layer]
        if isinstance(below, LowerLayer):
            return encoder, below.token_space, below.quantizer, below.network
        return encoder, self.token_space, self.quantizer, below  # type: ignore[return-value]

    def train(self, mode: bool = True) -> HVQVAE:
        """Set the mode; codes of layers that do not learn are never edited."""
        super().train(mode)
        if self.only_layer is not None:
            for layer in range(1, len(self.encoder) + 1):
                self.parts(layer)[2].train(mode and layer == self.only_layer)
        return self

    def forward(self, images: Float[Tensor, "b c h w"]) -> TokenizerOutput:
        """Encode, quantise and decode; in training, each layer with its own codes.

        Args:
            images: In [-1, 1], of ``image_shape``.
        """
        if not self.training:
            return super().forward(images)
        terms, metrics, number = {}, {}, len(self.encoder)
        inputs = decoded = self.prepare(images)
        indices = images.new_empty(0)
        self.share_seeds(len(images))
        for layer in range(1, number + 1):
            encoder, space, quantizer, network = self.parts(layer)
            latents = encoder(inputs)
            z = space.to_vectors(latents)
            quantized = quantizer(z)
            decoded = network(space.to_latents(quantized.z_q.to(z.dtype)))
            if self.only_layer in (None, layer):
                target = images if layer == 1 else inputs.detach()
                terms |= self.layer_losses(layer, target, decoded, quantized)
            metrics |= {f"layer{layer}_{name}": value for name, value in quantized.metrics.items()}
            inputs, indices = latents, quantized.indices
        for lower in list(self.decoder)[1:]:
            decoded = lower(decoded)
        return TokenizerOutput(decoded, self._to_sequence(indices), terms, metrics)

    def share_seeds(self, batch_size: int) -> None:
        """Give each layer's quantizer its own noise from one draw per image."""
        layers = [self.parts(layer)[2] for layer in range(1, len(self.encoder) + 1)]
        relaxed = [layer for layer in layers if isinstance(layer, RelaxedQuantizer)]
        drawing = [layer for layer in relaxed if layer.training]
        seeds = draw_image_seeds(batch_size) if drawing else []
        for number, layer in enumerate(drawing):
            layer.given_seeds = [(seed + number * SEED_STRIDE) % NUM_SEEDS for seed in seeds]

    def layer_losses(
        self, layer: int, target: Tensor, decoded: Tensor, quantized: QuantizerOutput
    ) -> dict[str, Tensor]:
        """Return the terms of one layer.

        Args:
            layer: Counted from 1.
            target: What the layer encodes: images, or the latents below.
            decoded: What it makes of its own codes.
            quantized: What its quantizer gave.
        """
        if layer == 1:
            terms = self.compare(target, decoded)
        else:
            terms = {f"layer{layer}_reconstruction": losses.l2(decoded, target)}
        is_bound = isinstance(self.parts(layer)[2], ProbabilisticQuantizer)
        share = quantized.z_q[0].numel() / target[0].numel() if is_bound else 1.0
        return terms | {
            f"layer{layer}_{name}": share * value for name, value in quantized.losses.items()
        }


def _check_layers(num_layers: int, factor: int, only_layer: int | None) -> None:
    if factor % 2 ** (num_layers - 1):
        most = (factor & -factor).bit_length()
        raise InputError(
            f"num_layers {num_layers} does not fit downsample_factor {factor}: all layers but the "
            f"lowest halve their input; use at most {most} layers, or a factor of "
            f"{2**num_layers}"
        )
    if only_layer is not None and only_layer > num_layers:
        raise InputError(f"only_layer {only_layer} is not one of the {num_layers} layers")
