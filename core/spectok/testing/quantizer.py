"""Checks for quantizers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spectok.plugins.registry import list_tokenizers
from spectok.quantizers import Quantizer, QuantizerLevel
from spectok.testing.base import Build, Conformance
from spectok.testing.expect import expect, expect_refusal
from spectok.testing.learners import ImageLearner, VectorLearner, fit, take_step, train
from spectok.testing.revival import UPDATES, watch_revivals
from spectok.testing.small import small_tokenizer
from spectok.token_spec import TokenSpec


class QuantizerConformance(Conformance[VectorLearner]):
    """Every check that a quantizer must pass; subclass it and define the fixture ``build``.

    Attributes:
        revival_steps: Steps in which codes that the data has left are watched.
        fit_steps: Steps in which the error on eight images must fall inside each tokenizer.
        fit_learning_rate: Adam's learning rate in those steps.
        tokenizers: Tokenizers in which it is trained; None for all that are installed.
    """

    revival_steps: ClassVar[int] = 120
    fit_steps: ClassVar[int] = 12
    fit_learning_rate: ClassVar[float] = 5e-3
    tokenizers: ClassVar[tuple[str, ...] | None] = None

    def learner(self, build: Build) -> VectorLearner:
        """Put the quantizer behind one linear layer."""
        return VectorLearner(build())

    def outputs(self, model: Quantizer, batch: Tensor) -> list[Tensor]:
        """Return indices and quantised vectors."""
        with torch.no_grad():
            output = model.eval()(batch)
        return [output.indices, output.z_q]

    def save_and_load(self, model: Quantizer, build: Build, folder: Path) -> Quantizer:
        """Go through a safetensors file, as tokenizers do."""
        save_file(model.state_dict(), folder / "quantizer.safetensors")
        loaded = build()
        loaded.load_state_dict(load_file(folder / "quantizer.safetensors"))
        return loaded

    @pytest.fixture
    def option(self) -> str | dict[str, Any] | None:
        """Return what a recipe writes under ``quantizer:``; None while it is not registered."""
        return None

    # -- the contract of forward and lookup ---

    def test_indices_fit_the_levels(self, build: Build) -> None:
        """Indices are int64 ``(B, N, L)`` inside the vocabularies that :attr:`levels` declares."""
        learner = self.fresh(build)
        quantizer, vectors = learner.model, 10 * learner.batch(8)
        spec = TokenSpec(tuple(v.at((quantizer.num_tokens,)) for v in quantizer.levels))
        for training in (True, False):
            indices = quantizer.train(training)(vectors).indices
            expect(indices.dtype == torch.int64, f"indices are {indices.dtype}, not int64")
            shape = (8, quantizer.num_tokens, spec.num_levels)
            expect(
                indices.shape == shape, f"indices have shape {tuple(indices.shape)}, not {shape}"
            )
            spec.validate(spec.flatten(list(indices.unbind(-1))))
        expect(TokenSpec.from_dict(spec.to_dict()) == spec, "the levels do not survive JSON")

    def test_lookup_returns_z_q(self, build: Build) -> None:
        """In eval mode ``lookup(indices)`` is ``z_q`` bit for bit: indices say everything."""
        learner = self.fresh(build)
        train(learner, [[learner.batch(8)] for _ in range(3)])
        output = learner.model.eval()(learner.batch(4))
        z_q = learner.model.lookup(output.indices)
        expect(z_q.dtype == torch.float32, f"lookup returns {z_q.dtype}, not float32")
        expect(torch.equal(z_q, output.z_q), "lookup(indices) differs from the z_q of forward")

    def test_losses_are_finite_scalars(self, build: Build) -> None:
        """Losses and metrics are finite scalars by name, and metrics carry no gradient."""
        learner = self.fresh(build)
        output = learner(learner.batch(4))
        for name, value in {**output.losses, **output.metrics}.items():
            expect(value.ndim == 0, f"{name} has shape {tuple(value.shape)}; it must be a scalar")
            expect(bool(value.isfinite()), f"{name} is {value.item()}")
        for name, value in output.metrics.items():
            expect(not value.requires_grad, f"metric {name} carries a gradient; detach it")

    def test_wrong_shapes_are_rejected(self, build: Build) -> None:
        """Vectors of another number or length are refused, naming what was given and expected."""
        quantizer = self.fresh(build).model
        n, d = quantizer.num_tokens, quantizer.dim
        for shape in ((2, n + 1, d), (2, n, d + 1), (n, d)):
            refused = functools.partial(quantizer, torch.zeros(shape))
            expect_refusal(refused, str(shape), f"{n}, {d}")

    # -- gradients and precision ---

    def test_gradient_reaches_the_encoder(self, build: Build) -> None:
        """The gradient of ``z_q`` passes straight through to every vector."""
        learner = self.fresh(build)
        vectors = learner.batch(4).requires_grad_()
        z_q = learner.model(vectors).z_q
        expect(z_q.requires_grad, "z_q has no gradient at all; see straight_through()")
        (z_q * torch.randn(z_q.shape)).sum().backward()
        expect(vectors.grad is not None, "z_q has no gradient to z; see straight_through()")
        reached = vectors.grad.abs().sum(-1) > 0  # type: ignore[union-attr]
        expect(
            reached.all(),
            f"the gradient of z_q reaches {int(reached.sum())} of {reached.numel()} vectors",
        )
        expect(bool(vectors.grad.isfinite().all()), "the gradient is not finite")  # type: ignore[union-attr]

    def test_bf16_indices_equal_fp32_indices(self, build: Build) -> None:
        """Autocast changes nothing: bfloat16 vectors get the indices of their float32 copies."""
        learner = self.fresh(build)
        train(learner, [[learner.batch(8)] for _ in range(3)])
        quantizer, vectors = learner.model.eval(), learner.batch(16).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            low = quantizer(vectors)
        high = quantizer(vectors.float())
        same = (low.indices == high.indices).float().mean().item()
        expect(same == 1, f"only {same:.1%} of the indices under bfloat16 autocast equal float32's")
        expect(
            low.z_q.dtype == torch.float32, f"z_q is {low.z_q.dtype} under autocast, not float32"
        )

    def test_training_under_autocast_is_finite(self, build: Build) -> None:
        """A training step under bfloat16 autocast has finite losses and gradients."""
        learner = self.fresh(build)
        with torch.autocast("cpu", torch.bfloat16):
            objective = learner.objective(learner.batch(8))
        objective.backward()
        expect(bool(objective.isfinite()), f"the objective is {objective.item()}")
        for name, parameter in learner.model.named_parameters():
            finite = parameter.grad is None or bool(parameter.grad.isfinite().all())
            expect(finite, f"the gradient of {name} is not finite")

    def test_trains_inside_every_tokenizer(self, option: str | dict[str, Any] | None) -> None:
        """Inside each installed tokenizer the error on eight images falls within a few steps."""
        if option is None:
            pytest.skip("give the fixture 'option': the name, or name and options, in a recipe")
        for key in self.tokenizers or list_tokenizers():
            torch.manual_seed(0)
            learner = ImageLearner(small_tokenizer(key, quantizer=option))
            before, after = fit(learner, learner.batch(8), self.fit_steps, self.fit_learning_rate)
            expect(
                after < 0.98 * before,
                f"in {key} the squared error went from {before:.4f} to {after:.4f} in "
                f"{self.fit_steps} steps",
            )

    # -- codebooks ---

    def test_revived_codes_survive(self, build: Build) -> None:
        """A code moved to where the data is stays there for ten updates.

        A quantizer that moves a dead code but not its running sums or optimiser moments is undone
        by its next updates. Skipped for a quantizer that revives nothing meanwhile.
        """
        revived, undone = watch_revivals(self.fresh(build), self.revival_steps)
        if not revived:
            pytest.skip(f"no dead code revived in {self.revival_steps} steps; build one that does")
        expect(
            not undone,
            f"{undone} of {revived} revived codes went back to where they were within "
            f"{UPDATES} updates; clear their running sums and optimiser moments with them",
        )

    def test_memory_is_bounded(self, build: Build) -> None:
        """No operation makes a tensor as large as vectors x codes, in eval mode or in training.

        Counts the bytes behind each result that an operation returns, not the scratch space inside
        a kernel.
        """
        learner = self.fresh(build)
        quantizer = learner.model
        codes = max(_codes_per_level(quantizer.levels))
        if codes < 4 * quantizer.dim * len(quantizer.levels):
            pytest.skip(
                f"{codes} codes of length {quantizer.dim} at {len(quantizer.levels)} levels: too "
                f"few to tell; build more codes"
            )
        vectors = learner.batch((16 << 20) // (4 * codes * quantizer.num_tokens))
        limit = vectors.shape[0] * quantizer.num_tokens * codes * 4 // 2
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.05)
        with _LargestResult() as watch:
            take_step(learner, [vectors], optimizer, seed=0)
            with torch.no_grad():
                quantizer.eval()(vectors)
        expect(
            watch.bytes < limit,
            f"{watch.operation} made {watch.bytes >> 20} MiB for {vectors.shape[0]} x "
            f"{quantizer.num_tokens} vectors and {codes} codes: search with nearest_codes(), count "
            f"with bincount or index_add",
        )


def _codes_per_level(levels: Sequence[QuantizerLevel]) -> list[int]:
    """Return how many codes a vector could be compared with; in a tree, all below its root."""
    found: list[int] = []
    for level in levels:
        parents = found[-1] if level.codebook == "path" and found else 1
        found.append(parents * level.vocab_size)
    return found


class _LargestResult(TorchDispatchMode):
    """Remembers the largest result of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operation = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes() > self.bytes:
                self.bytes, self.operation = leaf.untyped_storage().nbytes(), str(func)
        return result
