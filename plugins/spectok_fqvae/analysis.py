"""How often single codes are used, and what they carry (FQ-VAE, Fig. 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok.errors import InputError
from spectok.metrics import count_codes
from spectok.tokenizer import ImageTokenizer


class CodeStudy(NamedTuple):
    """How a tokenizer uses its codes on a data set.

    Attributes:
        usage: How often each of the ``token_spec.num_codes`` codes is chosen.
        information: Growth of the mean squared error on the [-1, 1] scale, averaged over all
            images, when one code is deleted; 0 for an unused code. None if the tokenizer has
            several levels.
        num_images: Images encoded.
    """

    usage: Int[Tensor, "n"]
    information: Float[Tensor, "n"] | None
    num_images: int


@torch.no_grad()
def study_codes(
    tokenizer: ImageTokenizer, batches: Iterable[Float[Tensor, "b c h w"]]
) -> CodeStudy:
    """Count how often each code is chosen (Fig. 3), and measure what it carries (Fig. 4).

    A code is deleted by putting zeros in its place wherever an image uses it. The paper decodes the
    whole data set once per code. Deleting a code changes only the images that use it, so here each
    image is decoded once for each code that it uses.

    Args:
        tokenizer: Any tokenizer; put into eval mode.
        batches: Images on the tokenizer's device.

    Raises:
        InputError: If there are no images.
    """
    spec = tokenizer.eval().token_spec
    usage = torch.zeros(spec.num_codes, dtype=torch.int64)
    growth, num_images = torch.zeros(spec.num_codes, dtype=torch.float64), 0
    for images in batches:
        indices = tokenizer.encode(images)
        usage += count_codes(spec, indices.cpu())
        num_images += len(images)
        for image, row in zip(images, indices) if spec.num_levels == 1 else ():
            codes, errors = _errors_without(tokenizer, image, row)
            growth[codes.cpu()] += errors.double().cpu()
    if not num_images:
        raise InputError("a study of codes needs at least one image; the batches are empty")
    information = (growth / num_images).float() if spec.num_levels == 1 else None
    return CodeStudy(usage, information, num_images)


def _errors_without(
    tokenizer: ImageTokenizer, image: Float[Tensor, "c h w"], indices: Int[Tensor, "t"]
) -> tuple[Int[Tensor, "m"], Float[Tensor, "m"]]:
    """Return the codes of one image, and by how much the error grows without each of them."""
    codes, owner = tokenizer.token_spec.code_ids(indices[None])[0].unique(return_inverse=True)
    vectors = tokenizer.embed(indices[None])  # (1, N, D)
    kept = owner != torch.arange(len(codes), device=owner.device)[:, None]  # (M, N)
    variants = torch.cat([vectors, vectors * kept.unsqueeze(-1)])  # all codes, then one left out
    latents = tokenizer.token_space.to_latents(variants.to(tokenizer.dtype))
    error = (tokenizer.decoder(latents) - image).square().flatten(1).mean(1)
    return codes, error[1:] - error[0]
