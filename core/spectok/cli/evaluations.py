"""The group ``spectok eval``: a command for each kind of model, to which plugins add their own."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

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
