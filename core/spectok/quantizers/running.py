"""The base of quantizers whose codes follow the vectors that choose them.

Sums per code are gathered over micro-batches and ranks; after each optimiser step the subclass
moves its codes by them, and codes that nothing chooses are set to vectors of that step.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spectok.device import send
from spectok.distributed import gather_candidates
from spectok.quantizers.codebook import CodebookQuantizer


class RunningQuantizer(CodebookQuantizer):
    """Codes without gradient that follow their vectors, and are revived where nothing chooses them.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook.
        num_codebooks: Codebooks, each for an equal run of consecutive vectors of an image.
        commitment_weight: Weight of ``|z - sg[e]|^2``.
        revive_below: Fraction of the uniform share 1/K below which a code is revived; 0 never
            revives.
        revive_every: Optimiser steps between checks for codes to revive.
        starts_on_data: Whether the first step revives every code that nothing chose.
        num_vectors: As for :class:`CodebookQuantizer`.
    """

    pending_sums: Tensor

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_codebooks: int,
        commitment_weight: float,
        revive_below: float,
        revive_every: int,
        starts_on_data: bool,
        num_vectors: int | None = None,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
            codebook_weight=0.0,
            commitment_weight=commitment_weight,
            learned=False,
            init_range=1.0,
            num_vectors=num_vectors,
        )
        self.revive_below, self.revive_every = revive_below, revive_every
        self.starts_on_data = starts_on_data
        self.register_buffer("pending_sums", torch.zeros_like(self.codebook), persistent=False)
        self._followed: list[Tensor] = []

    def followed(self, z: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Return what codes follow: the vectors, unless a subclass says otherwise."""
        return z

    @abstractmethod
    def move_codes(self, counts: Float[Tensor, "g k"], sums: Float[Tensor, "g k d"]) -> None:
        """Move codes by the vectors of a step, counted and summed over all ranks."""

    def set_codes(self, group: int, rows: Int[Tensor, "r"], vectors: Float[Tensor, "r d"]) -> None:
        """Set revived codes of one codebook, with all running state that would undo it."""
        self.codebook[group, rows] = vectors
        self.frequency[group, rows] = 1 / self.codebook_size

    @torch.no_grad()
    def observe(self, z: Float[Tensor, "b n d"], rows: Int[Tensor, "b n"]) -> None:
        """Add one micro-batch to the pending counts and sums."""
        super().observe(z, rows)
        vectors = self.followed(z)
        self.pending_sums.view(-1, self.dim).index_add_(0, rows.flatten(), vectors.flatten(0, 1))
        if self.revives_at(self.step_counter.steps + 1):
            self._followed.append(self.by_codebook(vectors))

    def pending(self) -> tuple[Tensor, ...]:
        """Sum the vectors over ranks too."""
        return (self.pending_sums,)

    def edit_codes(
        self, counts: Tensor, statistics: list[Tensor], optimizers: list[torch.optim.Optimizer]
    ) -> None:
        """Move the codes, then revive those that nothing chooses."""
        self.move_codes(counts, statistics[0])
        step = self.step_counter.steps
        if self.revives_at(step) and self._followed:
            rare = self.frequency * self.codebook_size < self.revive_below
            dead = counts == 0 if step == 1 else rare
            self.revive(dead, torch.cat(self._followed, dim=1))

    def forget(self) -> None:
        """Clear the pending sums, and let go of the step's vectors."""
        super().forget()
        self._followed = []

    def revives_at(self, step: int) -> bool:
        """Return whether codes are revived after an optimiser step, counted from 1."""
        if step == 1:
            return self.starts_on_data
        return self.revive_below > 0 and step % self.revive_every == 0

    def revive(self, dead: Bool[Tensor, "g k"], vectors: Float[Tensor, "g p d"]) -> None:
        """Set codes to random vectors of this step.

        Args:
            dead: Codes to set, equal on all ranks.
            vectors: Each codebook's vectors of the whole step.
        """
        generator = self.step_counter.generator()
        # Read once: how many codes are dead decides what is drawn, and is asked on the host.
        for group, (mask, candidates) in enumerate(zip(dead.cpu(), vectors)):
            rows = send(mask.nonzero().squeeze(-1), vectors.device)
            if len(rows):
                self.set_codes(group, rows, gather_candidates(candidates, len(rows), generator))
