"""The machine that a measurement ran on, and the memory that it used."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
PACKAGES = ("spectok", "torch", "diffusers", "transformers", "accelerate", "datasets", "numpy")


def describe_machine() -> dict[str, Any]:
    """Return processor, cores and versions, in plain JSON types."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "system": platform.platform(terse=True),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
    }


def usable_cores() -> int:
    """Return how many cores this process may use, by its affinity and the quota of its container.

    A quota of a part of a core counts as one.
    """
    allowed = getattr(os, "sched_getaffinity", None)
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or no quota: "max"
        return cores


def processor_name() -> str:
    """Return the processor's name, as precisely as the system reports it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes() -> int | None:
    """Return the most memory this process has held; None if the system does not report it.

    See :func:`forget_peak_memory`.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak_memory() -> bool:
    """Reset :func:`peak_memory_bytes` to the memory held now; return whether that worked."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def shown_path(path: Path) -> str:
    """Return a path as messages and results show it, with ``~`` for the home directory."""
    home = Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)
