"""Packages whose public names load on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def lazy_exports(
    package: str, homes: Mapping[str, str], also: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package that imports nothing until it is used.

    >>> __getattr__, __dir__ = lazy_exports(__name__, {"fit": "spectok.training.loop"})

    Args:
        package: Name of the package.
        homes: Public name -> the module that defines it.
        also: Further public names, which the package defines itself.
    """
    names = sorted({*homes, *also})

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return find, lambda: list(names)
