"""A tokenizer whose tokens are strips of the image, from the top down."""

from __future__ import annotations

from typing import Annotated

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok import ImageTokenizer, InputError, QuantizerOption, TokenSpace, build_quantizer


class StripTokens(TokenSpace):
    """One vector per strip, in a list from the top of the image to its bottom."""

    def to_vectors(self, latents: Float[Tensor, "b d n 1"]) -> Float[Tensor, "b n d"]:
        """Read the strips from the top down."""
        return rearrange(latents, "b d n 1 -> b n d")

    def to_latents(
        self, z_q: Float[Tensor, "b n d"], keep: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b d n 1"]:
        """Stack the strips again, with zeros in place of all but the first ``keep`` vectors."""
        if keep is not None:
            place = torch.arange(self.num_tokens, device=z_q.device)
            z_q = z_q * (place < keep[:, None]).unsqueeze(-1)  # (B, N, D)
        return rearrange(z_q, "b n d -> b d n 1")


class StripVAE(ImageTokenizer):
    """A list of strips from the top of the image down, and one small network for all of them.

        images
          | encoder       strip_height x W pixels -> width -> codebook_dim, strip by strip
        latents (B, codebook_dim, N, 1)
          | token_space   one vector per strip
        z
          | quantizer     several codes per strip, each for what those before it left
        z_q
          | token_space   strips stacked again
        latents
          | decoder       codebook_dim -> width -> strip_height x W pixels, without biases
        images

    A strip is decoded from its own tokens alone, so the start of a sequence decodes to exactly the
    top of the image, as ``prefix = "tokens"`` promises; without biases, missing strips are
    mid-grey. A prior given the first tokens completes the image downwards.

    Args:
        image_size: Height and width, in pixels; divisible by ``strip_height``.
        in_channels: 1 for grey, 3 for colour.
        strip_height: Pixels; an image has N = image_size / strip_height strips.
        codebook_size: Codes per codebook.
        codebook_dim: Length of a strip's vector.
        width: Hidden units.
        quantizer: Name or mapping of any registered quantizer; by default four residual codes.

    Raises:
        InputError: If ``strip_height`` does not divide ``image_size``.
    """

    prefix = "tokens"

    @register_to_config
    def __init__(
        self,
        image_size: Annotated[int, Field(ge=2)] = 32,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        strip_height: Annotated[int, Field(ge=1)] = 4,
        codebook_size: Annotated[int, Field(ge=2)] = 256,
        codebook_dim: Annotated[int, Field(ge=1)] = 64,
        width: Annotated[int, Field(ge=1)] = 256,
        quantizer: QuantizerOption = "rq",
    ):
        super().__init__()
        if image_size % strip_height:
            raise InputError(
                f"strip_height {strip_height} does not divide image_size {image_size}; choose one "
                f"that does"
            )
        num_strips, strip = image_size // strip_height, (strip_height, image_size)
        self.image_shape = (in_channels, image_size, image_size)
        self.latent_shape = (codebook_dim, num_strips, 1)
        self.encoder = nn.Sequential(
            nn.Conv2d(in_channels, width, strip, stride=strip),  # (B, width, N, 1)
            nn.GELU(),
            nn.Conv2d(width, codebook_dim, 1),
        )
        self.token_space = StripTokens((num_strips,), codebook_dim)
        self.quantizer = build_quantizer(
            quantizer, dim=codebook_dim, num_tokens=num_strips, codebook_size=codebook_size
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(codebook_dim, width, 1, bias=False),
            nn.GELU(),
            nn.ConvTranspose2d(width, in_channels, strip, stride=strip, bias=False),
        )

    def reconstruction_losses(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error per pixel."""
        return {"reconstruction": (reconstruction.float() - images.float()).square().mean()}
