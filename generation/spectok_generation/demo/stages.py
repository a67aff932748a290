"""Progress of the demo: the current stage, and the time left in all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from spectok.messages import console


class Stages:
    """Announce and time the stages of a run, which begins when this object is created.

    Attributes:
        timings: Seconds of each finished stage.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._expected: dict[str, float] = {}
        self._names: list[str] = []
        self.timings: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._start

    def plan(self, names: list[str], expected: dict[str, float]) -> None:
        """Declare the stages, and roughly how many seconds each takes.

        Args:
            names: All stages, in order.
            expected: Seconds on a reference machine; finished stages correct for this one's pace.
        """
        self._names, self._expected = names, expected

    @contextlib.contextmanager
    def stage(self, name: str, doing: str) -> Iterator[None]:
        """Announce a stage and time it."""
        number = f"[{self._names.index(name) + 1}/{len(self._names)}]"
        console(highlight=False).print(f"\n{number} {doing}{self._left()}", markup=False)
        begin = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - begin

    def _left(self) -> str:
        """Return the time left, from the expected times and the pace so far."""
        if not all(name in self._expected for name in self._names):
            return ""
        done = sum(self._expected[name] for name in self.timings)
        pace = sum(self.timings.values()) / done if done else 1.0
        left = pace * (sum(self._expected[name] for name in self._names) - done)
        shown = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
        return f" · about {shown} left in all"
