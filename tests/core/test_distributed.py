"""Codebook edits in two real processes equal those of one process with the whole batch."""

from __future__ import annotations

import pytest
import torch

from spectok.distributed import (
    broadcast_from_main,
    clear_moments,
    draw_per_sample,
    gather_candidates,
    shared_draws,
    sum_over_ranks,
    world,
)
from spectok.testing.learners import VectorLearner, state_of
from spectok.testing.ranks import on_two_ranks, step_on_half
from spectok.testing.small import small_quantizer

VECTORS = torch.arange(24.0).view(12, 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def use_everything(rank, split):
    """Call each function once, with data that differs between ranks."""
    counts, sums = torch.tensor([1.0, 2.0]) * (rank + 1), torch.full((2, 3), float(rank))
    counts, sums = sum_over_ranks(counts, sums)
    mine = VECTORS[:split] if rank == 0 else VECTORS[split:]
    with shared_draws(5):
        shared = draw_per_sample(3)
    return {
        "world": torch.tensor(world()),
        "counts": counts,
        "sums": sums,
        "broadcast": broadcast_from_main(torch.tensor([10.0 + rank])),
        "candidates": gather_candidates(mine, 7, generator()),
        "draws": draw_per_sample(3, generator(1)),
        "shared": shared,
    }


def fail_on_rank_1(rank):
    if rank == 1:
        raise ValueError("only rank 1 fails")
    return {}


@pytest.fixture(scope="module")
def ranks():
    return on_two_ranks(use_everything, 5)


def test_ranks_know_themselves(ranks):
    assert [rank["world"].tolist() for rank in ranks] == [[0, 2], [1, 2]]


def test_statistics_are_summed_and_keep_their_shapes(ranks):
    for rank in ranks:
        assert rank["counts"].tolist() == [3, 6]
        assert rank["sums"].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_rows_are_those_of_rank_0(ranks):
    assert [rank["broadcast"].item() for rank in ranks] == [10, 10]


def test_candidates_are_those_one_process_would_draw(ranks):
    alone = gather_candidates(VECTORS, 7, generator())
    for rank in ranks:  # 5 vectors on rank 0, 7 on rank 1
        assert torch.equal(rank["candidates"], alone)


def test_each_image_draws_the_same_number_on_one_process_and_on_two(ranks):
    drawn = torch.cat([rank["draws"] for rank in ranks])
    assert torch.equal(drawn, draw_per_sample(6, generator(1)))
    with shared_draws(5):
        alone = draw_per_sample(6)
    assert torch.equal(torch.cat([rank["shared"] for rank in ranks]), alone)


@pytest.mark.slow
def test_spawned_processes_train_as_forked_ones():
    learner = VectorLearner(small_quantizer("ema"))
    states, batches = [state_of(learner)] * 2, [learner.batch(4) for _ in range(2)]
    forked = on_two_ranks(step_on_half, learner, states, batches, start_method="fork")
    spawned = on_two_ranks(step_on_half, learner, states, batches, start_method="spawn")
    for one, other in zip(forked, spawned):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(states[0][name], forked[0][f"0.{name}"]) for name in states[0])


def test_an_error_on_one_rank_is_raised_with_its_trace():
    with pytest.raises(Exception, match="only rank 1 fails"):
        on_two_ranks(fail_on_rank_1)


def test_candidates_repeat_when_there_are_fewer_vectors_than_codes():
    few = gather_candidates(VECTORS[:2], 50, generator())
    assert few.shape == (50, 2)
    assert {tuple(row) for row in few.tolist()} == {(0.0, 1.0), (2.0, 3.0)}


def test_candidates_are_drawn_uniformly():
    drawn = gather_candidates(VECTORS, 12_000, generator())[:, 0]
    shares = torch.bincount((drawn / 2).long(), minlength=12) / 12_000
    assert (shares - 1 / 12).abs().max() < 0.01


def test_shared_draws_end_with_their_block():
    with shared_draws(5):
        first = draw_per_sample(4)
    torch.manual_seed(9)
    outside = draw_per_sample(4)
    torch.manual_seed(9)
    assert torch.equal(outside, torch.rand(4))
    with shared_draws(5):
        assert torch.equal(draw_per_sample(4), first)


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 3)])
def test_moments_of_replaced_codes_are_cleared_and_no_others(shape):
    codebook = torch.nn.Parameter(torch.randn(shape))
    optimizer = torch.optim.Adam([codebook], lr=0.1)
    codebook.square().sum().backward()
    optimizer.step()
    clear_moments(codebook, torch.tensor([1, 4]), [optimizer])
    state = optimizer.state[codebook]
    for moment in (state["exp_avg"], state["exp_avg_sq"]):
        cleared = (moment.view(-1, 3) == 0).all(-1)
        assert cleared.tolist() == [False, True, False, False, True, False]
    assert state["step"] == 1


def test_an_optimizer_without_the_codebook_is_left_alone():
    other = torch.nn.Parameter(torch.randn(6, 3))
    optimizer = torch.optim.Adam([other])
    other.sum().backward()
    optimizer.step()
    clear_moments(torch.nn.Parameter(torch.zeros(6, 3)), torch.tensor([0]), [optimizer])
    assert (optimizer.state[other]["exp_avg"] != 0).all()
