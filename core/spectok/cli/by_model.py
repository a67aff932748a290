"""Groups such as ``spectok eval``, which have a command for each kind of model.

Plugins add commands for theirs. The name of the command can be left out: the model decides.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

DEFAULT = "tokenizer"
"""The command of tokenizers."""


class ModelCommand(TyperCommand):
    """A command of such a group; which one is meant can be told by the model that is named."""

    def takes(self, word: str) -> bool:
        """Return whether a word of the command line names a model of this command's kind."""
        return False


class ModelGroup(TyperGroup):
    """A group in which the name of the command can be left out."""

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
            if isinstance(command, ModelCommand) and any(map(command.takes, words)):
                return name
        given = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
        for name, command in self.commands.items():
            if given <= {option for parameter in command.params for option in parameter.opts}:
                return name
        return DEFAULT


def add_group(app: typer.Typer, name: str, help: str) -> typer.Typer:
    """Add a group of commands, one for each kind of model, and return it."""
    group = typer.Typer(
        cls=ModelGroup,
        help=f"{help} 'spectok {name} {DEFAULT} --help' and so on show what can be set; the word "
        f"can be left out.",
        subcommand_metavar="MODEL|COMMAND [ARGS]...",
        no_args_is_help=True,
    )
    app.add_typer(group, name=name)
    return group


def groups_by_model(app: typer.Typer) -> dict[str, typer.Typer]:
    """Return the groups with a command for each kind of model, to which plugins add their own."""
    found = (
        (info.name, info.typer_instance)
        for info in app.registered_groups
        if info.typer_instance is not None and info.typer_instance.info.cls is ModelGroup
    )
    return {name: group for name, group in found if name is not None}
