"""The base quantizers with two codebooks: numbers computed by hand, and state that moves along."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spectok import InputError, list_quantizers
from spectok.plugins.registry import get_quantizer
from spectok.quantizers import (
    CodebookQuantizer,
    CodeCounts,
    Quantizer,
    RunningMeans,
    RunningQuantizer,
    StepCounter,
)
from spectok.testing.small import small_tokenizer

# Positions 0 and 1 of an image belong to codebook 0, positions 2 and 3 to codebook 1.
SIZES = {"dim": 1, "num_tokens": 4, "num_codebooks": 2}


class FollowsMeans(RunningQuantizer):
    """The smallest quantizer with running means."""

    def __init__(self, codes, decay=0.75, revive_below=0.0, revive_every=2, starts_on_data=False):
        super().__init__(
            **SIZES,
            codebook_size=len(codes[0]),
            commitment_weight=1.0,
            revive_below=revive_below,
            revive_every=revive_every,
            starts_on_data=starts_on_data,
        )
        self.running_means = RunningMeans(self, self.codebook, decay)
        self.codebook.copy_(torch.tensor(codes).unsqueeze(-1))

    def move_codes(self, counts, sums):
        self.running_means.update(counts, sums)
        self.running_means.move(self.codebook)

    def set_codes(self, group, rows, vectors):
        super().set_codes(group, rows, vectors)
        self.running_means.restart(group, rows, vectors)


def learned(codes):
    quantizer = CodebookQuantizer(
        **SIZES,
        codebook_size=len(codes[0]),
        codebook_weight=1.0,
        commitment_weight=1.0,
        learned=True,
        init_range=1.0,
    )
    quantizer.codebook.data.copy_(torch.tensor(codes).unsqueeze(-1))
    return quantizer


def see(quantizer, *images):
    """Run one micro-batch of images, each a list of four numbers."""
    return quantizer(torch.tensor(images).unsqueeze(-1))


def step(quantizer, *images):
    see(quantizer, *images)
    quantizer.after_step()


def values(tensor):
    return [[round(v, 6) for v in row] for row in tensor.squeeze(-1).tolist()]


# -- which codebook ---


def test_rows_number_the_codes_of_all_codebooks():
    quantizer = learned([[0.0] * 5, [0.0] * 5])
    assert quantizer.rows(torch.tensor([[0, 4, 0, 4]])).tolist() == [[0, 4, 5, 9]]


def test_codebooks_can_be_searched_for_more_vectors_than_tokens():
    quantizer = CodebookQuantizer(
        dim=1,
        num_tokens=3,
        codebook_size=5,
        num_codebooks=2,
        codebook_weight=1.0,
        commitment_weight=1.0,
        learned=True,
        init_range=1.0,
        num_vectors=6,
    )
    assert quantizer.num_tokens == 3
    assert quantizer.rows(torch.zeros(1, 6, dtype=torch.int64)).tolist() == [[0, 0, 0, 5, 5, 5]]
    with pytest.raises(InputError, match="num_codebooks 2 does not divide the 3 tokens"):
        CodebookQuantizer(
            dim=1,
            num_tokens=3,
            codebook_size=5,
            num_codebooks=2,
            codebook_weight=1.0,
            commitment_weight=1.0,
            learned=True,
            init_range=1.0,
        )


def test_each_position_is_searched_in_its_own_codebook():
    quantizer = learned([[0.0, 10], [5, 20]]).eval()
    output = see(quantizer, [1.0, 9, 9, 19], [9, 1, 19, 9])
    assert output.indices.squeeze(-1).tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]
    assert output.z_q.squeeze(-1).tolist() == [[0, 10, 5, 20], [10, 0, 20, 5]]
    assert torch.equal(quantizer.lookup(output.indices), output.z_q)
    (level,) = quantizer.levels
    assert (level.vocab_size, level.codebook, level.num_codebooks) == (2, "position", 2)


# -- frequencies ---


def test_frequency_after_two_steps():
    quantizer = learned([[0.0, 10], [0, 10]])
    see(quantizer, [0.0, 0, 0, 10])  # two micro-batches of one step
    see(quantizer, [0.0, 0, 10, 10])
    quantizer.after_step()
    # codebook 0: shares 1, 0;  codebook 1: shares 1/4, 3/4
    expected = [[0.505, 0.495], [0.4975, 0.5025]]  # .99 · .5 + .01 · share
    assert quantizer.frequency.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]
    step(quantizer, [0.0, 10, 0, 0], [10, 10, 0, 0])
    # codebook 0: shares 1/4, 3/4;  codebook 1: shares 1, 0
    expected = [[0.50245, 0.49755], [0.502525, 0.497475]]
    assert quantizer.frequency.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]
    assert int(quantizer.num_steps) == 2


def test_a_codebook_that_nothing_chose_keeps_no_share():
    quantizer = learned([[0.0, 10], [0, 10]])
    quantizer.after_step()
    assert quantizer.frequency.tolist() == [pytest.approx([0.495, 0.495])] * 2


def test_usage_is_the_mean_over_codebooks():
    quantizer = learned([[0.0] * 4, [0.0] * 4])
    quantizer.frequency.copy_(torch.tensor([[0.5, 0.45, 0.05, 0], [0.98, 0.02, 0, 0]]))
    metrics = see(quantizer.eval(), [0.0] * 4).metrics
    assert metrics["codebook_usage"].item() == (3 + 1) / 8  # above a tenth of 1/4
    entropies = 0.855695, 0.098039
    expected = (torch.tensor(entropies).exp().mean()).item()
    assert metrics["perplexity"].item() == pytest.approx(expected, abs=1e-4)


def test_eval_counts_nothing_and_takes_no_step():
    quantizer = learned([[0.0, 10], [0, 10]]).eval()
    step(quantizer, [0.0, 0, 0, 0])
    assert not quantizer.pending_counts.any()
    assert quantizer.frequency.tolist() == [[0.5, 0.5]] * 2
    assert quantizer.step_counter.steps == 0


def test_statistics_are_summed_then_codes_edited_then_all_is_forgotten():
    """The order of a step: an edit sees this step's counts, frequencies and number."""
    seen = []

    class Watches(FollowsMeans):
        def edit_codes(self, counts, statistics, optimizers):
            seen.append((counts.tolist(), self.frequency[0, 0].item(), self.step_counter.steps))
            super().edit_codes(counts, statistics, optimizers)

    quantizer = Watches([[0.0, 10], [0, 10]])
    step(quantizer, [0.0, 0, 0, 10])
    assert seen == [([[2, 0], [1, 1]], pytest.approx(0.505), 1)]
    assert not quantizer.pending_counts.any()
    assert not quantizer.pending_sums.any()


# -- running means and revival ---


def test_running_means_after_two_steps():
    quantizer = FollowsMeans([[0.0, 10], [0, 10]])
    step(quantizer, [1.0, 2, 9, 8])
    # codebook 0: 1 and 2 chose code 0;  codebook 1: 9 and 8 chose code 1
    assert values(quantizer.ema_counts) == [[0.5, 0], [0, 0.5]]
    assert values(quantizer.ema_sums) == [[0.75, 0], [0, 4.25]]
    assert values(quantizer.codebook) == [[1.5, 10], [0, 8.5]]  # unchosen codes stay
    step(quantizer, [3.0, 9, 1, 9])  # each code is chosen once
    assert values(quantizer.ema_counts) == [[0.625, 0.25], [0.25, 0.625]]
    assert values(quantizer.ema_sums) == [[1.3125, 2.25], [0.25, 5.4375]]
    assert values(quantizer.codebook) == [[2.1, 9], [1, 8.7]]


def test_revival_touches_the_dead_code_of_the_right_codebook():
    quantizer = FollowsMeans([[10.0, 20, 30], [-10, -20, 500]], revive_below=0.5)
    quantizer.frequency[1, 2] = 0.0
    images = [10.0, 20, -10, -20], [30, 10, -20, -20]
    step(quantizer, *images)
    assert quantizer.codebook[1, 2] == 500  # revived at every second step only
    step(quantizer, *images)
    assert values(quantizer.codebook[:1]) == [[10, 20, 30]]
    assert values(quantizer.codebook[1:, :2]) == [[-10, -20]]
    assert quantizer.codebook[1, 2].item() in (-10, -20)  # a vector of its own codebook
    assert quantizer.frequency[1, 2] == pytest.approx(1 / 3)
    assert (quantizer.frequency[0] > 0.3).all()
    # the running count of an average code, and the sum that makes the code the mean
    count = quantizer.ema_counts[1, :2].sum() / 3
    assert torch.allclose(quantizer.ema_counts[1, 2], count)
    assert torch.allclose(quantizer.ema_sums[1, 2], count * quantizer.codebook[1, 2])


def test_the_first_step_starts_what_nothing_chose_on_its_codebooks_vectors():
    quantizer = FollowsMeans([[10.0, 999], [-999, -10]], starts_on_data=True)
    step(quantizer, [10.0, 11, -10, -11])
    assert values(quantizer.codebook[:1, :1]) == [[10.5]]
    assert values(quantizer.codebook[1:, 1:]) == [[-10.5]]
    assert quantizer.codebook[0, 1].item() in (10, 11)
    assert quantizer.codebook[1, 0].item() in (-10, -11)


def test_revival_draws_from_all_micro_batches_of_the_step_alone():
    torch.manual_seed(0)
    drawn = set()
    for seed in range(12):
        quantizer = FollowsMeans([[0.0, 100], [0, 100]], starts_on_data=True)
        quantizer.step_counter.seed = seed
        see(quantizer, [7.0, 7, 7, 7])
        quantizer.skip_step()
        see(quantizer, [1.0, 1, 1, 1])
        see(quantizer, [2.0, 2, 2, 2])
        quantizer.after_step()
        drawn |= set(quantizer.codebook[:, 1].flatten().tolist())
    assert drawn == {1, 2}


@pytest.mark.parametrize("build", [learned, FollowsMeans])
def test_a_skipped_step_leaves_no_trace(build):
    quantizer = build([[0.0, 10], [0, 10]])
    other = copy.deepcopy(quantizer)
    see(quantizer, [10.0, 10, 10, 10])
    quantizer.skip_step()
    assert quantizer.step_counter.steps == 0
    for each in (quantizer, other):
        step(each, [1.0, 2, 9, 8])
    assert_same_state(quantizer, other)


# -- held state ---


def assert_same_state(one, two):
    other = two.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other[name]), name


def test_held_statistics_save_under_the_quantizers_own_names():
    names = {"codebook", "frequency", "num_steps", "ema_counts", "ema_sums"}
    assert FollowsMeans([[0.0], [0]]).state_dict().keys() == names


def test_the_number_of_steps_survives_saving_and_loading(tmp_path):
    quantizer, loaded = (learned([[0.0, 10], [0, 10]]) for _ in range(2))
    for _ in range(3):
        step(quantizer, [0.0, 0, 0, 10])
    step(loaded, [0.0, 0, 0, 10])  # has read its own number by now
    save_file(quantizer.state_dict(), tmp_path / "state.safetensors")
    nn.ModuleDict({"part": loaded}).load_state_dict(
        {f"part.{k}": v for k, v in load_file(tmp_path / "state.safetensors").items()}
    )
    assert loaded.step_counter.steps == 3
    draws = [torch.rand(4, generator=q.step_counter.generator()) for q in (quantizer, loaded)]
    assert torch.equal(*draws)
    for each in (quantizer, loaded):
        step(each, [0.0, 10, 0, 10])
    assert_same_state(quantizer, loaded)
    assert int(loaded.num_steps) == 4


def test_the_number_of_steps_survives_from_pretrained(tmp_path):
    """From the meta device: diffusers calls no ``load_state_dict``."""
    tokenizer = small_tokenizer("vqvae", quantizer="ema")
    images = torch.rand(2, *tokenizer.image_shape)
    for _ in range(3):
        tokenizer(images)
        tokenizer.after_step([])
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert loaded.quantizer.step_counter.steps == 3
    assert torch.equal(loaded.quantizer.code_counts.frequency, tokenizer.quantizer.frequency)


def test_a_number_of_steps_that_is_put_in_place_is_read():
    """As loading from the meta device does, also after the number has been read."""
    quantizer = learned([[0.0, 10], [0, 10]])
    assert quantizer.step_counter.steps == 0
    quantizer.register_buffer("num_steps", torch.tensor(5))
    assert quantizer.step_counter.steps == 5
    quantizer.step_counter.advance()
    assert int(quantizer.num_steps) == quantizer.step_counter.steps == 6


def test_a_copy_counts_for_itself():
    quantizer = FollowsMeans([[0.0, 10], [0, 10]])
    step(quantizer, [1.0, 2, 9, 8])
    copied, before = copy.deepcopy(quantizer), copy.deepcopy(quantizer.state_dict())
    step(copied, [3.0, 9, 1, 9])
    assert values(copied.codebook) == [[2.1, 9], [1, 8.7]]
    assert int(copied.num_steps) == copied.step_counter.steps == 2
    assert quantizer.step_counter.steps == 1
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name
    copied.load_state_dict(quantizer.state_dict())
    assert copied.step_counter.steps == 1


def test_statistics_follow_their_owner_to_another_dtype():
    quantizer = FollowsMeans([[0.0, 10], [0, 10]])
    step(quantizer, [1.0, 2, 9, 8])
    quantizer.to(torch.float64)
    assert quantizer.code_counts.frequency.dtype == torch.float64
    quantizer.code_counts.count(torch.tensor([0, 0, 3]))
    assert quantizer.pending_counts.tolist() == [[2, 0], [0, 1]]
    quantizer.running_means.update(torch.ones(2, 2).double(), torch.ones(2, 2, 1).double())
    assert quantizer.ema_counts.tolist() == [[0.625, 0.25], [0.25, 0.625]]


def test_any_module_can_hold_statistics():
    owner = nn.Linear(1, 1)
    counter, counts = StepCounter(owner, seed=7), CodeCounts(owner, (3,))
    counts.count(torch.tensor([0, 0, 2]))
    (summed,) = counts.update()
    counter.advance()
    assert summed.tolist() == [2, 0, 1]
    assert counts.frequency.tolist() == pytest.approx([0.99 / 3 + 0.02 / 3, 0.33, 1 / 3])
    assert torch.equal(
        torch.rand(2, generator=counter.generator()),
        torch.rand(2, generator=torch.Generator().manual_seed(8)),
    )
    counts.forget()
    assert not owner.pending_counts.any()


# -- the hierarchy ---


@pytest.mark.parametrize("name", list_quantizers())
def test_few_classes_stand_between_a_quantizer_and_its_module(name):
    mro = [cls for cls in get_quantizer(name).mro() if issubclass(cls, Quantizer)]
    assert len(mro) - 1 <= 4, [cls.__name__ for cls in mro]  # besides the quantizer itself
