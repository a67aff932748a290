"""The group ``spectok eval``: a command for each kind of model, to which plugins add their own."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from spectok.cli.console import print_facts
from spectok.messages import count_images, note, say

GROUP, DEFAULT, VERIFY = "eval", "tokenizer", "--verify"


class EvalCommand(TyperCommand):
    """A command of ``spectok eval``; which one is meant can be told by the model that is named."""

    def takes(self, word: str) -> bool:
        """Return whether a word of the command line names a model of this command's kind."""
        return False


class EvalGroup(TyperGroup):
    """A group in which the name of the command can be left out: the model decides."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's name first where the words leave it out."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [self._meant_by(args), *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the commands, and what the first word of the command ``tokenizer`` may be."""
        first = self.commands[DEFAULT].params[0]
        return [*super().shell_complete(ctx, incomplete), *first.shell_complete(ctx, incomplete)]

    def _meant_by(self, words: list[str]) -> str:
        """Return the command that takes one of the models, or else the first with such options."""
        for name, command in self.commands.items():
            if isinstance(command, EvalCommand) and any(map(command.takes, words)):
                return name if VERIFY not in words else DEFAULT
        given = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
        for name, command in self.commands.items():
            if given <= {option for parameter in command.params for option in parameter.opts}:
                return name
        return DEFAULT


def evaluations(app: typer.Typer) -> typer.Typer:
    """Return the group ``spectok eval``, to which plugins add commands for other models."""
    groups = (info for info in app.registered_groups if info.name == GROUP)
    return next(info.typer_instance for info in groups if info.typer_instance is not None)


def show_measured(result: dict[str, Any]) -> None:
    """Print what was measured."""
    from spectok.evaluation.report import format_metric

    facts = {name: format_metric(name, value) for name, value in result["metrics"].items()}
    facts["codebook_usage"] = f"{100 * result['codebook_usage']:.1f} %"
    if result["distinct_usage"] not in (None, result["codebook_usage"]):
        facts["distinct_usage"] = f"{100 * result['distinct_usage']:.1f} %, twins counted as one"
        facts["distinct_perplexity"] = f"{result['distinct_perplexity']:,.6g}"
    for key in ("perplexity", "bits_per_image", "bits_per_pixel", "images_per_second", "seconds"):
        if key in result:
            facts[key] = f"{result[key]:,.6g}"
    facts["parameters"] = f"{result['parameters']:,}"
    if "peak_memory_bytes" in result:
        peak = result["peak_memory_bytes"]
        facts["peak_memory"] = "–" if peak is None else f"{peak / 2**20:,.0f} MiB"
    print_facts(facts)
    say(f"{count_images(result['num_images'])}, protocol {result['protocol']['id']}")
    for name, why in result["not_measured"].items():
        note(f"{name} not measured: {why}")
