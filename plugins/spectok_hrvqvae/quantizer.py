"""The quantizer of HR-VQVAE: a tree of codebooks that starts on the data and stays alive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from spectok.device import send
from spectok.quantizers import (
    FEWEST_MEMBERS,
    RunningMeans,
    broadcast_from_main,
    clear_moments,
    count_rows,
    gather_candidates,
)
from spectok_hrvqvae.codebooks import CodebookTree
from spectok_hrvqvae.revival import dead_children, split_pairs, with_fair_share
from spectok_hrvqvae.start import hierarchical_kmeans
from spectok_hrvqvae.tree import descend, members, resolve_branching

START_VECTORS_PER_LEAF = 32
CANDIDATES_PER_PARENT = 16
MAX_CANDIDATES = 16384

Optimizers = list[torch.optim.Optimizer]


class TreeQuantizer(CodebookTree):
    """Hierarchical residual quantisation (HR-VQVAE, section 3).

    With ξ⁰ = z, level i picks the code eⁱ nearest to ξⁱ⁻¹ among the m children of the node that
    level i-1 picked, and leaves ξⁱ = ξⁱ⁻¹ - sg[eⁱ]. The result is e_C = Σ eⁱ: a vector is compared
    with m codes per level instead of all the leaves.

        losses = codebook_weight   (|sg[ξ⁰] - e_C|² + Σ |sg[ξⁱ⁻¹] - eⁱ|²)
               + commitment_weight (|ξ⁰ - sg[e_C]|² + Σ |ξⁱ⁻¹ - sg[eⁱ]|²)          (Eq. 5 and 6)

    After the first training step, hierarchical k-means on its vectors sets all codes, unless
    ``start`` says otherwise. From then on, every ``revive_every`` steps, dead leaves are set to
    random residuals of their parent, and dead inner nodes become copies of their most used sibling,
    subtree included.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Leaves of the tree: the distinct vectors that the indices can stand for.
        num_levels: Levels n of the tree; by default the length of ``branching``, or 3.
        branching: Children m under each node, one number for all levels or one per level; they must
            multiply to ``codebook_size``. By default the factors with the smallest sum: 8, 8, 8
            for 512 leaves.
        tokens: ``"path"``: one index per level, coarse to fine; the first levels decode alone.
            ``"leaf"``: one index, the leaf's number, as the paper's prior models it.
        update: ``"gradient"``: codes are trained by the codebook terms. ``"ema"``: the codes on a
            path sum to the running mean of the vectors that took it, and those terms are left out.
        codebook_weight: Weight of the terms that move the codes; 1 in the paper.
        commitment_weight: Weight β of the terms that move the encoder, one for all levels; the
            paper gives no value.
        start: ``"kmeans"``: as described. ``"random"``: codes stay where they were drawn, normal
            with half the scale on each further level, which shows what the hierarchy does without
            the start.
        decay: Decay of the running counts and sums of ``update="ema"``.
        revive_below: Fraction of the fair share of its parent's vectors below which a node is
            revived; 0 never revives.
        revive_every: Optimiser steps between checks for nodes to revive.

    Raises:
        InputError: If ``branching`` does not multiply to ``codebook_size``.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_levels: Annotated[int, Field(ge=1, le=1024)] | None = None,
        branching: int | list[int] | None = None,
        tokens: Literal["path", "leaf"] = "path",
        update: Literal["gradient", "ema"] = "gradient",
        codebook_weight: Annotated[float, Field(gt=0)] = 1.0,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
        start: Literal["kmeans", "random"] = "kmeans",
        decay: Annotated[float, Field(gt=0, lt=1)] = 0.99,
        revive_below: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        revive_every: Annotated[int, Field(ge=1)] = 10,
    ):
        learned = update == "gradient"
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            branching=resolve_branching(codebook_size, branching, num_levels),
            tokens=tokens,
            codebook_weight=codebook_weight if learned else 0.0,
            commitment_weight=commitment_weight,
            learned=learned,
        )
        self.starts_on_data = start == "kmeans"
        self.revive_below, self.revive_every = revive_below, revive_every
        if not learned:
            leaves = self.codebooks[-1]
            self.running_means = RunningMeans(self, leaves, decay)
            self.register_buffer("pending_sums", torch.zeros_like(leaves), persistent=False)
        self._vectors: list[Tensor] = []

    pending_sums: Tensor

    # -- every step ------------------------------------------------------------------------------

    @torch.no_grad()
    def observe(self, z: Float[Tensor, "p d"], leaf: Int[Tensor, "p"]) -> None:
        """Gather statistics of one micro-batch; codes are edited later, in :meth:`after_step`."""
        self.code_counts.count(leaf)
        if not self.is_learned:
            self.pending_sums.index_add_(0, leaf, z)
        steps = self.step_counter.steps
        if (steps == 0 and self.starts_on_data) or self.revives_at(steps + 1):
            self._vectors.append(z)

    @torch.no_grad()
    def after_step(self, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Sum statistics over ranks; start the tree, move codes to means, revive dead ones."""
        if not self.training:
            return
        optimizers = list(optimizers)
        counts, *sums = self.code_counts.update(*self._pending_sums())
        self.step_counter.advance()
        step = self.step_counter.steps
        if step == 1 and self.starts_on_data and self._vectors:
            self.start(int(counts.sum()), optimizers)
        else:
            if not self.is_learned:
                self.move_to_means(counts, sums[0])
            if self.revives_at(step) and self._vectors:
                self.revive(optimizers)
        self.skip_step()

    @torch.no_grad()
    def skip_step(self) -> None:
        """Forget the micro-batches since the last step."""
        self._vectors = []
        for pending in (self.code_counts.pending, *self._pending_sums()):
            pending.zero_()

    @torch.no_grad()
    def move_to_means(
        self, counts: Float[Tensor, "leaves"], sums: Float[Tensor, "leaves d"]
    ) -> None:
        """Move each node to the running mean of the vectors below it; its code is the difference.

        A node that nothing has chosen for a long time keeps its code.
        """
        self.running_means.update(counts, sums)
        running_counts, running_sums = self.running_means.counts, self.running_means.sums
        origin = running_sums.new_zeros(1, self.dim)
        for level, (codes, m) in enumerate(zip(self.codebooks, self.branching)):
            count = self.by_node(running_counts, level).sum(1).unsqueeze(1)
            mean = self.by_node(running_sums, level).sum(1) / count.clamp_min(FEWEST_MEMBERS)
            origin = origin.repeat_interleave(m, dim=0)  # position of the parent
            codes.copy_(torch.where(count > FEWEST_MEMBERS, mean - origin, codes))
            origin = origin + codes

    # -- the start -------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, num_vectors: int, optimizers: Optimizers) -> None:
        """Set all codes by hierarchical k-means on the vectors of this step, from all ranks.

        ``num_steps``, which is saved, records that this has happened.

        Args:
            num_vectors: Vectors of this step on all ranks.
            optimizers: Those whose moments of the codes are cleared.
        """
        size = min(2 * num_vectors, START_VECTORS_PER_LEAF * self.codebook_size)
        sample = gather_candidates(torch.cat(self._vectors), size, self.step_counter.generator())
        for codes, fitted in zip(self.codebooks, hierarchical_kmeans(sample, self.branching)):
            codes.copy_(fitted)
            clear_moments(codes, torch.arange(len(codes), device=codes.device), optimizers)
        leaf = descend(sample, self.codebooks, self.branching)[1]
        self.frequency.copy_(count_rows(leaf, self.codebook_size) / size)
        if not self.is_learned:
            self.running_means.counts.copy_(self.frequency * num_vectors)
            sums = self.running_means.sums.zero_()
            sums.index_add_(0, leaf, sample * (num_vectors / size))
        self._take_from_main()

    # -- revival ---------------------------------------------------------------------------------

    def revives_at(self, step: int) -> bool:
        """Return whether nodes are revived after an optimiser step, counted from 1."""
        return self.revive_below > 0 and step % self.revive_every == 0

    @torch.no_grad()
    def revive(self, optimizers: Optimizers) -> None:
        """Revive dead inner nodes from the top down, then dead leaves."""
        size = min(CANDIDATES_PER_PARENT * self.codebook_size // self.branching[-1], MAX_CANDIDATES)
        drawn = gather_candidates(torch.cat(self._vectors), size, self.step_counter.generator())
        for level in range(len(self.branching) - 1):
            self._copy_siblings(level, drawn, optimizers)
        self._replace_leaves(drawn, optimizers)
        self._take_from_main()

    def _copy_siblings(
        self, level: int, drawn: Float[Tensor, "p d"], optimizers: Optimizers
    ) -> None:
        """Turn dead nodes of a level, with their subtrees, into copies of used siblings.

        A copy moves half way to a random vector of the sibling, which is then nearer to the copy.
        """
        node = descend(drawn, self.codebooks[: level + 1], self.branching[: level + 1])[1]
        origins = self.tables()[level + 1]
        rows, held = members(node, len(origins), 1)
        shares = self.by_node(self.frequency, level).sum(1).view(-1, self.branching[level])
        # Read once: how many nodes are moved decides the shapes of all that follows.
        on_host = torch.stack([shares.flatten(), held.to(shares.dtype)]).cpu()
        moved, onto = split_pairs(on_host[0].view_as(shares), self.revive_below)
        can = on_host[1][onto] > 0
        moved, onto = send(moved[can], drawn.device), send(onto[can], drawn.device)
        step = (drawn[rows[onto, 0]] - origins[onto]) / 2
        for codes in self.codebooks[level:]:
            subtrees = self.by_node(codes, level)  # (nodes, descendants, D)
            subtrees[moved] = subtrees[onto]
            rows_below = torch.arange(len(codes), device=codes.device).view(len(subtrees), -1)
            clear_moments(codes, rows_below[moved].flatten(), optimizers)
        self.codebooks[level][moved] += step
        for statistics in self._running():
            subtrees = self.by_node(statistics, level)
            subtrees[onto] /= 2
            subtrees[moved] = subtrees[onto]
        if not self.is_learned:
            counts = self.by_node(self.running_means.counts, level)[moved].unsqueeze(2)
            self.by_node(self.running_means.sums, level)[moved] += counts * step.unsqueeze(1)

    def _replace_leaves(self, drawn: Float[Tensor, "p d"], optimizers: Optimizers) -> None:
        """Set dead leaves to random residuals of their parent, if it has any vectors."""
        m = self.branching[-1]
        leaf = descend(drawn, self.codebooks, self.branching)[1]
        parents = leaf.div(m, rounding_mode="floor")
        rows, held = members(parents, self.codebook_size // m, m)
        shares = self.frequency.view(-1, m)
        revived = dead_children(shares, self.revive_below) & (held > 0).unsqueeze(1)
        leaves = send(revived.cpu().flatten().nonzero().squeeze(1), drawn.device)
        chosen = rows.flatten()[leaves]
        self.codebooks[-1][leaves] = drawn[chosen] - self.tables()[-2][parents[chosen]]
        clear_moments(self.codebooks[-1], leaves, optimizers)
        shares.copy_(with_fair_share(shares, revived))
        if not self.is_learned:
            running_counts, running_sums = self.running_means.counts, self.running_means.sums
            counts = with_fair_share(running_counts.view(-1, m), revived).flatten()
            scale = counts / running_counts.clamp_min(FEWEST_MEMBERS)
            running_sums *= scale.unsqueeze(1)
            running_sums[leaves] = drawn[chosen] * counts[leaves].unsqueeze(1)
            running_counts.copy_(counts)

    # -- state -----------------------------------------------------------------------------------

    def _pending_sums(self) -> list[Tensor]:
        """Return the sums that micro-batches add to, cleared after each step with the counts."""
        return [] if self.is_learned else [self.pending_sums]

    def _running(self) -> list[Tensor]:
        """Return the running statistics of the leaves."""
        if self.is_learned:
            return [self.frequency]
        return [self.frequency, self.running_means.counts, self.running_means.sums]

    def _take_from_main(self) -> None:
        """Take codes and statistics from rank 0: sums on a GPU may round differently per rank."""
        for state in (*self.codebooks, *self._running()):
            state.copy_(broadcast_from_main(state))
