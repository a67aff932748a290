"""Checks that quantizers and tokenizers share, and the means to skip one."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pytest
import torch
from torch import Tensor

from spectok.errors import ConfigError, did_you_mean
from spectok.testing.expect import expect
from spectok.testing.learners import Learner, state_of, train
from spectok.testing.pretend import PretendDevice
from spectok.testing.ranks import on_two_ranks, step_on_half

Build = Callable[[], Any]
LearnerT = TypeVar("LearnerT", bound=Learner)


class Conformance(ABC, Generic[LearnerT]):
    """Checks for quantizers and tokenizers alike.

    Attributes:
        skip: Checks to skip, each with the reason why it cannot hold.
        without_gradient: Parameters that get no gradient from the losses, each with the reason.
            DDP fails on any other.
        batch_size: Images per step where two ways to train are compared; even. With fewer vectors
            than codes, some codes coincide, and rounding decides which is nearest.
        tolerance: Largest allowed difference between two ways to compute the same state.
    """

    skip: ClassVar[dict[str, str]] = {}
    without_gradient: ClassVar[dict[str, str]] = {}
    batch_size: ClassVar[int] = 32
    tolerance: ClassVar[float] = 1e-5

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        checks = [name for name in dir(cls) if name.startswith("test_")]
        for name, reason in cls.skip.items():
            if name not in checks:
                raise ConfigError(
                    f"{cls.__name__}.skip: no check is called {name!r}{did_you_mean(name, checks)}"
                )
            _need_reason(f"{cls.__name__}.skip", name, reason)
            setattr(cls, name, pytest.mark.skip(reason=reason)(_left_out(name)))
        for name, reason in cls.without_gradient.items():
            _need_reason(f"{cls.__name__}.without_gradient", name, reason)

    @pytest.fixture
    def build(self) -> Build:
        """Return a function that builds a small, fresh model; a subclass must give this fixture."""
        raise ConfigError(f"{type(self).__name__} needs a fixture 'build': see spectok.testing")

    # -- what each kind of model defines ---

    @abstractmethod
    def learner(self, build: Build) -> LearnerT:
        """Build a model and wrap it for training."""

    @abstractmethod
    def outputs(self, model: Any, batch: Tensor) -> list[Tensor]:
        """Return what the model makes of a batch in eval mode, indices first."""

    @abstractmethod
    def save_and_load(self, model: Any, build: Build, folder: Path) -> Any:
        """Save a model, and return it loaded again."""

    # -- checks ---

    def test_every_parameter_gets_a_gradient(self, build: Build) -> None:
        """Every trainable parameter gets a gradient from the losses, or is listed with a reason."""
        learner = self.fresh(build)
        learner.objective(learner.batch(4)).backward()
        parameters = dict(learner.model.named_parameters())
        missing = {n for n, p in parameters.items() if p.requires_grad and p.grad is None}
        listed = set(self.without_gradient)
        expect(
            missing <= listed,
            f"no gradient reaches {sorted(missing - listed)}; DDP stops at unused parameters: use "
            f"them, make them buffers, or list them in without_gradient with the reason",
        )
        stale = sorted(listed - missing)
        expect(not stale, f"without_gradient lists {stale}, which get a gradient or do not exist")

    def test_save_and_load_are_identical(self, build: Build, tmp_path: Path) -> None:
        """A trained model reloads bit for bit, and continues to train as if never saved."""
        learner = self.fresh(build)
        train(learner, [[learner.batch(4)] for _ in range(3)])
        loaded = copy.deepcopy(learner)
        loaded.model = self.save_and_load(learner.model, build, tmp_path)
        self.expect_equal(state_of(loaded.model), state_of(learner.model), "saving and loading")
        batch = learner.batch(2)
        for before, after in zip(
            self.outputs(learner.model, batch), self.outputs(loaded.model, batch)
        ):
            expect(torch.equal(before, after), "the loaded model gives other outputs")
        for one in (learner, loaded):
            train(one, [[batch]], seed=7)
        self.expect_equal(
            state_of(loaded), state_of(learner), "one more step after loading: state is missing"
        )

    def test_batch_of_two_equals_two_of_one(self, build: Build) -> None:
        """In eval mode an image's result does not depend on the other images of the batch.

        The codes are compared, not their indices: where two codes have come to coincide, rounding
        may choose either.
        """
        learner = self.fresh(build)
        train(learner, [[learner.batch(4)] for _ in range(3)])
        batch = learner.batch(2)
        together = self.outputs(learner.model, batch)
        alone = zip(*(self.outputs(learner.model, one) for one in batch.split(1)))
        for whole, parts in list(zip(together, alone))[1:]:
            apart = _difference(whole, torch.cat(parts))
            expect(
                apart <= self.tolerance, f"a batch of two differs from two of one by {apart:.3g}"
            )

    def test_eval_never_edits_state(self, build: Build) -> None:
        """A forward pass in eval mode changes nothing, now or at the next training step."""
        self._expect_no_trace(build, lambda model, batch: model.eval()(batch))

    def test_encode_in_training_leaves_no_trace(self, build: Build) -> None:
        """``encode`` in training mode keeps the mode and changes no statistics."""

        def encode(model: Any, batch: Tensor) -> None:
            modes = [module.training for module in model.modules()]
            model.encode(batch)
            after = [module.training for module in model.modules()]
            expect(after == modes, "encode() did not restore the training mode of every module")

        self._expect_no_trace(build, encode)

    def test_accumulation_equals_one_big_step(self, build: Build) -> None:
        """Two micro-batches train like one batch twice as large, codebook edits included."""
        learner = self.fresh(build)
        self.without_random_draws(learner.model)
        batches = learner.moving_batches(self.batch_size, steps=4)
        starts, ends = self.record(learner, batches)
        for i, batch in enumerate(batches):
            learner.load_state_dict(starts[i])
            train(learner, [batch.chunk(2)], seed=i)
            self.expect_close(state_of(learner), ends[i], "accumulating two micro-batches")

    def test_two_processes_equal_one(self, build: Build) -> None:
        """Two processes keep all state bit-identical, and each step equals that of one process."""
        learner = self.fresh(build)
        batches = learner.moving_batches(self.batch_size, steps=4)
        starts, ends = self.record(learner, batches)
        first, second = on_two_ranks(step_on_half, learner, starts, batches)
        self.expect_equal(second, first, "rank 1 compared with rank 0")
        for i, end in enumerate(ends):
            found = {name: first[f"{i}.{name}"] for name in end}
            self.expect_close(found, end, f"step {i + 1} of two processes compared with one")

    def test_steps_never_wait_for_a_gpu(self, build: Build) -> None:
        """A step on a GPU leaves no tensor on the CPU and never waits, also under bf16 autocast.

        Shown without a GPU; see :mod:`spectok.testing.pretend`. Of every two steps one may wait,
        so that codes can be revived now and then.
        """
        for low_precision in (False, True):
            learner = self.fresh(build)
            with PretendDevice("cuda") as gpu:
                optimizer = torch.optim.SGD(learner.to("cuda").parameters(), lr=0.01)
                for step in range(1, 4):
                    batch = learner.batch(4).to("cuda")
                    with torch.autocast("cuda", torch.bfloat16, enabled=low_precision):
                        gpu.step = step
                        objective = learner.objective(batch)
                    learner.backward(objective)
                    learner.model.before_step()
                    optimizer.step()
                    optimizer.zero_grad()
                    learner.model.after_step([optimizer])
                    gpu.step = 0
                self.outputs(learner.model, batch)
            waits = [[str(e) for e in gpu.events if e.step == step] for step in (2, 3)]
            expect(
                not all(waits),
                f"every step waits for the GPU: {'; '.join(dict.fromkeys(waits[0]))}; compute it "
                f"on the device, or wait only in steps that edit codes",
            )

    # -- tools for checks ---

    def fresh(self, build: Build) -> LearnerT:
        """Build a learner from seed 0, in training mode, on the CPU."""
        torch.manual_seed(0)
        learner = self.learner(build)
        torch.manual_seed(1)
        return learner.train()

    def record(
        self, learner: Learner, batches: list[Tensor]
    ) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
        """Train on batches; return the states before and after each step.

        Another way to take a step starts from the recorded state before it, so that rounding errors
        do not grow over the steps until they change which code is chosen.
        """
        states = [state_of(learner)]
        for i, batch in enumerate(batches):
            train(learner, [[batch]], seed=i)
            states.append(state_of(learner))
        return states[:-1], states[1:]

    def without_random_draws(self, model: Any) -> None:
        """Switch off random draws per batch; by default models make none."""

    def expect_equal(self, found: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
        """Expect two states to be equal bit for bit."""
        expect(found.keys() == wanted.keys(), f"{what}: {found.keys() ^ wanted.keys()} on one side")
        for name, value in wanted.items():
            same = found[name].dtype == value.dtype and torch.equal(found[name], value)
            expect(same, f"{what}: {name} is not bit-identical")

    def expect_close(self, found: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
        """Expect two states to agree within :attr:`tolerance`."""
        for name, value in wanted.items():
            apart = _difference(found[name], value)
            expect(apart <= self.tolerance, f"{what}: {name} differs by {apart:.3g}")

    def _expect_no_trace(self, build: Build, look: Callable[[Any, Tensor], Any]) -> None:
        touched, untouched = self.fresh(build), self.fresh(build)
        steps = [[touched.batch(4)] for _ in range(2)]
        for learner in (touched, untouched):
            train(learner, steps)
        before = state_of(touched)
        look(touched.model, touched.batch(4))
        self.expect_equal(state_of(touched), before, "looking at a batch")
        for learner in (touched, untouched):
            train(learner, steps, seed=3)
        self.expect_equal(state_of(touched), state_of(untouched), "the step after looking")


def _difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    return (found.double() - wanted.double()).abs().max().item() if found.numel() else 0.0


def _need_reason(place: str, name: str, reason: str) -> None:
    if not isinstance(reason, str) or not reason.strip():
        raise ConfigError(f"{place}[{name!r}] needs a reason in words")


def _left_out(name: str) -> Callable[[Any], None]:
    def check(self: Any) -> None:
        """Left out by the subclass."""

    check.__name__ = name
    return check
