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

from spectok.training.batches import Stream, make_loader, read, seeded
from spectok.training.checkpoint import Parts, save_checkpoint
from spectok.training.checks import check_ranks_agree
from spectok.training.config import TrainConfig
from spectok.training.contracts import FitResult, Hooks, Phase, Run, StepOutput
from spectok.training.ema import WeightEMA
from spectok.training.launch import accelerated, on_main
from spectok.training.log import RunLog, start_tracker
from spectok.training.optimizer import make_optimizer, set_learning_rate
from spectok.training.progress import Clock, Reporter
from spectok.training.resume import begin, checkpoint_folder, make_manifest
from spectok.training.window import Window

MAIN = "model"


@dataclass
class Stage:
    """A phase that is ready to train."""

    phase: Phase
    wrapped: nn.Module
    optimizer: Any
    config: TrainConfig

    @property
    def name(self) -> str:
        """The phase's name."""
        return self.phase.name

    @property
    def module(self) -> nn.Module:
        """What is trained, unwrapped."""
        return self.phase.module

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser trains."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def prefix(self) -> str:
        """What the phase's names in the log begin with."""
        return "" if self.name == MAIN else f"{self.name}/"


@dataclass
class Session:
    """Everything that the steps of one run share."""

    accelerator: Accelerator
    config: TrainConfig
    hooks: Hooks
    stages: list[Stage]
    ema: WeightEMA | None
    window: Window

    @property
    def model(self) -> nn.Module:
        """The model itself, unwrapped."""
        return self.stages[0].module

    @property
    def parts(self) -> Parts:
        """What a checkpoint holds."""
        others: dict[str, Any] = {f"{s.name}.optimizer": s.optimizer.optimizer for s in self.stages}
        others |= {} if self.ema is None else {"ema": self.ema}
        scaler = self.accelerator.scaler
        others |= {} if scaler is None else {"scaler": scaler}
        return Parts({stage.name: stage.module for stage in self.stages}, others)


def fit(
    model: nn.Module,
    dataset: Any,
    compute_losses: Callable[[nn.Module, Any], StepOutput],
    config: TrainConfig,
    run: Run,
    *,
    hooks: Hooks | None = None,
    phases: Sequence[Phase] = (),
) -> FitResult:
    """Train a model, and keep everything that belongs to the run in its folder.

    Works alike in one process and under ``accelerate launch`` or ``torchrun``. The folder gets
    ``recipe.yaml``, ``log.jsonl`` and ``checkpoints/``, and from the hooks ``samples/`` and
    ``model/``.

    Args:
        model: The model; moved to the device and trained in place.
        dataset: Map-style data set. ``set_epoch`` and ``collate`` are used where it has them.
        compute_losses: ``(model, batch) -> StepOutput``. The model it gets may be wrapped for data
            parallelism: call it, and use none of its methods.
        config: How long, how fast and how exactly.
        run: Folder, seed and recipe.
        hooks: What this kind of model adds.
        phases: Further objectives with optimisers of their own, such as a discriminator's.

    Raises:
        TrainingError: If a loss is not finite, ranks drift apart, or the launch is wrong.
        CheckpointError: If state cannot be written, or the folder holds a run that was not resumed.
        ConfigError: If the run to resume was another one.
    """
    first_phase = Phase(MAIN, model, lambda module, batch, _: compute_losses(module, batch))
    with accelerated(config, run.output) as accelerator:
        stages = [prepare(accelerator, config, phase) for phase in (first_phase, *phases)]
        ema = None if config.ema_decay is None else WeightEMA(model, config.ema_decay)
        session = Session(accelerator, config, hooks or Hooks(), stages, ema, Window())
        manifest = make_manifest(accelerator, config, run, dataset)
        first, seconds = begin(accelerator, run, manifest, session.parts)
        log = RunLog(run.output / "log.jsonl", first, accelerator.is_main_process)
        start_tracker(accelerator, run, first)
        batches = read(load(accelerator, config, run, dataset, first))
        clock = Clock(seconds, manifest["samples_per_step"], first)
        checkpoint = checkpoint_folder(run.output, first)
        with Reporter(config.steps, first, accelerator.is_main_process) as reporter:
            for step in range(first, config.steps):
                rates = [set_learning_rate(s.optimizer.optimizer, s.config, step) for s in stages]
                if session.hooks.begin_step is not None:
                    session.hooks.begin_step(step)
                for micro in range(config.gradient_accumulation):
                    number = step * config.gradient_accumulation + micro
                    batch = send_to_device(next(batches), accelerator.device, non_blocking=True)
                    with seeded(run.seed, number, accelerator.process_index):
                        train_on_batch(session, batch, step)
                done = step + 1
                reporter.advance()
                saving = done % config.save_every == 0 or done == config.steps
                if saving or done % config.log_every == 0:
                    check_ranks_agree(accelerator, model)
                    means = session.window.read(accelerator)
                    epoch = done * manifest["samples_per_step"] // len(dataset)
                    record = {"step": done, "epoch": epoch, **means, "learning_rate": rates[0]}
                    log.append(record | clock.read(done))
                    accelerator.log(log.records[-1], step=done)
                    reporter.show(log.records[-1])
                if config.sample_every and (
                    done % config.sample_every == 0 or done == config.steps
                ):
                    sample(session, run, done)
                if saving:
                    now = manifest | {"seconds": clock.seconds}
                    checkpoint = save(session, run, done, now)
        step = max(first, config.steps)
        finish(session, run)
        return FitResult(step, clock.seconds, log.records, checkpoint, model)


def prepare(accelerator: Accelerator, config: TrainConfig, phase: Phase) -> Stage:
    """Move a phase's module to the device, wrap it, and give it an optimiser."""
    phase.module.to(accelerator.device).train()
    if phase.learning_rate is not None:
        config = config.model_copy(update={"learning_rate": phase.learning_rate})
    optimizer = make_optimizer(phase.module, config)
    wrapped, prepared = accelerator.prepare(phase.module, optimizer)
    return Stage(phase, wrapped, prepared, config)


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
    return make_loader(dataset, stream, config.num_workers)


def train_on_batch(session: Session, batch: Any, step: int) -> None:
    """Take one micro-batch through every phase; on the last of a step, update the weights."""
    accelerator, window = session.accelerator, session.window
    active = active_stages(session.stages, step)
    shared = None
    with accelerator.accumulate(*(stage.wrapped for stage in active)):
        for stage in active:
            train_only(stage, session.stages)
            with accelerator.autocast():
                output = stage.phase.compute_losses(stage.wrapped, batch, shared)
            shared = output.shared if stage.name == MAIN else shared
            objective = torch.stack([loss.float() for loss in output.losses.values()]).sum()
            accelerator.backward(objective)
            losses = {f"{stage.prefix}loss/{name}": v for name, v in output.losses.items()}
            losses |= {f"{stage.prefix}loss": objective}
            window.add(losses, step + 1, must_be_finite=True)
            window.add({stage.prefix + name: v for name, v in output.metrics.items()}, step + 1)
            if accelerator.sync_gradients:
                update(session, stage, step)


def active_stages(stages: list[Stage], step: int) -> list[Stage]:
    """Return the stages that a step trains."""
    begun = [stage for stage in stages if step >= stage.phase.first_step]
    taking_turns = [stage for stage in begun if stage.phase.alternate]
    if not taking_turns:
        return begun
    return taking_turns if step % 2 else [stage for stage in begun if not stage.phase.alternate]


def update(session: Session, stage: Stage, step: int) -> None:
    """Take one optimiser step, or none if fp16's scaled gradients overflowed."""
    accelerator, hooks = session.accelerator, session.hooks
    is_main = stage is session.stages[0]
    accelerator.unscale_gradients(stage.optimizer)
    if accelerator.scaler is not None and not gradients_are_finite(stage):
        skip(session, stage)
        return
    if is_main and hooks.before_step is not None:
        session.window.add(dict(hooks.before_step(session.model) or {}), step + 1)
    if session.config.max_grad_norm is not None:
        norm = nn.utils.clip_grad_norm_(stage.parameters, session.config.max_grad_norm)
        session.window.add({f"{stage.prefix}grad_norm": norm}, step + 1)
    stage.optimizer.step()
    stage.optimizer.zero_grad()
    if not is_main:
        return
    ema = session.ema
    if hooks.after_step is not None:
        with nullcontext() if ema is None else ema.following_edits():
            hooks.after_step(session.model, [s.optimizer.optimizer for s in session.stages])
    if ema is not None:
        ema.update()


def gradients_are_finite(stage: Stage) -> bool:
    """Return whether every gradient is finite: alike on all ranks, which hold the same gradients.

    Waits for the device, as a gradient scaler does in every step anyway.
    """
    gradients = [p.grad for p in stage.parameters if p.grad is not None]
    return bool(nn.utils.get_total_norm(gradients, math.inf).isfinite())


def skip(session: Session, stage: Stage) -> None:
    """Leave everything as it was before the step, but for the scale of the gradients."""
    stage.optimizer.step()  # the scaler sees that it must not, and lowers the scale
    stage.optimizer.zero_grad()
    if stage is session.stages[0] and session.hooks.skip_step is not None:
        session.hooks.skip_step(session.model)


def train_only(stage: Stage | None, stages: list[Stage]) -> None:
    """Let only one phase's parameters take gradients (None: all); leave a lone phase as it is."""
    if len(stages) > 1:
        for other in stages:
            for parameter in other.parameters:
                parameter.requires_grad_(stage is None or other is stage)


def sample(session: Session, run: Run, step: int) -> None:
    """Let the model show what it can do by now."""
    hook = session.hooks.sample
    if hook is None:
        return

    def action() -> None:
        folder = run.output / "samples"
        folder.mkdir(exist_ok=True)
        with final_weights(session), torch.no_grad():
            hook(session.model.eval(), step, folder)

    on_main(session.accelerator, action)
    session.model.train()


def save(session: Session, run: Run, step: int, manifest: dict[str, Any]) -> Path:
    """Write a checkpoint of everything."""
    target = checkpoint_folder(run.output, step)
    keep = session.config.keep_last
    on_main(
        session.accelerator, lambda: save_checkpoint(target, step, session.parts, manifest, keep)
    )
    return target


def finish(session: Session, run: Run) -> None:
    """Leave the model with its final weights, in eval mode, free of wrappers; save it."""
    if session.ema is not None:
        session.ema.copy_to_model()
    train_only(None, session.stages)
    for stage in session.stages:
        session.accelerator.unwrap_model(stage.wrapped, keep_fp32_wrapper=False)
        stage.module.eval()
    hook = session.hooks.save_final
    if hook is not None:
        on_main(session.accelerator, lambda: hook(session.model, run.output / "model"))


def final_weights(session: Session) -> Any:
    """Return a context in which the model has the weights it would be saved with."""
    return nullcontext() if session.ema is None else session.ema.applied()
