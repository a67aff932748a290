"""One codebook per token, with resets that split overused Voronoi cells (QG-VAE, section 3.3)."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from spectok.device import send
from spectok.quantizers import CodebookQuantizer, broadcast_from_main, clear_moments

RELATIVE_FLOOR = 1e-6  # of a codebook's largest magnitude; cells below it are not split


class VoronoiQuantizer(CodebookQuantizer):
    """Gradient-trained codebooks whose unused codes move next to overused ones.

    The gradient magnitude of each code, summed over ``reset_every`` optimiser steps, is the error
    of its Voronoi cell. At a reset, in each codebook, the i-th code that got no gradient at all is
    moved onto the code of i-th largest magnitude, with a small random displacement; training then
    separates the two. A cell is split at most once per reset.

    The weights are those of the paper's Eq. 6: 1 on the term that moves the encoder, 0.25 on the
    one that moves the codes.

    Args:
        dim: Length D of each vector; 64 in the paper.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook; 512 in the paper.
        num_codebooks: Codebooks, each for an equal run of consecutive positions; None for one per
            position. Fewer share codebooks partially (appendix B).
        codebook_weight: Weight of ``|sg[z] - e|^2``.
        commitment_weight: Weight of ``|z - sg[e]|^2``.
        reset_every: Optimiser steps between resets ("reset time" in Table 3).
        last_reset: Optimiser step after which nothing is reset any more; None: resets go on to the
            end, as in the paper. A code that was just moved is the twin of another until training
            has separated them, so resets late in a run leave codebooks smaller than they look.
        displacement: Each dimension of a moved code is displaced by up to this much.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_codebooks: Annotated[int, Field(ge=1)] | None = None,
        codebook_weight: Annotated[float, Field(gt=0)] = 0.25,
        commitment_weight: Annotated[float, Field(ge=0)] = 1.0,
        reset_every: Annotated[int, Field(ge=1)] = 100,
        last_reset: Annotated[int, Field(ge=0)] | None = None,
        displacement: Annotated[float, Field(gt=0)] = 1e-4,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_codebooks=num_tokens if num_codebooks is None else num_codebooks,
            codebook_weight=codebook_weight,
            commitment_weight=commitment_weight,
            learned=True,
            init_range=0.5,
        )
        self.reset_every, self.last_reset = reset_every, last_reset
        self.displacement = displacement
        self.register_buffer("magnitude", torch.zeros_like(self.frequency))

    magnitude: Tensor

    @torch.no_grad()
    def before_step(self) -> None:
        """Add this step's gradient magnitude of each code, the mean over its dimensions.

        A gradient that is not finite adds nothing: it would remain the largest until the next
        reset, and its cell would be split.
        """
        if self.codebook.grad is not None:
            size = self.codebook.grad.abs().mean(-1)
            self.magnitude += torch.where(size.isfinite(), size, 0)

    def edit_codes(
        self, counts: Tensor, statistics: list[Tensor], optimizers: list[torch.optim.Optimizer]
    ) -> None:
        """Reset every ``reset_every`` steps, then start the magnitudes afresh."""
        steps = self.step_counter.steps
        if steps % self.reset_every == 0:
            if self.last_reset is None or steps <= self.last_reset:
                self.reset(optimizers)
            self.magnitude.zero_()

    @torch.no_grad()
    def reset(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Split the cells of largest magnitude with the codes that got no gradient."""
        moved, onto = split_pairs(self.magnitude.cpu())  # read once: their number decides the draw
        if not len(moved):
            return
        moved, onto = send(moved, self.codebook.device), send(onto, self.codebook.device)
        codes = self.codebook.view(-1, self.dim)
        generator = self.step_counter.generator()
        noise = torch.rand(len(moved), self.dim, generator=generator) * 2 - 1
        placed = codes[onto] + self.displacement * send(noise, codes.device)
        codes[moved] = broadcast_from_main(placed)
        self.frequency.view(-1)[moved] = self.frequency.view(-1)[onto] / 2
        self.frequency.view(-1)[onto] /= 2
        clear_moments(self.codebook, moved, optimizers)


def split_pairs(magnitude: Float[Tensor, "g k"]) -> tuple[Tensor, Tensor]:
    """Pair, in each codebook, the i-th unused code with the i-th most overused one.

    Args:
        magnitude: Accumulated gradient magnitude of each code; exactly 0 for unused ones.

    Returns:
        Rows among all G x K codes: those to move, and those to move them onto.
    """
    num_codes = magnitude.shape[1]
    floor = RELATIVE_FLOOR * magnitude.amax(1, keepdim=True)
    unused, overused = magnitude == 0, magnitude > floor
    num_pairs = torch.minimum(unused.sum(1), overused.sum(1))
    unused_first = (~unused).byte().argsort(dim=1, stable=True)
    largest_first = magnitude.argsort(dim=1, descending=True, stable=True)
    paired = torch.arange(num_codes, device=magnitude.device) < num_pairs[:, None]
    start = torch.arange(len(magnitude), device=magnitude.device)[:, None] * num_codes
    return (start + unused_first)[paired], (start + largest_first)[paired]
