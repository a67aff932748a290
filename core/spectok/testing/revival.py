"""Watch what becomes of dead codes that a quantizer moves to the data."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spectok.quantizers import Quantizer
from spectok.testing.learners import VectorLearner, take_step

UPDATES = 10


def watch_revivals(learner: VectorLearner, steps: int) -> tuple[int, int]:
    """Kill the codes in use by moving the data; count the revivals, and how many are undone.

    Vectors lie around one point for five steps, then around its opposite. A code counts as revived
    if it is not in use and jumps much farther than any code in use moves, and as undone if it is
    back near its old position within the next ten updates.

    Args:
        learner: A fresh quantizer.
        steps: Steps to watch.

    Returns:
        Numbers of codes revived and codes undone, counted per place.
    """
    quantizer, optimizer = learner.model, _optimizer_of_codes(learner)
    there = 6 * torch.nn.functional.normalize(torch.randn(quantizer.dim), dim=0)
    first, second = (sign * there + 0.05 * learner.batch(4) for sign in (1, -1))
    for step in range(5):
        take_step(learner, [first], optimizer, step)
    encoded = learner.encoder(second).detach()
    place = quantizer.encode(encoded)[:1]
    old = new = before = _codes(quantizer, place)
    age = torch.full(before.shape[:2], UPDATES)
    revived = undone = torch.zeros_like(age, dtype=torch.bool)
    for step in range(steps):
        used = _used(quantizer, encoded)
        take_step(learner, [second], optimizer, step)
        now = _codes(quantizer, place)
        undone = undone | ((age < UPDATES) & _is_back(now, old, new))
        jumped = _jumped(before, now, used, spread=torch.pdist(encoded.flatten(0, 1)).max())
        old = torch.where(jumped.unsqueeze(-1), before, old)
        new = torch.where(jumped.unsqueeze(-1), now, new)
        age = torch.where(jumped, 0, age + 1)
        revived, before = revived | jumped, now
    return int(revived.sum()), int(undone.sum())


def _optimizer_of_codes(learner: VectorLearner) -> torch.optim.Optimizer:
    """Return an Adam that trains only the codes, if they are parameters."""
    groups = [{"params": learner.encoder.parameters(), "lr": 0.0}]
    return torch.optim.Adam([*groups, {"params": learner.model.parameters(), "lr": 1e-2}])


@torch.no_grad()
def _codes(quantizer: Quantizer, place: Int[Tensor, "1 n l"]) -> Float[Tensor, "k n d"]:
    """Return the vector of each index of level 0 at each place, the other levels held fixed."""
    count = quantizer.levels[0].vocab_size
    indices = place.repeat(count, 1, 1)
    indices[..., 0] = torch.arange(count).unsqueeze(1)
    return quantizer.lookup(indices).clone()


def _used(quantizer: Quantizer, vectors: Float[Tensor, "b n d"]) -> Bool[Tensor, "k n"]:
    """Return which codes of level 0 are selected by some vector that uses the same codebook."""
    level, n = quantizer.levels[0], quantizer.num_tokens
    chosen: Int[Tensor, "b n"] = quantizer.encode(vectors)[..., 0]
    owner = torch.arange(n) // (n // level.num_codebooks)
    used = torch.zeros(level.vocab_size, level.num_codebooks, dtype=torch.bool)
    used[chosen, owner.expand_as(chosen)] = True
    return used[:, owner]


def _jumped(
    before: Float[Tensor, "k n d"],
    now: Float[Tensor, "k n d"],
    used: Bool[Tensor, "k n"],
    spread: Tensor,
) -> Bool[Tensor, "k n"]:
    """Return which unused codes moved farther than training moves codes and than data is wide."""
    moved = (now - before).norm(dim=-1)
    return ~used & (moved > 20 * moved[used].amax()) & (moved > 2 * spread)


def _is_back(now: Tensor, old: Tensor, new: Tensor) -> Bool[Tensor, "k n"]:
    """Return which codes are nearer to their old position than to the one they were moved to.

    A code that now lies on another code has been revived again and does not count.
    """
    nearer = (now - old).norm(dim=-1) < (now - new).norm(dim=-1)
    apart = torch.cdist(now.transpose(0, 1), now.transpose(0, 1))  # (N, K, K)
    apart.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return nearer & (0.05 * (new - old).norm(dim=-1) < apart.amin(-1).T)
