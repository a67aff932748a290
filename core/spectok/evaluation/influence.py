"""Which pixels a token is about: how an image changes when one token takes other values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok.tokenizer import ImageTokenizer

COLOURS = "inferno"  # black: pixels that a token does not change
AT_ONCE = 16
"""Values of a token that are decoded together, for each image."""


@torch.no_grad()
def influence(
    model: ImageTokenizer,
    indices: Int[Tensor, "b t"],
    places: Sequence[int],
    num_replacements: int | None = None,
) -> Float[Tensor, "b n h w"]:
    """Measure how much each pixel changes when one token takes other values.

    Fig. 1 of QG-VAE, for any tokenizer.

    Args:
        model: Any tokenizer, in eval mode.
        indices: The tokens of images.
        places: Tokens to replace, one at a time.
        num_replacements: How many other values to try, spread evenly; None for all of them.

    Returns:
        Absolute change on the [-1, 1] scale, mean over replacements and channels.
    """
    original, batch = model.decode(indices), len(indices)
    changes = []
    for place in places:
        vocab_size = model.token_spec.vocab_sizes[place]
        count = min(num_replacements or vocab_size, vocab_size - 1)
        change = torch.zeros_like(original[:, 0])
        for shifts in torch.linspace(1, vocab_size - 1, count).long().split(AT_ONCE):
            replaced = indices.repeat(len(shifts), 1)  # (s b, t)
            moved = replaced[:, place] + shifts.repeat_interleave(batch).to(indices.device)
            replaced[:, place] = moved % vocab_size
            differences = model.decode(replaced) - original.repeat(len(shifts), 1, 1, 1)
            change += differences.abs().mean(1).unflatten(0, (-1, batch)).sum(0) / count
        changes.append(change)
    return torch.stack(changes, dim=1)


def influence_pictures(change: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n 3 h w"]:
    """Draw influences in colour; the tokens of one image share a scale, so that they compare."""
    import matplotlib

    scaled = change / change.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
    colours = matplotlib.colormaps[COLOURS](scaled.cpu().numpy())[..., :3]
    return torch.from_numpy(colours).float().movedim(-1, 2) * 2 - 1
