"""Stand-ins for what depends on values, where tensors have none."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class StandIns(TorchDispatchMode):
    """Answers the few operations whose result or its shape depends on values.

    A number that is read is 1, a truth is False; counting gives the shortest result; selecting
    gives nothing. In an ordinary step the networks contain none of them: they belong to counts of
    codes, and to steps that replace codes.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or stand in for it."""
        kwargs = kwargs or {}
        stand_in = _STAND_INS.get(func)
        if stand_in is None or not any(
            isinstance(a, FakeTensor) for a in tree_leaves((args, kwargs))
        ):
            return func(*args, **kwargs)
        return stand_in(*args, **kwargs)


def _count(rows: Any, weights: Any = None, minlength: int = 0) -> Any:
    kind = torch.int64 if weights is None else weights.dtype
    return rows.new_zeros(minlength, dtype=kind)


def _read(tensor: Any) -> Any:
    if tensor.dtype == torch.bool:
        return False
    return 1.0 if tensor.is_floating_point() else 1


def _select(tensor: Any, mask: Any) -> Any:
    return tensor.new_zeros(0)


def _places(tensor: Any) -> Any:
    return tensor.new_zeros(0, tensor.ndim, dtype=torch.int64)


_STAND_INS = {
    aten._local_scalar_dense.default: _read,
    aten.bincount.default: _count,
    aten.equal.default: lambda *_: True,
    aten.exponential_.default: lambda tensor, *_, **__: tensor,  # refuses a generator
    aten.is_nonzero.default: lambda _: False,
    aten.masked_select.default: _select,
    aten.nonzero.default: _places,
}
