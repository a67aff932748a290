"""What a person sees while training runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import datetime
import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spectok.messages import console

USAGE_ALARM = 0.1
NOT_SHOWN = ("step", "epoch", "seconds", "images_per_second")


class Clock:
    """Measures training time over all resumptions, and the pace between lines of the log.

    Args:
        seconds_before: Time of the earlier parts of this run.
        samples_per_step: Samples of all ranks per optimiser step.
        step: The step it starts at.
    """

    def __init__(self, seconds_before: float, samples_per_step: int, step: int):
        self.samples_per_step, self._last_step = samples_per_step, step
        self._last = time.perf_counter()
        self._start = self._last - seconds_before

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return time.perf_counter() - self._start

    def read(self, step: int) -> dict[str, float]:
        """Return the time so far and the pace since the last call."""
        now = time.perf_counter()
        samples = (step - self._last_step) * self.samples_per_step
        pace = samples / max(1e-9, now - self._last)
        self._last, self._last_step = now, step
        return {"seconds": now - self._start, "images_per_second": pace}


class Reporter:
    """Reports on the main process; silent on the others.

    Args:
        steps: Number of the last step.
        step: Steps taken so far.
        enabled: Whether this is the main process.
    """

    def __init__(self, steps: int, step: int, enabled: bool):
        self.console = console(highlight=False, soft_wrap=True)
        self.console.quiet |= not enabled
        self.steps = steps
        self._low_usage_lines = 0
        self._bar = Progress(
            TextColumn("step"),
            BarColumn(None),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} images/s"),
            TimeRemainingColumn(),
            console=self.console,
            disable=self.console.quiet or not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=step, rate="–", loss="–")

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """Count one step."""
        self._bar.advance(self._task)

    def show(self, record: dict[str, float]) -> None:
        """Show one line of the log, and warn once if codebook usage stays low."""
        summary = "  ".join(
            f"{name} {value:.4g}"
            for name, value in record.items()
            if name not in NOT_SHOWN and "/" not in name
        )
        rate = record["images_per_second"]
        if self._bar.disable:
            step = int(record["step"])
            left = (self.steps - step) * record["seconds"] / max(1, step)
            self.say(
                f"step {step}/{self.steps}  {summary}  {rate:.0f} images/s, "
                f"{datetime.timedelta(seconds=round(left))} left"
            )
        else:
            loss = f"{record['loss']:.4g}" if "loss" in record else "–"
            self._bar.update(self._task, rate=f"{rate:.0f}", loss=loss)
        self._watch_usage(record)

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self.console.print(text, markup=False)

    def _watch_usage(self, record: dict[str, float]) -> None:
        low = record.get("codebook_usage", 1.0) < USAGE_ALARM
        self._low_usage_lines = self._low_usage_lines + 1 if low else 0
        if self._low_usage_lines == 2:
            self.say(
                f"warning: only {100 * record['codebook_usage']:.1f} % of the codebook is in use "
                f"at step {int(record['step'])}; choose a smaller codebook_size, a lower "
                f"learning_rate, or a quantizer that revives unused codes "
                f"(spectok list quantizers)"
            )
