"""The one training loop: build, prepare, step, log, sample, save.

>>> def compute_losses(model, batch):
...     output = model(batch["images"])
...     return StepOutput(output.losses, output.metrics)
>>> result = fit(model, dataset, compute_losses, TrainConfig(steps=100), Run(Path("runs/mine")))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from spectok.interruption import Interrupted
from spectok.processes import on_main
from spectok.training.batches import Stream, make_loader, read, seeded
from spectok.training.checkpoint import Parts, save_checkpoint
from spectok.training.checks import check_ranks_agree
from spectok.training.compiling import compiled
from spectok.training.contracts import Callbacks, FitResult, Phase, Run, StepOutput
from spectok.training.ema import WeightEMA
from spectok.training.launch import accelerated
from spectok.training.lock import run_locked
from spectok.training.log import LOG, RunLog, start_tracker
from spectok.training.optimizer import make_optimizer, set_learning_rate
from spectok.training.precision import remark_slow_bf16, settled_run
from spectok.training.progress import Clock, Reporter
from spectok.training.recomputing import recompute_blocks, stop_recomputing
from spectok.training.resume import begin, checkpoint_folder, make_manifest
from spectok.training.sharding import Shards, as_plain, is_sharding, refuse_for
from spectok.training.stopping import StopRequest
from spectok.training.train_config import TrainConfig
from spectok.training.window import Window
from spectok.training.workers import choose_workers

MAIN = "model"


@dataclass
class PreparedPhase:
    """A phase that is ready to train: on the device, wrapped, with its optimiser.

    Args:
        given: The phase as the caller described it.
        wrapped: Its module, as data parallelism wraps it.
        optimizer: Accelerate's wrapper of the optimiser.
        config: How to train it; its peak learning rate is the phase's own.
    """

    given: Phase
    wrapped: nn.Module
    optimizer: Any
    config: TrainConfig

    @property
    def name(self) -> str:
        """The phase's name."""
        return self.given.name

    @property
    def module(self) -> nn.Module:
        """What is trained, unwrapped."""
        return self.given.module

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser trains."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def prefix(self) -> str:
        """What the phase's names in the log begin with."""
        return "" if self.name == MAIN else f"{self.name}/"


@dataclass
class LoopState:
    """Everything that the steps of one run share."""

    accelerator: Accelerator
    config: TrainConfig
    callbacks: Callbacks
    phases: list[PreparedPhase]
    ema: WeightEMA | None
    window: Window
    shards: Shards | None = None

    @property
    def model(self) -> nn.Module:
        """The model itself, unwrapped."""
        return self.phases[0].module

    @property
    def others(self) -> dict[str, Any]:
        """What a checkpoint holds beside the modules."""
        others: dict[str, Any] = {f"{p.name}.optimizer": p.optimizer.optimizer for p in self.phases}
        others |= {} if self.ema is None else {"ema": self.ema}
        scaler = self.accelerator.scaler
        others |= {} if scaler is None else {"scaler": scaler}
        return others

    @property
    def parts(self) -> Parts:
        """What a checkpoint holds; whole tensors, gathered by all processes together."""
        if self.shards is not None:
            return self.shards.gather_parts(self.others)
        return Parts({phase.name: phase.module for phase in self.phases}, self.others)


def fit(
    model: nn.Module,
    dataset: Any,
    compute_losses: Callable[[nn.Module, Any], StepOutput],
    config: TrainConfig,
    run: Run,
    *,
    callbacks: Callbacks | None = None,
    phases: Sequence[Phase] = (),
    can_shard: bool = False,
) -> FitResult:
    """Train a model, and keep everything that belongs to the run in its folder.

    Works the same in one process and under ``accelerate launch`` or ``torchrun``. The folder gets
    ``recipe.yaml``, ``log.jsonl`` and ``checkpoints/``, and from the callbacks ``samples/``
    and ``model/``.

    Args:
        model: The model; moved to the device and trained in place.
        dataset: Map-style data set. Its ``set_epoch`` and ``collate`` are used if it has them.
        compute_losses: ``(model, batch) -> StepOutput``. The model it gets may be wrapped for data
            parallelism: call it, and use none of its methods.
        config: How long, how fast and in what precision.
        run: Folder, seed and recipe.
        callbacks: What this kind of model adds.
        phases: Further objectives with optimisers of their own, such as a discriminator's.
        can_shard: Whether FSDP may shard the model: only its optimiser writes its weights, and
            losses use it by calling it. It is left sharded; the result holds a whole one.

    Raises:
        TrainingError: If a loss is not finite, ranks drift apart, or the launch is wrong.
        Interrupted: On SIGTERM or Ctrl-C, after the step at hand and a checkpoint of it.
        CheckpointError: If state cannot be written, or the folder holds a run that was not resumed.
        ConfigError: If the run to resume was a different one.
    """
    if not can_shard:
        refuse_for("this model")
    config, run = settled_run(config, run)
    first_phase = Phase(MAIN, model, lambda module, batch, _: compute_losses(module, batch))
    with (
        accelerated(config, run.output) as accelerator,
        run_locked(run.output),
        compiled(first_phase.module, config, alone=not phases),
    ):
        remark_slow_bf16(config, accelerator.device)
        shards = Shards(accelerator, model) if is_sharding(accelerator) else None
        prepared = [prepare(accelerator, config, phase) for phase in (first_phase, *phases)]
        if shards is not None:
            shards.take()
        ema = None if config.ema_decay is None else WeightEMA(model, config.ema_decay)
        hooks = callbacks or Callbacks()
        state = LoopState(accelerator, config, hooks, prepared, ema, Window(), shards)
        manifest = make_manifest(accelerator, config, run, dataset)
        first, seconds = start(state, run, manifest)
        log = RunLog(run.output / LOG, first, accelerator.is_main_process)
        start_tracker(accelerator, run, first)
        batches = read(load(accelerator, config, run, dataset, first))
        clock = Clock(seconds, manifest["samples_per_step"], first)
        checkpoint = checkpoint_folder(run.output, first)
        reporter = Reporter(config.steps, first, accelerator.is_main_process)
        with reporter, StopRequest(accelerator.device) as stop:
            stop.checkpoint = checkpoint if first else None
            for step in range(first, config.steps):
                rates = [set_learning_rate(p.optimizer.optimizer, p.config, step) for p in prepared]
                if state.callbacks.begin_step is not None:
                    state.callbacks.begin_step(step)
                for micro in range(config.gradient_accumulation):
                    number = step * config.gradient_accumulation + micro
                    batch = send_to_device(next(batches), accelerator.device, non_blocking=True)
                    with seeded(run.seed, number, accelerator.process_index):
                        train_on_batch(state, batch, step)
                done = step + 1
                reporter.advance()
                stopping = stop.agreed()
                saving = stopping or done % config.save_every == 0 or done == config.steps
                if saving or done % config.log_every == 0:
                    compared = check_ranks_agree(accelerator, model, log, done)
                    means = state.window.read(accelerator)
                    epoch = done * manifest["samples_per_step"] // len(dataset)
                    record = {"step": done, "epoch": epoch, **means, "learning_rate": rates[0]}
                    log.append(record | clock.read(done) | compared)
                    accelerator.log(log.records[-1], step=done)
                    reporter.show(log.records[-1])
                if config.sample_every and (
                    done % config.sample_every == 0 or done == config.steps
                ):
                    sample(state, run, done)
                if saving:
                    now = manifest | {"seconds": clock.seconds}
                    stop.checkpoint = checkpoint = save(state, run, done, now)
                if stopping and done < config.steps:
                    raise Interrupted(stopping, checkpoint)
        step = max(first, config.steps)
        trained = finish(state, run)
        return FitResult(step, clock.seconds, log.records, checkpoint, trained)


def start(state: LoopState, run: Run, manifest: dict[str, Any]) -> tuple[int, float]:
    """Begin or resume: return the step to go on from, and the seconds of training so far."""
    if state.shards is None:
        return begin(run, state.config, manifest, state.parts)
    parts = state.shards.parts_to_load(state.others)
    first, seconds = begin(run, state.config, manifest, parts)
    if first:
        state.shards.scatter(parts.models[MAIN])
    return first, seconds


def prepare(accelerator: Accelerator, config: TrainConfig, phase: Phase) -> PreparedPhase:
    """Move a phase's module to the device, wrap it, and give it an optimiser."""
    phase.module.to(accelerator.device).train()
    if phase.learning_rate is not None:
        config = config.model_copy(update={"learning_rate": phase.learning_rate})
    if config.gradient_checkpointing and phase.name == MAIN:
        recompute_blocks(phase.module)
    optimizer = make_optimizer(phase.module, config)
    if any(p.requires_grad for p in phase.module.parameters()):
        wrapped, prepared = accelerator.prepare(phase.module, optimizer)
    else:  # no gradients to average: DDP refuses such a module
        wrapped, prepared = phase.module, accelerator.prepare(optimizer)
    if isinstance(wrapped, nn.parallel.DistributedDataParallel):
        # Quantizers keep codebooks and statistics equal, from what all ranks have counted; to send
        # rank 0's in each step as well would only cost time.
        wrapped.broadcast_buffers = False
    return PreparedPhase(phase, wrapped, prepared, config)


def load(accelerator: Accelerator, config: TrainConfig, run: Run, dataset: Any, first: int) -> Any:
    """Return this rank's micro-batches from a step on."""
    stream = Stream(
        len(dataset),
        config.batch_size,
        run.seed,
        first * config.gradient_accumulation,
        config.steps * config.gradient_accumulation,
        accelerator.process_index,
        accelerator.num_processes,
    )
    num_workers = choose_workers(config, dataset, accelerator.device)
    pinned = accelerator.device.type == "cuda" and torch.cuda.is_available()
    return make_loader(dataset, stream, num_workers, pinned)


def train_on_batch(state: LoopState, batch: Any, step: int) -> None:
    """Take one micro-batch through every phase; on the last of a step, update the weights."""
    accelerator, window = state.accelerator, state.window
    active = active_phases(state.phases, step)
    shared = None
    with accelerator.accumulate(*(phase.wrapped for phase in active)):
        for phase in active:
            train_only(phase, state.phases)
            with accelerator.autocast():
                output = phase.given.compute_losses(phase.wrapped, batch, shared)
            shared = output.shared if phase.name == MAIN else shared
            objective = torch.stack([loss.float() for loss in output.losses.values()]).sum()
            if objective.requires_grad:  # not where a quantizer averages codes, and nothing else
                accelerator.backward(objective)
            losses = {f"{phase.prefix}loss/{name}": v for name, v in output.losses.items()}
            losses |= {f"{phase.prefix}loss": objective}
            window.add(losses, step + 1, must_be_finite=True)
            window.add({phase.prefix + name: v for name, v in output.metrics.items()}, step + 1)
            if accelerator.sync_gradients:
                update(state, phase, step)


def active_phases(phases: list[PreparedPhase], step: int) -> list[PreparedPhase]:
    """Return the phases that a step trains."""
    begun = [phase for phase in phases if step >= phase.given.first_step]
    taking_turns = [phase for phase in begun if phase.given.alternate]
    if not taking_turns:
        return begun
    return taking_turns if step % 2 else [phase for phase in begun if not phase.given.alternate]


def update(state: LoopState, phase: PreparedPhase, step: int) -> None:
    """Take one optimiser step, or none if fp16's scaled gradients overflowed."""
    accelerator, callbacks = state.accelerator, state.callbacks
    is_main = phase is state.phases[0]
    accelerator.unscale_gradients(phase.optimizer)
    if accelerator.scaler is not None and not gradients_are_finite(phase):
        skip(state, phase)
        return
    if is_main and callbacks.before_step is not None:
        state.window.add(dict(callbacks.before_step(state.model) or {}), step + 1)
    if state.config.max_grad_norm is not None:
        norm = nn.utils.clip_grad_norm_(phase.parameters, state.config.max_grad_norm)
        state.window.add({f"{phase.prefix}grad_norm": as_plain(norm)}, step + 1)
    if phase.parameters:  # a gradient scaler refuses to step without any
        phase.optimizer.step()
        phase.optimizer.zero_grad()
    if not is_main:
        return
    ema = state.ema
    if callbacks.after_step is not None:
        with nullcontext() if ema is None else ema.following_edits():
            callbacks.after_step(state.model, [p.optimizer.optimizer for p in state.phases])
    if ema is not None:
        ema.update()


def gradients_are_finite(phase: PreparedPhase) -> bool:
    """Return whether every gradient is finite: the same on all ranks, as the gradients are.

    Waits for the device, as a gradient scaler does in every step anyway.
    """
    gradients = [p.grad for p in phase.parameters if p.grad is not None]
    return bool(nn.utils.get_total_norm(gradients, math.inf).isfinite())


def skip(state: LoopState, phase: PreparedPhase) -> None:
    """Leave everything as it was before the step, except the scale of the gradients."""
    phase.optimizer.step()  # the scaler skips it and lowers the scale
    phase.optimizer.zero_grad()
    if phase is state.phases[0] and state.callbacks.skip_step is not None:
        state.callbacks.skip_step(state.model)


def train_only(phase: PreparedPhase | None, phases: list[PreparedPhase]) -> None:
    """Let only one phase's parameters take gradients (None: all); a lone phase is left alone."""
    if len(phases) > 1:
        for other in phases:
            for parameter in other.parameters:
                parameter.requires_grad_(phase is None or other is phase)


def sample(state: LoopState, run: Run, step: int) -> None:
    """Write samples from the model as it is now."""
    callback = state.callbacks.sample
    if callback is None:
        return
    whole: nn.Module | None = None
    if state.shards is not None:
        with final_weights(state):
            whole = state.shards.gather()

    def action() -> None:
        folder = run.output / "samples"
        folder.mkdir(exist_ok=True)
        if whole is not None:
            with torch.no_grad():
                callback(whole.to(state.accelerator.device).eval(), step, folder)
            return
        with final_weights(state), torch.no_grad():
            callback(state.model.eval(), step, folder)

    on_main(action)
    state.model.train()


def save(state: LoopState, run: Run, step: int, manifest: dict[str, Any]) -> Path:
    """Write a checkpoint of everything."""
    target = checkpoint_folder(run.output, step)
    keep, parts = state.config.keep_last, state.parts
    on_main(lambda: save_checkpoint(target, step, parts, manifest, keep))
    return target


def finish(state: LoopState, run: Run) -> nn.Module:
    """Save the model, whole, unwrapped, in eval mode and with its final weights; return it."""
    if state.ema is not None:
        state.ema.copy_to_model()
    train_only(None, state.phases)
    stop_recomputing(state.model)
    model = state.model
    if state.shards is not None:
        model = state.shards.gather().eval()
    else:
        for phase in state.phases:
            state.accelerator.unwrap_model(phase.wrapped, keep_fp32_wrapper=False)
            phase.module.eval()
    callback = state.callbacks.save_final
    if callback is not None:
        on_main(lambda: callback(model, run.output / "model"))
    return model


def final_weights(state: LoopState) -> Any:
    """Return a context in which the model has the weights it would be saved with."""
    return nullcontext() if state.ema is None else state.ema.applied()
