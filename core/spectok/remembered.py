"""Properties that are computed once, and that a graph may read which ``torch.compile`` traces."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    remembered = functools.cached_property
else:

    class remembered(functools.cached_property):
        """A ``functools.cached_property`` without the lock that it takes on Python 3.11.

        ``torch.compile(fullgraph=True)`` and ``torch.export`` cannot enter a lock. Threads may
        therefore compute a value twice, which has to be the same each time. While a graph is
        traced nothing is kept: a graph does not change the objects that it reads.
        """

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            value = self.func(instance)
            if not torch.compiler.is_compiling():
                instance.__dict__[self.attrname] = value
            return value
