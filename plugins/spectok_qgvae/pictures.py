"""Pictures of what global tokens mean: feature maps, influence, prefixes (Fig. 1, 7, 9, 10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from spectok.evaluation.influence import influence as influence
from spectok.evaluation.influence import influence_pictures as influence_pictures
from spectok.tokenizer import ImageTokenizer


@torch.no_grad()
def feature_maps(
    model: ImageTokenizer, images: Float[Tensor, "b c h w"], places: Sequence[int]
) -> Float[Tensor, "b n 1 lh lw"]:
    """Draw the feature maps that become tokens, each on its own scale (Fig. 9 and 10).

    Args:
        model: In eval mode.
        images: In [-1, 1], of ``model.image_shape``.
        places: Latent channels to draw; in QG-VAE each is a token.

    Returns:
        Grey pictures in [-1, 1].
    """
    maps = model.encode_latents(images)[:, list(places)].float()
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return ((maps - low) / (high - low).clamp_min(1e-6) * 2 - 1).unsqueeze(2)


@torch.no_grad()
def prefix_pictures(
    model: ImageTokenizer, images: Float[Tensor, "b c h w"], lengths: Sequence[int] | None = None
) -> Float[Tensor, "b n c h w"]:
    """Decode longer and longer prefixes of the tokens (Fig. 7), for models whose prefixes decode.

    Args:
        model: In eval mode.
        images: In [-1, 1], of ``model.image_shape``.
        lengths: Lengths of the prefixes. None: 0, 1, 2, 4 and so on up to all tokens.

    Returns:
        Each image, then its decoded prefixes.

    Raises:
        InputError: If a prefix of one of these lengths does not decode.
    """
    indices = model.encode(images)
    if lengths is None:
        total = model.token_spec.num_tokens
        doubled = {min(2**i, total) for i in range(total.bit_length() + 1)}
        lengths = sorted({0, *doubled} & set(model.token_spec.decodable_prefixes) or {total})
    decoded = [model.decode(indices, num_tokens=k) for k in lengths]
    return torch.stack([images, *decoded], dim=1)
