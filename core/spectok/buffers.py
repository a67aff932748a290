"""Buffers that are not saved, such as positions and frequencies, after a model was loaded."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights


def recompute_buffers(model: Any) -> None:
    """Fill buffers that are not saved with what the constructor computes in float32.

    Loading in half precision runs the constructor in that precision, where positions and
    frequencies may come out as others than those that the model was trained with.

    Args:
        model: A :class:`spectok.modeling.SpectokModel` that was loaded.
    """
    saved = model.state_dict().keys()
    with init_empty_weights(), torch.random.fork_rng(devices=[]):
        computed: Any = type(model).from_config(dict(model.config))
    mine = dict(model.named_buffers())
    for name, buffer in computed.named_buffers():
        if name not in saved:
            mine[name].copy_(buffer)
