"""What a training needs, on paper: memory per GPU, operations, time and disk.

The names below load on first use, so ``import spectok.planning`` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok.lazy import lazy_exports

if TYPE_CHECKING:
    from spectok.planning.measuring import StepCost, Subject, measure_step
    from spectok.planning.plan import Hardware, Row, Stored, make_plan
    from spectok.planning.subjects import tokenizer_subject

_HOME = {
    "Hardware": "spectok.planning.plan",
    "Row": "spectok.planning.plan",
    "StepCost": "spectok.planning.measuring",
    "Stored": "spectok.planning.plan",
    "Subject": "spectok.planning.measuring",
    "make_plan": "spectok.planning.plan",
    "measure_step": "spectok.planning.measuring",
    "tokenizer_subject": "spectok.planning.subjects",
}

__all__ = [
    "Hardware",
    "Row",
    "StepCost",
    "Stored",
    "Subject",
    "make_plan",
    "measure_step",
    "tokenizer_subject",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
