"""Codebooks that follow the data: anchors by usage (CVQ-VAE) and by correlation (FQ-VAE).

Both move every code towards an anchor, a vector of the batch, after each optimiser step::

    e_k <- (1 - alpha_k) e_k + alpha_k anchor_k                                Eq. 6 of FQ-VAE
    N_k <- gamma N_k + (1 - gamma) n_k / (number of vectors)                   Eq. 8

They differ in the rule for alpha_k. The codes are a parameter and also trained by gradient.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from spectok.quantizers import (
    CodebookQuantizer,
    clear_moments,
    gather_candidates,
    nearest_codes,
    sum_over_ranks,
    world,
)

EPSILON = 1e-3  # of Eq. 7: keeps a trace of the old code
REPLACED = 0.5  # a code that moves more than this share of the way loses its optimiser moments
CORRELATION_BYTES = 64 << 20


class ClusteringQuantizer(CodebookQuantizer):
    """CVQ-VAE's quantizer: rarely used codes move to anchors (Zheng & Vedaldi 2023).

    ``alpha_k = exp(-N_k K 10 / (1 - gamma) - 0.001)`` is nearly a step function: a code in regular
    use stays, and one that nothing chooses is replaced. N_k starts at zero, so the first step
    already spreads the codes that nothing chose over the data.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes K per codebook.
        num_codebooks: Codebooks, each for an equal run of consecutive positions; None for one per
            position.
        anchor: ``"closest"``: the vector of the batch nearest to the code. ``"random"``: any vector
            of the batch. ``"probrandom"``: of K random vectors, one with probability
            softmax(-squared distance).
        usage_decay: The gamma of Eq. 7 and 8.
        codebook_weight: Weight of ``|sg[z] - e|^2``.
        commitment_weight: Weight of ``|z - sg[e]|^2``.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_codebooks: Annotated[int, Field(ge=1)] | None = 1,
        anchor: Literal["closest", "random", "probrandom"] = "closest",
        usage_decay: Annotated[float, Field(gt=0, lt=1)] = 0.99,
        codebook_weight: Annotated[float, Field(gt=0)] = 1.0,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_codebooks=num_tokens if num_codebooks is None else num_codebooks,
            codebook_weight=codebook_weight,
            commitment_weight=commitment_weight,
            learned=True,
            init_range=1 / codebook_size,
        )
        self.anchor, self.usage_decay = anchor, usage_decay
        self.register_buffer("average_usage", torch.zeros_like(self.frequency))
        self._closest: tuple[Tensor, Tensor] | None = None
        self._vectors: list[Tensor] = []

    average_usage: Tensor

    @torch.no_grad()
    def observe(self, z: Float[Tensor, "b n d"], rows: Int[Tensor, "b n"]) -> None:
        """Count choices, and keep the candidates for the anchors of this step."""
        super().observe(z, rows)
        vectors = self.by_codebook(z)
        if self.anchor == "closest":
            self._closest = nearer(self._closest, closest_vectors(vectors, self.codebook))
        else:
            self._vectors.append(vectors)

    def edit_codes(
        self, counts: Tensor, statistics: list[Tensor], optimizers: list[torch.optim.Optimizer]
    ) -> None:
        """Move codes towards their anchors (Eq. 6) by how rarely they are used (Eq. 7, 8)."""
        anchors = self.draw_anchors()
        if anchors is None:
            return
        share = counts / counts.sum(-1, keepdim=True).clamp_min(1)
        self.average_usage.lerp_(share, 1 - self.usage_decay)
        alpha = torch.exp(-self.resistance() - EPSILON)  # (G, K)
        self.codebook.lerp_(anchors, alpha.unsqueeze(-1))
        clear_moments(self.codebook, (alpha > REPLACED).flatten(), optimizers)

    def forget(self) -> None:
        """Clear the pending counts, and let go of the candidates for anchors."""
        super().forget()
        self._closest, self._vectors = None, []

    def resistance(self) -> Float[Tensor, "g k"]:
        """Return how firmly each code stays: the exponent of Eq. 7 without its epsilon."""
        return self.average_usage * (self.codebook_size * 10 / (1 - self.usage_decay))

    def draw_anchors(self) -> Float[Tensor, "g k d"] | None:
        """Return one anchor per code, the same on every rank; None if no vector was seen."""
        closest, vectors = self._closest, self._vectors
        if closest is not None:
            return closest_over_ranks(*closest)
        if not vectors:
            return None
        generator = self.step_counter.generator()
        pool = rearrange(torch.cat(vectors, dim=1), "g p d -> p (g d)")
        drawn = gather_candidates(pool, self.codebook_size, generator)
        candidates = rearrange(drawn, "k (g d) -> g k d", g=self.num_codebooks)
        if self.anchor == "random":
            return candidates
        return resample(candidates, self.codebook, generator)


class PearsonQuantizer(ClusteringQuantizer):
    """FQ-VAE's quantizer: codes that repeat another one move too (Eq. 6-10).

    With delta_k the largest Pearson correlation of code k with another code of its codebook,
    ``alpha_k = exp(-N_k (1 - delta_k) K 10 / (1 - gamma) - 0.001)``. Of two codes that correlate
    most with each other only the less used one moves; otherwise duplicates would move together to
    the same anchor. See the README for the other readings of Eq. 7.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes K per codebook; at least 2.
        num_codebooks: Codebooks, each for an equal run of consecutive positions; None for one per
            position.
        decay_rule: Exponent of Eq. 7. ``"text"``: N_k (1 - delta_k), as the text describes it.
            ``"printed"``: N_k delta_k, as the formula is printed. ``"cvq"``: N_k alone.
        anchor: As for ``cvq``.
        usage_decay: The gamma of Eq. 7 and 8.
        codebook_weight: Weight of ``|sg[z] - e|^2``.
        commitment_weight: Weight of ``|z - sg[e]|^2``; 0.25 in the paper.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_codebooks: Annotated[int, Field(ge=1)] | None = None,
        decay_rule: Literal["text", "printed", "cvq"] = "text",
        anchor: Literal["closest", "random", "probrandom"] = "closest",
        usage_decay: Annotated[float, Field(gt=0, lt=1)] = 0.99,
        codebook_weight: Annotated[float, Field(gt=0)] = 1.0,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
            anchor=anchor,
            usage_decay=usage_decay,
            codebook_weight=codebook_weight,
            commitment_weight=commitment_weight,
        )
        self.decay_rule = decay_rule

    def resistance(self) -> Float[Tensor, "g k"]:
        """Weigh the usage by the correlation (Eq. 7)."""
        usage = super().resistance()
        if self.decay_rule == "cvq" or self.codebook_size < 2:
            return usage
        delta, partner = correlations(self.codebook)
        if self.decay_rule == "printed":
            return usage * delta
        return usage * (1 - torch.where(yields(self.average_usage, partner), delta, 0))


@torch.no_grad()
def correlations(
    codebooks: Float[Tensor, "g k d"],
) -> tuple[Float[Tensor, "g k"], Int[Tensor, "g k"]]:
    """Return each code's largest Pearson correlation with another code, and which (Eq. 9, 10).

    The correlation is signed and clamped to [0, 1]: an opposite code is not a repetition. A
    constant code correlates with nothing.
    """
    centred = codebooks.float() - codebooks.float().mean(-1, keepdim=True)
    unit = torch.nn.functional.normalize(centred, dim=-1)
    num_groups, num_codes, _ = unit.shape
    step = max(1, CORRELATION_BYTES // (4 * num_codes**2))
    best = [
        _mask_diagonal(block @ block.transpose(1, 2)).max(-1)
        for block in unit.split(min(step, num_groups))
    ]
    delta = torch.cat([values for values, _ in best]).clamp(0, 1)
    return delta, torch.cat([indices for _, indices in best])


def yields(usage: Float[Tensor, "g k"], partner: Int[Tensor, "g k"]) -> Bool[Tensor, "g k"]:
    """Return which codes are used less than their partner; in a tie, the one of larger index."""
    other = usage.gather(1, partner)
    place = torch.arange(usage.shape[1], device=usage.device)
    return (usage < other) | ((usage == other) & (place > partner))


def closest_vectors(
    vectors: Float[Tensor, "g p d"], codebooks: Float[Tensor, "g k d"]
) -> tuple[Tensor, Tensor]:
    """Return each code's nearest vector: squared distances ``(G, K)`` and vectors ``(G, K, D)``."""
    rows = nearest_codes(codebooks, vectors)  # the roles exchanged
    found = torch.stack([group[row] for group, row in zip(vectors, rows)])
    return (found - codebooks).square().sum(-1), found


def nearer(one: tuple[Tensor, Tensor] | None, two: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return, per code, whichever of two (distance, vector) pairs is nearer; the first on a tie."""
    if one is None:
        return two
    first = one[0] <= two[0]
    return torch.where(first, one[0], two[0]), torch.where(first.unsqueeze(-1), one[1], two[1])


def closest_over_ranks(
    distances: Float[Tensor, "g k"], vectors: Float[Tensor, "g k d"]
) -> Float[Tensor, "g k d"]:
    """Return each code's nearest vector over all ranks, the lowest rank's on a tie."""
    rank, size = world()
    if size == 1:
        return vectors
    table = torch.zeros(size, *distances.shape, device=distances.device)
    table[rank] = distances
    owner = sum_over_ranks(table)[0].argmin(0)
    return sum_over_ranks(torch.where((owner == rank).unsqueeze(-1), vectors, 0))[0]


def resample(
    candidates: Float[Tensor, "g p d"],
    codebooks: Float[Tensor, "g k d"],
    generator: torch.Generator,
) -> Float[Tensor, "g k d"]:
    """Draw, for each code, one candidate with probability softmax(-squared distance)."""
    chosen = []
    for pool, codes in zip(candidates, codebooks):
        probability = torch.softmax(-torch.cdist(codes, pool).square(), dim=-1)  # (K, P)
        row = torch.multinomial(probability.cpu(), 1, generator=generator).squeeze(-1)
        chosen.append(pool[row.to(pool.device)])
    return torch.stack(chosen)


def _mask_diagonal(matrix: Float[Tensor, "g k k"]) -> Float[Tensor, "g k k"]:
    matrix.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return matrix
