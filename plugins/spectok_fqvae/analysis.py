"""What single codes are used for, and what they carry (FQ-VAE, Fig. 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok.errors import InputError
from spectok.metrics import count_codes
from spectok.tokenizer import ImageTokenizer


@torch.no_grad()
def usage_curve(
    tokenizer: ImageTokenizer, batches: Iterable[Float[Tensor, "b c h w"]]
) -> Int[Tensor, "n"]:
    """Count how often each code is chosen, most used first (Fig. 3).

    Args:
        tokenizer: Any tokenizer; put into eval mode.
        batches: Images on the tokenizer's device.

    Returns:
        One count for each of the ``token_spec.num_codes`` codes, over all codebooks.
    """
    spec = tokenizer.eval().token_spec
    counts = torch.zeros(spec.num_codes, dtype=torch.int64)
    for images in batches:
        counts += count_codes(spec, tokenizer.encode(images).cpu())
    return counts.sort(descending=True).values


@torch.no_grad()
def unit_information(
    tokenizer: ImageTokenizer, batches: Iterable[Float[Tensor, "b c h w"]]
) -> Float[Tensor, "n"]:
    """Return by how much the mean squared error grows when one code is deleted (Fig. 4).

    To delete a code is to put zeros in its place, wherever an image uses it. The paper decodes the
    whole data set once for each code; an image can only change for the codes it uses, so here it is
    decoded once for each of those.

    Args:
        tokenizer: A tokenizer with one level; put into eval mode.
        batches: Images on the tokenizer's device.

    Returns:
        Growth of the error on the [-1, 1] scale, averaged over all images, for each of the
        ``token_spec.num_codes`` codes; 0 for a code that nothing uses.

    Raises:
        InputError: If the tokenizer has more than one level, or there are no images.
    """
    spec = tokenizer.eval().token_spec
    if spec.num_levels != 1:
        raise InputError(
            f"unit information needs one code per position; this tokenizer has {spec.num_levels} "
            f"levels"
        )
    growth, num_images = torch.zeros(spec.num_codes, dtype=torch.float64), 0
    for images in batches:
        indices = tokenizer.encode(images)
        for image, row in zip(images, indices):
            codes, errors = _errors_without(tokenizer, image, row)
            growth[codes.cpu()] += errors.double().cpu()
        num_images += len(images)
    if not num_images:
        raise InputError("unit information needs at least one image; the batches are empty")
    return (growth / num_images).float()


def _errors_without(
    tokenizer: ImageTokenizer, image: Float[Tensor, "c h w"], indices: Int[Tensor, "t"]
) -> tuple[Int[Tensor, "m"], Float[Tensor, "m"]]:
    """Return the codes of one image, and how the error grows without each of them."""
    codes, owner = tokenizer.token_spec.code_ids(indices[None])[0].unique(return_inverse=True)
    vectors = tokenizer.embed(indices[None])  # (1, N, D)
    kept = owner != torch.arange(len(codes), device=owner.device)[:, None]  # (M, N)
    variants = torch.cat([vectors, vectors * kept.unsqueeze(-1)])  # whole, then one code less
    latents = tokenizer.token_space.to_latents(variants.to(tokenizer.dtype))
    error = (tokenizer.decoder(latents) - image).square().flatten(1).mean(1)
    return codes, error[1:] - error[0]
