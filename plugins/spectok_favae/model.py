"""FA-VAE: Frequency Augmented Variational Autoencoder, Lin, Li, Hsiao, Ho, Kong, CVPR 2023."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from spectok.errors import InputError
from spectok.loading import build_quantizer
from spectok.losses import focal_frequency
from spectok.nn import GridTokens, VQGANEncoder
from spectok.nn.vqgan import check_attention
from spectok.outputs import TokenizerOutput
from spectok.recipes.schema import QuantizerOption
from spectok.tokenizer import ImageTokenizer, check_divisible
from spectok_favae.fcm import ComplementedDecoder, FCMKind
from spectok_favae.losses import SMALLEST_SIGMA, SpectrumKind, SpectrumLoss
from spectok_favae.token_space import ProjectedGridTokens

MULTIPLIERS = {4: (1, 2, 4), 8: (1, 2, 2, 4), 16: (1, 1, 2, 2, 4)}
SMALLEST_WITH_ATTENTION = 8  # downsample factor
NUM_TAPS = 4


class FAVAE(ImageTokenizer):
    """A grid of local tokens; the decoder learns to restore lost frequencies.

        images
          | encoder       VQGAN's; the outputs of its four stages are the activations A_1 … A_4
        latents (B, latent_channels, H/f, W/f)
          | token_space   one vector per latent pixel
        z
          | quantizer     code with the largest cosine
        z_q
          | token_space   back on the grid
        latents
          | decoder       VQGAN's, with a complement C_4 … C_1 before each of its four stages
        images

    In training, C_i learns the spectrum of A_i by the spectrum loss. The decoder never sees A_i:
    tokens alone decode.

    Args:
        image_size: Height and width, in pixels; divisible by ``downsample_factor``.
        in_channels: 1 for grey, 3 for colour.
        downsample_factor: Power of two f; 16, 8 or 4 in the paper.
        codebook_size: Codes in the codebook.
        codebook_dim: Length of a code; 256 in the released code.
        latent_channels: Channels of the latents; if this is not ``codebook_dim``, linear maps lead
            from one to the other. None: ``codebook_dim``.
        channels: Channels at full size; 128 in VQGAN.
        channel_multipliers: Channels of each level, as multiples of ``channels``; the first is 1.
            None: those of the released code for f = 16, 8 and 4.
        num_blocks: Residual blocks per level of the encoder; the decoder has one more.
        attention_sizes: Heights of feature maps at which attention follows each residual block.
            None: that of the latents if f is 8 or more, as in the released code.
        z_channels: Channels between the network and its 1x1 convolutions to and from the latents.
            None: ``latent_channels``, as in the released code.
        post_quant_conv: Whether the decoder begins with VQGAN's 1x1 convolution. In the released
            code C_4 takes its place; only the decoder without complements has it.
        fcm: Form of the frequency complement modules; ``"none"`` leaves VQGAN's decoder.
        spectrum_loss: What the complements learn from: ``"dsl"`` (learned Gaussians), ``"sl"``
            (fixed ones), ``"ffl"`` (no blur) or ``"none"``.
        spectrum_weight: Weight of the mean over the four pairs. The paper's beta multiplies their
            sum: it is a quarter of this.
        kernel_size: The paper's mu: side of the Gaussian kernels, odd.
        sigma: Initial width of the Gaussians, in pixels of the feature map.
        pairwise_sigma: Whether A_i and C_i share one learned width.
        sigma_learning_rate: Peak learning rate of the widths. None: that of the other parameters.
        detach_activations: Whether to keep the spectrum loss from training the encoder.
        frequency_weight: The paper's alpha: weight of the focal frequency loss on the images; 0
            omits the term.
        quantizer: Name or mapping of any registered quantizer.
        reconstruction_loss: ``"l1"`` as in the paper, or ``"l2"``; on the [-1, 1] scale.

    Raises:
        InputError: If sizes do not fit together.
    """

    encoder: VQGANEncoder
    decoder: ComplementedDecoder

    added_options: ClassVar[Mapping[str, Any]] = {"z_channels": None, "post_quant_conv": False}

    recomputed_units = (
        *ImageTokenizer.recomputed_units,
        *("ConvComplement", "ResidualComplement", "AttentionComplement"),
    )
    fixed_size = None

    @register_to_config
    def __init__(
        self,
        image_size: Annotated[int, Field(ge=4)] = 32,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        downsample_factor: Annotated[int, Field(ge=1)] = 4,
        codebook_size: Annotated[int, Field(ge=2)] = 512,
        codebook_dim: Annotated[int, Field(ge=1)] = 256,
        latent_channels: Annotated[int, Field(ge=1)] | None = None,
        channels: Annotated[int, Field(ge=1)] = 128,
        channel_multipliers: tuple[Annotated[int, Field(ge=1)], ...] | None = None,
        num_blocks: Annotated[int, Field(ge=1)] = 2,
        attention_sizes: tuple[Annotated[int, Field(ge=1)], ...] | None = None,
        z_channels: Annotated[int, Field(ge=1)] | None = None,
        post_quant_conv: bool = False,
        fcm: FCMKind = "conv",
        spectrum_loss: SpectrumKind = "dsl",
        spectrum_weight: Annotated[float, Field(gt=0)] = 0.01,
        kernel_size: Annotated[int, Field(ge=1)] = 3,
        sigma: Annotated[float, Field(gt=SMALLEST_SIGMA)] = 3.0,
        pairwise_sigma: bool = True,
        sigma_learning_rate: Annotated[float, Field(gt=0)] | None = 1e-4,
        detach_activations: bool = False,
        frequency_weight: Annotated[float, Field(ge=0)] = 1.0,
        quantizer: QuantizerOption = "cosine",
        reconstruction_loss: Literal["l1", "l2"] = "l1",
    ):
        super().__init__()
        check_divisible(image_size, downsample_factor)
        size = image_size // downsample_factor
        latent_channels = latent_channels or codebook_dim
        self.image_shape = (in_channels, image_size, image_size)
        self.latent_shape = (latent_channels, size, size)
        shape: dict[str, Any] = {
            "image_size": image_size,
            "channels": channels,
            "channel_multipliers": check_multipliers(channel_multipliers, downsample_factor),
            "num_blocks": num_blocks,
            "attention_sizes": choose_attention(attention_sizes, image_size, downsample_factor),
            "z_channels": z_channels,
        }
        self.encoder = VQGANEncoder(in_channels, latent_channels, **shape)
        if latent_channels == codebook_dim:
            self.token_space = GridTokens(size, size, codebook_dim)
        else:
            self.token_space = ProjectedGridTokens(size, size, latent_channels, codebook_dim)
        self.quantizer = build_quantizer(
            quantizer, dim=codebook_dim, num_tokens=size * size, codebook_size=codebook_size
        )
        self.decoder = ComplementedDecoder(
            latent_channels, in_channels, fcm, post_quant_conv=post_quant_conv, **shape
        )
        self.spectrum_loss: SpectrumLoss | None = None
        if spectrum_loss != "none":
            check_spectrum(fcm, spectrum_loss, kernel_size, size)
            self.spectrum_loss = SpectrumLoss(
                spectrum_loss,
                NUM_TAPS,
                kernel_size=kernel_size,
                sigma=sigma,
                pairwise=pairwise_sigma,
                learning_rate=sigma_learning_rate,
            )

    def forward(self, images: Float[Tensor, "b c h w"]) -> TokenizerOutput:
        """Encode, quantise and decode, and compare spectra.

        The pipeline of every tokenizer, except that the outputs of the encoder's stages are kept
        for the loss.

        Args:
            images: In [-1, 1], of ``image_shape``.
        """
        activations = self.encoder.stages(self.prepare(images))
        z = self.token_space.to_vectors(activations[-1])
        quantized = self.quantizer(z)
        latents = self.token_space.to_latents(quantized.z_q.to(z.dtype))
        reconstruction, complements = self.decoder.decode(latents)
        terms = self.compare(images, reconstruction)
        terms |= self.spectrum_losses(activations, complements) | quantized.losses
        indices = self._to_sequence(quantized.indices)
        return TokenizerOutput(reconstruction, indices, terms, quantized.metrics)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution; complements follow it in ``parameters()``."""
        return list(self.decoder.head.parameters())[-2]

    def reconstruction_losses(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return the first and third terms of Eq. 9: error per pixel and per frequency."""
        terms = super().reconstruction_losses(images, reconstruction)
        if weight := self.config["frequency_weight"]:
            terms["frequency"] = weight * focal_frequency(reconstruction, images)
        return terms

    def spectrum_losses(
        self, activations: list[Tensor], complements: list[Tensor]
    ) -> dict[str, Tensor]:
        """Return the second term of Eq. 9, which compares C_i with A_i."""
        if self.spectrum_loss is None:
            return {}
        if self.config["detach_activations"]:
            activations = [activation.detach() for activation in activations]
        loss = self.spectrum_loss(activations, complements)
        return {"spectrum": self.config["spectrum_weight"] * loss}


def check_multipliers(
    channel_multipliers: tuple[int, ...] | None, downsample_factor: int
) -> tuple[int, ...]:
    """Return the multipliers of the levels.

    Raises:
        InputError: If they do not fit the downsample factor.
    """
    if channel_multipliers is None:
        if downsample_factor not in MULTIPLIERS:
            raise InputError(
                f"downsample_factor {downsample_factor} is none of "
                f"{', '.join(map(str, MULTIPLIERS))}; set channel_multipliers for another one, "
                f"e.g. [1, 2] for 2"
            )
        return MULTIPLIERS[downsample_factor]
    multipliers = tuple(channel_multipliers)
    if 2 ** (len(multipliers) - 1) != downsample_factor or multipliers[0] != 1:
        raise InputError(
            f"channel_multipliers {list(multipliers)} do not fit downsample_factor "
            f"{downsample_factor}: there is one per level, the first is 1, and each but the first "
            f"halves the size, e.g. [1, 2, 4] for 4"
        )
    return multipliers


def choose_attention(
    attention_sizes: tuple[int, ...] | None, image_size: int, downsample_factor: int
) -> tuple[int, ...]:
    """Return the heights of feature maps with attention; by default those of the released code.

    Raises:
        InputError: If no feature map has one of these heights.
    """
    if attention_sizes is None:
        size = image_size // downsample_factor
        return (size,) if downsample_factor >= SMALLEST_WITH_ATTENTION else ()
    check_attention(attention_sizes, image_size, downsample_factor.bit_length())
    return tuple(attention_sizes)


def check_spectrum(fcm: str, spectrum_loss: str, kernel_size: int, size: int) -> None:
    """Check that the spectrum loss has complements to compare, and that its kernel fits.

    Raises:
        InputError: If it has none, or if the kernel's size is even or too large.
    """
    if fcm == "none":
        raise InputError(
            f"spectrum_loss {spectrum_loss!r} compares what frequency complement modules make, and "
            f"fcm is 'none'; choose an fcm, or spectrum_loss 'none'"
        )
    largest = 2 * size - 1  # a reflected border is at most the map less one pixel
    if spectrum_loss != "ffl" and (kernel_size % 2 == 0 or kernel_size > largest):
        raise InputError(
            f"kernel_size {kernel_size} must be odd and at most {largest} on latents of "
            f"{size}×{size}; choose e.g. {min(3, largest)}"
        )
