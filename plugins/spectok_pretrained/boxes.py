"""The boxes of a tokenizer around the networks of a library: what all of them share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated, Any, ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok import (
    ConfigError,
    ForeignFolder,
    ForeignTokenizer,
    GridTokens,
    InputError,
    Quantizer,
    QuantizerOutput,
    SpectokError,
    check_divisible,
)
from spectok.quantizers import DISTANCE_BYTES, QuantizerLevel, straight_through
from spectok_pretrained.processing import Filter


class PixelScale(nn.Module):
    """Between images in [-1, 1] and the numbers that a network was trained on.

    Args:
        mean: Of pixels in [0, 1], one number or one per channel.
        std: What is divided by, after the mean is subtracted.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.is_identity = {*mean, *std} == {0.5}
        means, stds = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self.register_buffer("scale", 0.5 / stds, persistent=False)
        self.register_buffer("shift", (0.5 - means) / stds, persistent=False)

    def to_network(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return images in [-1, 1] as the network takes them."""
        return images if self.is_identity else images * self.scale + self.shift

    def to_images(self, output: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return what the network made as images in [-1, 1]."""
        return output if self.is_identity else (output - self.shift) / self.scale


class LibraryEncoder(nn.Module):
    """Images to latents: the library's encoder, then its 1x1 convolution.

    Args:
        model: The library's model.
        scale: Brings images to the numbers the network takes.
    """

    def __init__(self, model: Any, scale: PixelScale):
        super().__init__()
        self.network, self.quant_conv, self.scale = model.encoder, model.quant_conv, scale

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d lh lw"]:
        """Return the latents before quantisation."""
        return self.quant_conv(self.network(self.scale.to_network(images)))


class LibraryDecoder(nn.Module):
    """Quantised latents to images: the library's 1x1 convolution, then its decoder.

    Args:
        model: The library's model.
        scale: Brings what the network makes to [-1, 1].
    """

    def __init__(self, model: Any, scale: PixelScale):
        super().__init__()
        self.post_quant_conv, self.network, self.scale = model.post_quant_conv, model.decoder, scale
        self.sees_codes = getattr(model.config, "norm_type", None) == "spatial"  # as in MoVQ

    def forward(self, latents: Float[Tensor, "b d lh lw"]) -> Float[Tensor, "b c h w"]:
        """Return the images."""
        latents = latents.contiguous()  # as the library's are: the memory layout decides rounding
        hidden = self.post_quant_conv(latents)
        made = self.network(hidden, latents) if self.sees_codes else self.network(hidden)
        return self.scale.to_images(made)


class NoDecoder(nn.Module):
    """Stands for the decoder of a model that the library can only encode with.

    Args:
        model: The library's model.
        scale: Of no use here.
    """

    def __init__(self, model: Any, scale: PixelScale):
        super().__init__()
        self.model = f"{type(model).__name__} of {type(model).__module__.partition('.')[0]}"

    def forward(self, latents: Float[Tensor, "b d lh lw"]) -> Float[Tensor, "b c h w"]:
        """Refuse.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"{self.model} has no decoder in its library: it encodes images, but its tokens cannot "
            f"be decoded"
        )


class LibraryQuantizer(Quantizer):
    """A library's own search and codes, which stay as they are.

    The search runs in float32 and over as many images at once as their distances to all codes
    take :data:`~spectok.quantizers.DISTANCE_BYTES`, but at least one.

    Args:
        network: The library's quantizer.
        grid: (h, w) of the latents.
    """

    def __init__(self, network: Any, grid: tuple[int, int]):
        codebook_size, dim = self.size_of(network)
        super().__init__(dim=dim, num_tokens=grid[0] * grid[1], codebook_size=codebook_size)
        self.network, self.grid = network, grid

    @staticmethod
    @abstractmethod
    def size_of(network: Any) -> tuple[int, int]:
        """Return the number K of codes, and the length D of each."""

    def rescale(self, rows: Fraction, columns: Fraction) -> None:
        """Change the grid to that of images of another size."""
        super().rescale(rows, columns)
        self.grid = (int(self.grid[0] * rows), int(self.grid[1] * columns))

    @property
    def levels(self) -> tuple[QuantizerLevel, ...]:
        """One level with one shared codebook."""
        return (QuantizerLevel(self.codebook_size),)

    @property
    def code_tables(self) -> tuple[Float[Tensor, "_ _ _"] | None, ...]:
        """The codes as they are decoded."""
        return (self.codes()[None],)

    @abstractmethod
    def search(self, latents: Float[Tensor, "b d h w"]) -> Int[Tensor, "..."]:
        """Return the library's index of each latent pixel, in raster order."""

    @abstractmethod
    def codes(self) -> Float[Tensor, "k d"]:
        """Return the vectors that the library decodes, by index."""

    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Search as the library does; nothing is learned, so there are no losses."""
        latents = rearrange(z, "b (h w) d -> b d h w", h=self.grid[0]).contiguous()
        budget = DISTANCE_BYTES.get(z.device.type, DISTANCE_BYTES["cuda"])
        at_once = max(1, budget // (4 * self.num_tokens * self.codebook_size))
        with torch.no_grad():
            found = [self.search(part).flatten() for part in latents.split(at_once)]
        indices = torch.cat(found).long().view(len(z), -1, 1)
        return QuantizerOutput(straight_through(z, self.lookup(indices)), indices)

    def lookup(self, indices: Int[Tensor, "b n 1"]) -> Float[Tensor, "b n d"]:
        """Return the codes that indices select."""
        return nn.functional.embedding(indices.squeeze(-1), self.codes())


class EmbeddingQuantizer(LibraryQuantizer):
    """Codes in an embedding; the nearest is chosen, as the library computes distances."""

    @staticmethod
    def size_of(network: Any) -> tuple[int, int]:
        """Return the shape of the embedding."""
        return network.embedding.weight.shape

    def search(self, latents: Float[Tensor, "b d h w"]) -> Int[Tensor, "..."]:
        """Return the indices, the last of what the library's quantizer returns."""
        found: Any = self.network(latents)
        return found[-1][-1] if isinstance(found[-1], tuple) else found[-1]

    def codes(self) -> Float[Tensor, "k d"]:
        """Return the embedding's weights."""
        embedding: Any = self.network.embedding
        return embedding.weight


class LibraryTokenizer(ForeignTokenizer):
    """Base of the tokenizers of this package: a frozen model of a library, on a grid of tokens.

    Args:
        network: The library's options of the model.
        image_size: Height and width, in pixels; divisible by the network's factor.
        image_mean: What the network's images have subtracted, of pixels in [0, 1].
        image_std: What they are then divided by.
        resample: Pillow's filter with which its images are resized.

    Raises:
        ConfigError: If the options are not the library's.
        InputError: If sizes do not fit together.

    Attributes:
        encoder_box: The encoder around the library's; made of the model and a :class:`PixelScale`.
        quantizer_box: The quantizer around the library's; made of that and (h, w) of the latents.
        decoder_box: The decoder around the library's, made like the encoder.
        quantizer_part: What the library's model calls its quantizer.
        renamed: Name of a part in the library -> its name here. Longer names go first.
        skipped: Parts of the library's model that nothing here uses.
    """

    fixed_size = None
    encoder_box: ClassVar[type[nn.Module]] = LibraryEncoder
    quantizer_box: ClassVar[type[LibraryQuantizer]] = EmbeddingQuantizer
    decoder_box: ClassVar[type[nn.Module]] = LibraryDecoder
    quantizer_part: ClassVar[str] = "quantize"
    renamed: ClassVar[Mapping[str, str]] = {
        "encoder.": "encoder.network.",
        "quant_conv.": "encoder.quant_conv.",
        "quantize.": "quantizer.network.",
        "post_quant_conv.": "decoder.post_quant_conv.",
        "decoder.": "decoder.network.",
    }
    skipped: ClassVar[tuple[str, ...]] = ()

    @register_to_config
    def __init__(
        self,
        network: dict[str, Any],
        image_size: Annotated[int, Field(ge=1)],
        image_mean: tuple[float, ...] = (0.5,),
        image_std: tuple[Annotated[float, Field(gt=0)], ...] = (0.5,),
        resample: Filter = "bicubic",
    ):
        super().__init__()
        model, scale = self.make_network(network), PixelScale(image_mean, image_std)
        grid = grid_of(image_size, self.factor_of(model.config))
        self.encoder, self.decoder = self.encoder_box(model, scale), self.decoder_box(model, scale)
        self.quantizer = self.quantizer_box(getattr(model, self.quantizer_part), grid)
        self.token_space = GridTokens(*grid, self.quantizer.dim)
        self.image_shape = (model.config.in_channels, image_size, image_size)
        self.latent_shape = (self.quantizer.dim, *grid)
        self.resize_filter = resample
        self.requires_grad_(False)

    @classmethod
    @abstractmethod
    def make_network(cls, network: Mapping[str, Any]) -> Any:
        """Return the library's model, with random weights.

        Raises:
            ConfigError: If the options are not the library's.
        """

    @staticmethod
    @abstractmethod
    def factor_of(config: Any) -> int:
        """Return how many pixels a latent pixel stands for, each way.

        Args:
            config: Of the library's model.
        """

    @classmethod
    def own_name(cls, name: str, saved: ForeignFolder) -> str | None:
        """Return the name here of a tensor of the library."""
        if name.startswith(cls.skipped):
            return None
        part = next((part for part in cls.renamed if name.startswith(part)), None)
        return name if part is None else cls.renamed[part] + name.removeprefix(part)

    def train(self, mode: bool = True) -> Any:
        """Set the mode; the networks stay in eval mode, in which they were frozen."""
        super().train(mode)
        self.encoder.eval()
        self.decoder.eval()
        return self


def build(function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Call a constructor of a library with options that somebody else wrote.

    Raises:
        ConfigError: If it does not take them.
    """
    try:
        return function(**options)
    except (SpectokError, RuntimeError):  # a RuntimeError is about memory, or the meta device
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigError(f"network: not one of {function.__name__} ({reason})") from error


def grid_of(image_size: int, factor: int) -> tuple[int, int]:
    """Return the latent height and width.

    Raises:
        InputError: If the factor does not divide the image size.
    """
    check_divisible(image_size, factor)
    return image_size // factor, image_size // factor
