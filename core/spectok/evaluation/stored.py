"""Checks of a model's numbers as they are stored: not finite, too small, or rounded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from spectok.evaluation.diagnosis import Finding
from spectok.weights import find_weights

HALVES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
SUBNORMAL_SHARE = 0.001  # of a tensor's numbers
DISTINCT = 32  # values below which a tensor may be representable in half precision by chance
SAMPLE = 1 << 16  # numbers of a tensor that are looked at for rounding
QUANTIZER = "quantizer"


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a saved model, in the types that they are stored in.

    Raises:
        CheckpointError: If the files are missing.
    """
    tensors: dict[str, Tensor] = {}
    for path in find_weights(folder):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def check_finite(tensors: Mapping[str, Tensor]) -> list[Finding]:
    """Find numbers that are NaN or infinite, one finding per tensor."""
    found = []
    for name, tensor in _floats(tensors).items():
        nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        if nan or infinite:
            found.append(
                Finding(
                    "not finite",
                    "error",
                    name,
                    f"{nan:,} of its {tensor.numel():,} numbers are NaN and {infinite:,} infinite; "
                    f"the model cannot be loaded",
                    "take an earlier checkpoint of the run; if training made them, lower "
                    "train.learning_rate or set train.max_grad_norm=1.0",
                    {"nan": nan, "infinite": infinite, "numbers": tensor.numel()},
                )
            )
    return found


def check_subnormal(tensors: Mapping[str, Tensor]) -> list[Finding]:
    """Find tensors with numbers too small for float32's full precision."""
    found = []
    for name, tensor in _floats(tensors).items():
        size = tensor.float().abs()
        share = float(((size > 0) & (size < SMALLEST_NORMAL)).double().mean())
        if share >= SUBNORMAL_SHARE:
            found.append(
                Finding(
                    "subnormal",
                    "warning",
                    name,
                    f"{100 * share:.1f} % of its numbers are below {SMALLEST_NORMAL:.2g}, where "
                    f"float32 loses precision and processors lose speed",
                    "weights that vanish are trained too long without use: lower "
                    "train.weight_decay, or use a quantizer that revives unused codes",
                    {"share": share},
                )
            )
    return found


def check_rounding(tensors: Mapping[str, Tensor], measured: bool = False) -> list[Finding]:
    """Find weights that are stored in half precision, or were rounded to it before.

    Trained float32 weights are practically never all representable in half precision. Tensors of
    integers, and of few distinct values such as ones, say nothing.

    Args:
        tensors: Name -> stored tensor.
        measured: Whether the model's card has numbers of these weights, rounded as they are, so
            that nobody is told those of others.
    """
    by_kind: dict[tuple[str, bool], list[str]] = {}
    for name, tensor in _floats(tensors).items():
        kind = HALVES.get(tensor.dtype) or rounded_to(tensor)
        if kind is not None:
            by_kind.setdefault((kind, QUANTIZER in name), []).append(name)
    found = []
    for (kind, of_quantizer), names in by_kind.items():
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        what = "codes and their statistics" if of_quantizer else "weights"
        bits = 8 if kind == "bfloat16" else 11
        effect = "nearest codes differ" if of_quantizer else "reconstructions differ"
        known = "; the numbers of its card are of the rounded weights" if measured else ""
        found.append(
            Finding(
                "half precision",
                "note" if measured else "warning",
                shown,
                f"{len(names):,} tensors of {what} are rounded to {kind}, {bits} significant bits: "
                f"{effect} from those that were trained{known}",
                "save the model as it was trained, in float32; train.mixed_precision=bf16 keeps "
                "float32 weights, and torch_dtype= converts when loading",
                {"tensors": len(names)},
            )
        )
    return found


def rounded_to(tensor: Tensor) -> str | None:
    """Return the half precision that all numbers of a tensor are representable in, if any."""
    sample = tensor.detach().flatten()[:SAMPLE].float()
    if len(sample.unique()) < DISTINCT or bool((sample == sample.round()).all()):
        return None
    for half, name in HALVES.items():
        if torch.equal(sample.to(half).float(), sample):
            return name
    return None


def _floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if t.is_floating_point() and t.numel()}
