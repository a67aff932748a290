"""Which tokens are hidden: in training, and while images are drawn."""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spectok import TokenSpec
from spectok.device import constant
from spectok.distributed import draw_per_sample
from spectok_generation.priors.codebooks import parent_places


def hidden_share(progress: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the cosine schedule ``cos(π r / 2)`` (Chang et al. 2022, section 3.3).

    Args:
        progress: r, from 0, where everything is hidden, to 1.
    """
    return torch.cos(progress * (math.pi / 2))


class Masking:
    """The places of a layout, and which of them wait for which.

    Where the code of one place, the parent, selects the codebook of another, an index at the
    other means nothing until the parent is known. So it is neither seen nor predicted before. The
    depth of a place is the number of places above it in its tree; without trees all have depth 0.

    Args:
        spec: Layout of the tokens.

    Attributes:
        parents: Place of the parent of each of the T places, or None.
        depths: Places of each depth.
    """

    def __init__(self, spec: TokenSpec):
        self.parents = tuple(parent_places(spec))
        depth_of: list[int] = []
        for parent in self.parents:  # which comes before its child in every layout
            depth_of.append(0 if parent is None else depth_of[parent] + 1)
        self.depths = [
            tuple(place for place, depth in enumerate(depth_of) if depth == wanted)
            for wanted in range(max(depth_of) + 1)
        ]
        self._is_root = tuple(parent is None for parent in self.parents)
        self._above = tuple(place if up is None else up for place, up in enumerate(self.parents))

    def ready(self, visible: Bool[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
        """Return which places can be predicted, or seen: those whose parent is visible."""
        if len(self.depths) == 1:
            return torch.ones_like(visible)
        return constant(self._is_root, visible.device) | visible[:, self.above(visible.device)]

    def visible(self, known: Bool[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
        """Return which places can be seen: known ones, all places above which are known too."""
        for _ in self.depths[1:]:
            known = known & self.ready(known)
        return known

    def above(self, device: torch.device) -> Int[Tensor, "t"]:
        """Return the place of each place's parent; of a place without one, its own."""
        return constant(self._above, device)

    def has_parent(self, device: torch.device) -> Bool[Tensor, "t"]:
        """Return which places have a parent."""
        return ~constant(self._is_root, device)

    def draw(self, batch_size: int) -> Bool[Tensor, "b t"]:
        """Draw which places a training step sees, on the CPU.

        Of N places, ⌈γ(r) N⌉ are hidden, with r uniform in [0, 1] (Chang et al. 2022, section
        3.1). In trees, each depth has an r of its own, and all that is above a random depth is
        visible: otherwise leaves would hardly ever be predicted, and never with all branches known.
        """
        num_tokens, num_depths = len(self.parents), len(self.depths)
        numbers = draw_per_sample(batch_size * (1 + num_depths + num_tokens))
        first, progress, order = numbers.view(batch_size, -1).split([1, num_depths, num_tokens], 1)
        known = torch.ones(batch_size, num_tokens, dtype=torch.bool)
        for depth, places in enumerate(self.depths):
            count = torch.ceil(hidden_share(progress[:, [depth]]) * len(places))
            count = torch.where(first * num_depths >= depth + 1, 0, count)
            known[:, places] = ranks(order[:, places]) >= count
        return self.visible(known)

    @functools.cached_property
    def weights(self) -> tuple[float, ...]:
        """Weight of each place's loss, by which its expectation is a mean over all places.

        One over T times the probability that :meth:`draw` has the place predicted: its depth is
        hidden with probability E[⌈γ(r) N⌉] / N = Σ_j (2/π) arccos(j / N) / N, j from 0 to N - 1.
        """
        found, num_tokens = [0.0] * len(self.parents), len(self.parents)
        begins = 1 / len(self.depths)  # the chance of each depth to be the first with hidden places
        reached = 0.0  # the chance that all above a place is visible, and its depth not only seen
        hidden = 1.0
        for places in self.depths:
            reached = begins + reached * (1 - hidden)
            size = len(places)
            hidden = sum(math.acos(j / size) for j in range(size)) * 2 / math.pi / size
            for place in places:
                found[place] = 1 / (num_tokens * reached * hidden)
        return tuple(found)


def ranks(values: Tensor, descending: bool = False) -> Int[Tensor, "b n"]:
    """Return the place of each value among those of its row, from 0; of equal ones, in order."""
    return values.argsort(dim=1, descending=descending, stable=True).argsort(dim=1)
