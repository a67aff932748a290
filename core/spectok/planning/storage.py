"""Bytes that tensors hold: live and at most, counted as operations make and drop them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class StorageWatch(TorchDispatchMode):
    """Counts the storage of every tensor that an operation returns, for as long as it lives.

    A storage counts once, however many tensors share it. Works on tensors without values as on
    real ones. What a kernel allocates and frees inside itself is not seen.

    Attributes:
        live: Bytes held now.
        peak: The most held since the start, or since :meth:`restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._held: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it returns."""
        result = func(*args, **(kwargs or {}))
        self.add(tree_leaves(result))
        return result

    def add(self, tensors: Iterable[Any]) -> None:
        """Count tensors that are there already."""
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self._add(tensor.untyped_storage())

    def restart(self) -> None:
        """Measure the peak from now on."""
        self.peak = self.live

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return

        def forget(_: Any) -> None:
            self.live -= size
            del self._held[key]

        self._held[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)


def storage_bytes(tensors: Iterable[Any]) -> int:
    """Return the bytes of the distinct storages of tensors; anything else counts nothing."""
    found = [t.untyped_storage() for t in tensors if isinstance(t, Tensor)]
    return sum({storage._cdata: storage.nbytes() for storage in found}.values())
