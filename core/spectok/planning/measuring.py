"""What one training step costs on one process, found by running it on tensors without values.

Every operation of the step really happens, forward, backward and optimiser, through the loop that
trains; only no number is computed. So the sizes of all tensors, their lifetimes and the products of
all layers are those of the training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from spectok.device import kept_constant
from spectok.errors import ConfigError
from spectok.messages import silenced
from spectok.planning.storage import StorageWatch, storage_bytes
from spectok.planning.values import StandIns
from spectok.quantizers import Quantizer
from spectok.training.batches import seeded
from spectok.training.contracts import Callbacks, Phase, StepOutput
from spectok.training.ema import WeightEMA
from spectok.training.launch import accelerated
from spectok.training.loop import MAIN, LoopState, prepare, train_on_batch
from spectok.training.recomputing import blocks_of
from spectok.training.train_config import TrainConfig
from spectok.training.window import Window


@dataclass
class Subject:
    """A training, ready but for its data.

    Args:
        model: What is trained; on the meta device.
        compute_losses: See :func:`spectok.training.fit`.
        batch: A micro-batch of zeros.
        callbacks: As in training.
        phases: As in training.
        frozen: Modules that training uses and does not change, such as the tokenizer of a prior.
        first_step: A step that trains all phases.
    """

    model: nn.Module
    compute_losses: Callable[[nn.Module, Any], StepOutput]
    batch: Any
    callbacks: Callbacks
    phases: Sequence[Phase] = ()
    frozen: Sequence[nn.Module] = ()
    first_step: int = 0


@dataclass(frozen=True)
class StepCost:
    """Bytes and products of one optimiser step on one process, without sharding.

    Args:
        parameters: Numbers that are trained.
        weights: Bytes of them.
        gradients: Bytes of their gradients.
        optimizer: Bytes of the optimiser's moments.
        ema: Bytes of the weight average.
        statistics: Bytes of the buffers of quantizers: codebooks that are averaged, and counts.
        buffers: Bytes of all other buffers.
        frozen: Bytes of the modules that are used and not trained.
        peak: The most bytes held at once.
        flops: Floating-point operations, two per multiplication and addition.
        unit: Bytes of the weights of the largest module that FSDP gathers.
        rest: Bytes of the weights that are in no such module.
        samples: Images or sequences.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    ema: int
    statistics: int
    buffers: int
    frozen: int
    peak: int
    flops: int
    unit: int
    rest: int
    samples: int

    @property
    def activations(self) -> int:
        """Bytes at the peak that are none of the others: activations, and what lives briefly."""
        return max(0, self.peak - self.state)

    @property
    def state(self) -> int:
        """Bytes of all that lives from step to step, and of the gradients."""
        kept = self.weights + self.optimizer + self.ema + self.statistics + self.buffers
        return kept + self.frozen + self.gradients

    def to_dict(self) -> dict[str, int]:
        """Return plain JSON types."""
        return asdict(self) | {"activations": self.activations}


def measure_step(make: Callable[[], Subject], config: TrainConfig) -> StepCost:
    """Return what a step of a training costs on one process.

    Of memory, not the first step is measured: the moments of the optimiser are there by then. Where
    phases take turns, ``flops`` is the mean of both kinds of step, and ``peak`` the larger one's.

    Args:
        make: Returns the training; called where new tensors have no values.
        config: How it is trained; ``fp16`` is measured as ``bf16``, of the same size, and so is
            ``auto``, as on any GPU that is planned for. Nothing is compiled.

    Raises:
        ConfigError: If a step of this model depends on values, and so cannot be run without.
    """
    if config.mixed_precision in ("fp16", "auto"):
        config = config.model_copy(update={"mixed_precision": "bf16"})
    config = config.model_copy(update={"tracker": None, "compile": False})
    try:
        with silenced():
            return _measure(make, config)
    except (RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"a step of this training cannot be followed without computing it ({reason[:160]})"
        ) from error
    finally:
        kept_constant.cache_clear()  # it kept tensors without values


def _measure(make: Callable[[], Subject], config: TrainConfig) -> StepCost:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    subject = make()
    everything = [subject.model, *(phase.module for phase in subject.phases), *subject.frozen]
    for module in everything:
        forget_values(module, mode)
    with mode:
        batch = tree_map(
            lambda leaf: torch.zeros_like(leaf, device="cpu") if isinstance(leaf, Tensor) else leaf,
            subject.batch,
        )
    watch, counter = StorageWatch(), FlopCounterMode(display=False, custom_mapping=_attention())
    with tempfile.TemporaryDirectory() as folder, accelerated(config, Path(folder)) as accelerator:
        main = Phase(MAIN, subject.model, lambda m, b, _: subject.compute_losses(m, b))
        with mode, watch, StandIns():
            prepared = [prepare(accelerator, config, p) for p in (main, *subject.phases)]
            ema = None if config.ema_decay is None else WeightEMA(subject.model, config.ema_decay)
            watch.add(_tensors(everything))
            state = LoopState(accelerator, config, subject.callbacks, prepared, ema, Window())
            turns = 2 if any(phase.alternate for phase in subject.phases) else 1
            steps = range(subject.first_step, subject.first_step + 2 * turns)
            with counter:  # not in the steps whose memory counts: it keeps what it has seen
                gradients = [_step(state, batch, step) for step in steps[:turns]]
            watch.restart()
            gradients += [_step(state, batch, step) for step in steps[turns:]]
        flops = counter.get_total_flops() // turns
        return _cost(subject, state, max(gradients), watch.peak, flops, batch)


def _step(state: LoopState, batch: Any, step: int) -> int:
    """Take an optimiser step; return the bytes of the gradients that the model's own had."""
    held = [0]
    before = state.callbacks.before_step

    def note_gradients(model: nn.Module) -> Any:
        metrics = None if before is None else before(model)
        held.append(storage_bytes(p.grad for q in state.phases for p in q.parameters))
        return metrics

    state.callbacks.before_step = note_gradients
    if state.callbacks.begin_step is not None:
        state.callbacks.begin_step(step)
    for micro in range(state.config.gradient_accumulation):
        with seeded(0, step * state.config.gradient_accumulation + micro, 0):
            train_on_batch(state, batch, step)
    state.callbacks.before_step = before
    return max(held)


def _cost(
    subject: Subject, state: LoopState, gradients: int, peak: int, flops: int, batch: Any
) -> StepCost:
    modules = [phase.module for phase in state.phases]
    trained = [p for phase in state.phases for p in phase.parameters]
    buffers = {id(b): b for module in modules for b in module.buffers()}
    quantizers = [m for module in modules for m in module.modules() if isinstance(m, Quantizer)]
    counted = {id(b): b for quantizer in quantizers for b in quantizer.buffers()}
    moments = tree_leaves([p.optimizer.optimizer.state_dict()["state"] for p in state.phases])
    units = blocks_of(subject.model)
    inside = {id(p) for unit in units for p in unit.parameters()}
    statistics = storage_bytes(counted.values())
    return StepCost(
        parameters=sum(p.numel() for p in trained),
        weights=storage_bytes(p for module in modules for p in module.parameters()),
        gradients=gradients,
        optimizer=storage_bytes(moments),
        ema=0 if state.ema is None else storage_bytes(state.ema.shadow.values()),
        statistics=statistics,
        buffers=storage_bytes(buffers.values()) - statistics,
        frozen=storage_bytes(_tensors(subject.frozen)),
        peak=peak,
        flops=flops,
        unit=max((storage_bytes(unit.parameters()) for unit in units), default=0),
        rest=storage_bytes(p for p in subject.model.parameters() if id(p) not in inside),
        samples=_batch_size(batch) * state.config.gradient_accumulation,
    )


def forget_values(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace a module's tensors by ones without values on the CPU; shared ones stay shared."""
    known: dict[int, Any] = {}

    def fake(tensor: Tensor) -> Any:
        if id(tensor) not in known:
            with mode, torch.no_grad():
                empty = torch.empty_like(tensor, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            known[id(tensor)] = (
                nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty,
                tensor,
            )
        return known[id(tensor)][0]

    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = fake(tensor)
        part.to = lambda *_, part=part, **__: part  # it is where it belongs; torch cannot tell


def _tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [t for module in modules for t in (*module.parameters(), *module.buffers())]


def _batch_size(batch: Any) -> int:
    return next(len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))


def _attention() -> dict[Any, Any]:
    """Return how to count the attention kernels of a CPU, which torch's counter leaves out."""
    aten = torch.ops.aten

    def forward(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(
        grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
    ) -> int:
        return int(2.5 * sdpa_flop_count(query, key, value))  # five products instead of two

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
