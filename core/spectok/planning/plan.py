"""A training on paper: memory per GPU, time and disk, each with the formula it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spectok.errors import ConfigError

if TYPE_CHECKING:
    from spectok.planning.measuring import StepCost
    from spectok.training.train_config import TrainConfig

PEAK_TFLOPS = {"bf16": 312.0, "fp16": 312.0, "tf32": 156.0, "float32": 19.5}
"""Dense peak of an NVIDIA A100 by the type it multiplies in, as its data sheet states."""
UTILISATION = 0.35
"""Fraction of the peak that a training is taken to reach unless the caller says otherwise."""


@dataclass(frozen=True)
class Hardware:
    """What a training is to run on.

    Args:
        gpus: Processes, one per GPU.
        tflops: Peak of one GPU in 10¹² operations per second. None: :data:`PEAK_TFLOPS`.
        utilisation: Fraction of the peak that is reached, in (0, 1].
        fsdp: Whether the model is sharded over the GPUs.

    Raises:
        ConfigError: If a number is out of range.
    """

    gpus: int = 1
    tflops: float | None = None
    utilisation: float = UTILISATION
    fsdp: bool = False

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ConfigError(f"--gpus: {self.gpus} is not a number of GPUs; give 1 or more")
        if self.tflops is not None and not (math.isfinite(self.tflops) and self.tflops > 0):
            raise ConfigError(f"--tflops: {self.tflops} is not a speed; give one above 0")
        if not 0 < self.utilisation <= 1:
            raise ConfigError(f"--utilisation: {self.utilisation} is outside (0, 1]")


@dataclass(frozen=True)
class Row:
    """One number of a plan.

    Args:
        group: ``model``, ``memory per GPU``, ``time`` or ``disk``.
        name: What it is.
        value: The number, in ``unit``.
        unit: ``bytes``, ``s``, ``h``, ``FLOP``, or what is counted.
        formula: Where it comes from.
    """

    group: str
    name: str
    value: float
    unit: str
    formula: str


@dataclass(frozen=True)
class Stored:
    """What lies on disk for each image of the training data.

    Args:
        pixels: Bytes of its pixels, uncompressed.
        token_bytes: Bytes of its row in a token cache; 0 for a training without one.
        tokens: Tokens of an image; 0 where none are trained on.
    """

    pixels: int = 0
    token_bytes: int = 0
    tokens: int = 0


def make_plan(
    cost: StepCost,
    config: TrainConfig,
    hardware: Hardware,
    stored: Stored,
    images: int | None = None,
) -> list[Row]:
    """Return what a training needs.

    Args:
        cost: One step on one process; see :func:`spectok.planning.measure_step`.
        config: How it is trained.
        hardware: What it runs on.
        stored: What lies on disk for each image.
        images: Number of training images. None: sizes on disk are left out.
    """
    rows = [
        Row("model", "parameters", cost.parameters, "", "numbers that an optimiser trains"),
        *_memory(cost, config, hardware),
        *_time(cost, config, hardware, stored),
        *_disk(cost, config, stored, images),
    ]
    return rows


def precision_of(config: TrainConfig) -> str:
    """Return the precision that is planned for; ``auto`` is bf16, which the GPUs here compute."""
    return "bf16" if config.mixed_precision == "auto" else config.mixed_precision


def memory_per_gpu(cost: StepCost, hardware: Hardware) -> int:
    """Return the bytes at the peak of a step on one GPU."""
    return int(sum(row.value for row in _parts(cost, hardware)))


def _parts(cost: StepCost, hardware: Hardware) -> list[Row]:
    shards = hardware.gpus if hardware.fsdp else 1
    over = f" / {shards} GPUs" if shards > 1 else ""
    group = "memory per GPU"

    def share(name: str, value: int, formula: str) -> Row:
        return Row(group, name, math.ceil(value / shards), "bytes", formula + over)

    def whole(name: str, value: int, formula: str) -> Row:
        return Row(group, name, value, "bytes", formula)

    parts = [
        share("weights", cost.weights, "4 bytes × parameters, buffers apart"),
        share("gradients", cost.gradients, "4 bytes × parameters that have one"),
        share("optimiser", cost.optimizer, "Adam: two moments, 8 bytes × parameters"),
        share("weight average", cost.ema, "4 bytes × parameters with train.ema_decay"),
        whole("codebook statistics", cost.statistics, "buffers of quantizers"),
        whole("other buffers", cost.buffers, "constants of the model"),
        whole("frozen models", cost.frozen, "tokenizer, text encoder or LPIPS, beside the model"),
        whole(
            "activations",
            cost.activations,
            "peak of one step run without values, less all of the above",
        ),
    ]
    if shards > 1:
        gathered = 2 * cost.unit + cost.rest
        parts += [
            whole("gathered weights", gathered, "2 × the largest block (one ahead) + all outside"),
            whole("unreduced gradients", cost.unit + cost.rest, "the largest block + all outside"),
        ]
    elif hardware.gpus > 1:
        parts.append(
            whole("buckets of gradients", cost.gradients, "data parallelism sends copies of them")
        )
    return parts


def _memory(cost: StepCost, config: TrainConfig, hardware: Hardware) -> list[Row]:
    parts = [row for row in _parts(cost, hardware) if row.value]
    text = f"sum of the above, at train.batch_size={config.batch_size}"
    kind = precision_of(config)
    text += f" in {kind}" if kind != "no" else " in float32"
    if config.gradient_checkpointing:
        text += " with train.gradient_checkpointing"
    total = Row("memory per GPU", "total", memory_per_gpu(cost, hardware), "bytes", text)
    return [*parts, total]


def _time(cost: StepCost, config: TrainConfig, hardware: Hardware, stored: Stored) -> list[Row]:
    kind = precision_of(config)
    if kind == "no":
        kind = "tf32" if config.tf32 else "float32"
    speed = hardware.tflops or PEAK_TFLOPS[kind]
    where = "--tflops" if hardware.tflops else f"A100 in {kind}"
    seconds = cost.flops / (speed * 1e12 * hardware.utilisation)
    samples = cost.samples * hardware.gpus
    factors = f"{config.batch_size} × {config.gradient_accumulation} × {hardware.gpus} GPUs"
    hours = seconds * config.steps / 3600
    rows = [
        Row("time", "images per step", samples, "", f"batch size × accumulation × GPUs: {factors}"),
        Row(
            "time",
            "operations per step and GPU",
            cost.flops,
            "FLOP",
            "2 per multiply-add of all products, forward and backward; no FFTs",
        ),
        Row(
            "time",
            "seconds per step",
            seconds,
            "s",
            f"operations / ({speed:g} TFLOP/s ({where}) × utilisation {hardware.utilisation:g})",
        ),
        Row(
            "time",
            "images per second",
            samples / seconds if seconds else 0,
            "/s",
            "images per step / seconds per step",
        ),
    ]
    if stored.tokens:
        tokens = stored.tokens * samples / seconds if seconds else 0
        formula = f"images per second × {stored.tokens} tokens"
        rows.append(Row("time", "tokens per second", tokens, "/s", formula))
    formula = f"seconds per step × train.steps={config.steps:,} / 3600"
    rows.append(Row("time", "hours", hours, "h", formula))
    rows.append(Row("time", "GPU hours", hours * hardware.gpus, "h", "hours × GPUs"))
    return rows


def _disk(cost: StepCost, config: TrainConfig, stored: Stored, images: int | None) -> list[Row]:
    checkpoint = cost.weights + cost.statistics + cost.buffers + cost.optimizer + cost.ema
    formula = "weights + buffers + moments + weight average, whole also with FSDP"
    kept = f"checkpoint × (train.keep_last={config.keep_last} + the one being written)"
    rows = [
        Row("disk", "checkpoint", checkpoint, "bytes", formula),
        Row("disk", "checkpoints", checkpoint * (config.keep_last + 1), "bytes", kept),
    ]
    if images is not None and stored.token_bytes:
        formula = f"{images:,} rows × {stored.token_bytes} bytes (ceil(tokens × bits / 8))"
        rows.append(Row("disk", "token cache", images * stored.token_bytes, "bytes", formula))
    if images is not None and stored.pixels:
        formula = f"{images:,} images × {stored.pixels:,} bytes of pixels; JPEG takes about a tenth"
        rows.append(Row("disk", "images in shards", images * stored.pixels, "bytes", formula))
    return rows


def shown(value: float, unit: str) -> str:
    """Return a number for people: bytes in binary units, others with their digits grouped."""
    if unit == "bytes":
        for size, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if value >= size:
                return f"{value / size:,.2f} {name}"
        return f"{value:,.0f} bytes"
    if unit == "FLOP":
        for size, name in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
            if value >= size:
                return f"{value / size:,.2f} {name}"
    number = f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"
    return f"{number} {unit}".strip() if not unit.startswith("/") else f"{number} {unit}"


def to_dict(rows: Sequence[Row]) -> dict[str, Any]:
    """Return a plan in plain JSON types: group -> name -> value, unit and formula."""
    found: dict[str, Any] = {}
    for row in rows:
        entry = {"value": row.value, "unit": row.unit, "formula": row.formula}
        found.setdefault(row.group, {})[row.name] = entry
    return found
