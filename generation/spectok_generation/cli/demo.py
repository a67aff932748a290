"""``spectok demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectok.cli.console import say_next
from spectok.messages import say


def add_commands(app: typer.Typer) -> None:
    """Add ``spectok demo``."""
    app.command("demo")(demo)


def demo(
    out: Annotated[
        Path,
        typer.Option(help="Folder of the demo; one that was stopped goes on, others are replaced."),
    ] = (Path("spectok-demo")),
    recipe: Annotated[
        str, typer.Option(help="What to train and draw: a recipe or a file like demo/demo.")
    ] = "demo/demo",
) -> None:
    """Train tokenizers and a prior on real digits, draw new digits, and write a report.

    Takes a few minutes on two CPU cores and needs no network.
    """
    from spectok_generation.demo.stages import Stages

    stages = Stages()  # the clock starts here: importing torch is part of the demo
    from spectok_generation.demo.demo_recipe import load_plan
    from spectok_generation.demo.pipeline import run_demo
    from spectok_generation.demo.report import next_commands

    results = run_demo(load_plan(recipe), out, stages)
    metrics, samples = results.metrics, results.metrics["samples"]
    for label in results.competitors:
        found = metrics[label]
        say(
            f"{label}: {found['psnr']:.2f} dB, SSIM {found['ssim']:.3f} on held-out images at "
            f"{found['bits_per_image']:g} bits"
        )
    say(
        f"samples: {100 * samples['class_accuracy']:.1f} % of {samples['count']:,} recognised by a "
        f"classifier that is right on {100 * samples['classifier_accuracy']:.1f} % of real images"
    )
    say(f"done in {metrics['seconds']:.0f} s; open {(out / 'report.html').resolve()}")
    say_next(next_commands(results.plan, out)[0][1])
