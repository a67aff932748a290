"""The ``train:`` section of every recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from spectok.recipes.schema import Section

Count = Annotated[int, Field(le=1_000_000_000)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
MOST_WORKERS = 1_000


def _check_workers(value: Any) -> Any:
    """Return a number of workers, or say in one line what it may be."""
    number = isinstance(value, int) and not isinstance(value, bool)
    if value != "auto" and not (number and 0 <= value <= MOST_WORKERS):
        raise ValueError(f"Input should be 'auto' or a whole number from 0 to {MOST_WORKERS:,}")
    return value


INCIDENTAL = (
    "log_every",
    "save_every",
    "sample_every",
    "keep_last",
    "num_workers",
    "tracker",
    "timeout_minutes",
    "reschedule",
)
"""Settings that do not change what is learned."""
ROUNDING = ("tf32", "deterministic", "compile")
"""Settings that change only how numbers are rounded."""
SPLITTING = ("batch_size", "gradient_accumulation", "gradient_checkpointing")
"""Settings that change how a step is cut up to fit into memory."""
FREE_TO_CHANGE = ("steps", *SPLITTING, *ROUNDING, *INCIDENTAL)
"""Settings that a resumed run may change; any other would make it a different run. The product of
batch size, accumulation and number of processes must not change."""


class TrainConfig(Section):
    """How long, how fast and in what precision to train.

    Args:
        steps: Optimiser steps.
        batch_size: Samples per process and micro-batch. The global batch is ``batch_size`` times
            the number of processes times ``gradient_accumulation``.
        gradient_accumulation: Micro-batches per optimiser step. Every step takes that many:
            epochs follow one another without a gap.
        gradient_checkpointing: Keep only the inputs of each block, and compute the block again in
            the backward pass: less memory, about a third more work, the same losses. For priors.
        optimizer: ``adam``, or ``adamw`` with decoupled weight decay.
        learning_rate: Peak learning rate.
        betas: Decay of the optimiser's first and second moments.
        weight_decay: Weight decay, on parameters of two or more dimensions, quantizers excepted.
        lr_schedule: After the warm-up: ``constant``, or down to zero at ``steps`` as ``linear`` or
            ``cosine``.
        warmup_steps: Steps over which the learning rate rises linearly from zero.
        max_grad_norm: Clip the gradient to this norm. None: no clipping.
        mixed_precision: Autocast type. Quantizers always run in float32. ``auto``: ``bf16`` if this
            GPU or this processor computes it, ``no`` otherwise; a run that is resumed keeps what it
            began with, here as elsewhere.
        compile: Run the model's forward and backward pass through ``torch.compile``, quantizers
            excepted: faster on a GPU once it is compiled, the same losses up to rounding. For
            tokenizers, priors and whatever else is trained; needs a C++ compiler. A discriminator
            is not compiled. Not with ``gradient_checkpointing`` or FSDP.
        tf32: Let CUDA multiply float32 matrices in TF32, which keeps 10 bits of each factor and is
            several times as fast; torch's convolutions do so by default. Quantizers never do.
        deterministic: Let CUDA use only kernels that give the same result each time; slower.
            Operations that have none end the run. On a CPU all are.
        ema_decay: Keep an exponential moving average of the weights, and save that as the final
            model. None: save the weights themselves.
        log_every: Steps between lines of the log; each line holds the means since the one before.
        save_every: Steps between checkpoints. One is always written at the end.
        sample_every: Steps between sample images. None: none.
        keep_last: Checkpoints to keep.
        num_workers: Worker processes that load data, for each process that trains. 0: load in the
            training process. ``auto``: 0 on a CPU, and for data in memory; otherwise one less than
            the cores of the process, at most 8. Nothing that is learned depends on it.
        tracker: Where curves go besides ``log.jsonl``; needs the extra of its name. None: nowhere.
        timeout_minutes: Time after which a process that does not answer stops the others.
        reschedule: Consent to a learning rate that jumps where a run is resumed with another
            number of ``steps``; not kept with the run.
    """

    steps: Count = Field(10_000, ge=1)
    batch_size: Count = Field(64, ge=1)
    gradient_accumulation: Count = Field(1, ge=1)
    gradient_checkpointing: bool = False
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = Field(3e-4, gt=0, le=1_000)
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.99), strict=False)
    weight_decay: float = Field(0.0, ge=0, le=1_000)
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Count = Field(0, ge=0)
    max_grad_norm: float | None = Field(None, gt=0)
    mixed_precision: Literal["no", "auto", "bf16", "fp16"] = "no"
    compile: bool = False
    tf32: bool = True
    deterministic: bool = False
    ema_decay: Fraction | None = None
    log_every: Count = Field(50, ge=1)
    save_every: Count = Field(1_000, ge=1)
    sample_every: Count | None = Field(1_000, ge=1)
    keep_last: Count = Field(2, ge=1)
    num_workers: Annotated[int | Literal["auto"], BeforeValidator(_check_workers)] = "auto"
    tracker: Literal["tensorboard", "wandb"] | None = None
    timeout_minutes: float = Field(30, gt=0, le=100_000)
    reschedule: bool = False
