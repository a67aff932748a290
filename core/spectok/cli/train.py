"""``spectok train``: train a tokenizer from a key, a recipe or a file.

``train`` is a group of commands, to which plugins add their own (``spectok train prior``). Words
that begin with none of them are those of ``spectok train tokenizer``.
"""

from __future__ import annotations

import itertools
import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from spectok.cli.completing import complete_data, complete_recipe
from spectok.cli.console import say_next
from spectok.cli.resume import kind_of_run
from spectok.errors import ConfigError
from spectok.messages import say
from spectok.places import home, is_path

if TYPE_CHECKING:
    from spectok.data import DataConfig
    from spectok.training import Resume
    from spectok.training.recipe import TokenizerRecipe

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings, such as train.steps=2000 data.limit=500."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete_data,
        help="Directory of images, parquet file, tar shards, hub id, or a data set.",
    ),
]
Output = Annotated[
    str | None, typer.Option(help="Folder of the run; by default runs/NAME-DATASET.")
]


class ResumeWord(StrEnum):
    """What can follow ``--resume``; without a word it is ``always``."""

    always = "always"
    auto = "auto"


ResumeOption = Annotated[
    ResumeWord | None,
    typer.Option(
        "--resume",
        metavar="[auto]",
        help="Continue from the last checkpoint; auto: continue, or begin where there is none.",
    ),
]

DEFAULT = "tokenizer"
DEFAULT_DATA = "digits"
OWN_DATA = ("folder", "parquet", "webdataset", "hub")


class ResumableCommand(TyperCommand):
    """A command whose option ``--resume`` may be followed by ``auto``, or by nothing of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a bare ``--resume`` its word, so that it takes no other."""
        words, rest = [], list(args)
        while rest:
            word = rest.pop(0)
            if word == "--resume":
                follows = rest and rest[0] == ResumeWord.auto.value
                word = f"--resume={rest.pop(0) if follows else ResumeWord.always.value}"
            words.append(word)
        left = super().parse_args(ctx, words)
        arguments = [p.name for p in self.params if p.param_type_name == "argument"]
        for value in map(ctx.params.get, () if ctx.resilient_parsing else arguments):
            for word in [value] if isinstance(value, str) else value or ():
                self._check_kind(ctx, word)
        return left

    def _check_kind(self, ctx: Any, word: str) -> None:
        """Refuse the run of another kind, whose recipe would be taken for one with many faults.

        Raises:
            ConfigError: Says what it is, and how it goes on.
        """
        from spectok.recipes.files import is_run_recipe, recipe_of_run
        from spectok.recipes.yaml12 import read_yaml

        is_own = is_run_recipe(Path(home(word)))
        file = home(word) if is_own else ctx.params.get("resume") and recipe_of_run(word)
        if not file or not os.path.isfile(file):
            return
        folder = Path(file).parent
        kind = kind_of_run(read_yaml(file), folder, ctx.parent.command)
        if kind != self.name:
            raise ConfigError(
                f"{word} is of the run of a {kind}; go on with it: "
                f"{shlex.join(['spectok', 'resume', str(folder)])}"
            )


def resume_of(word: ResumeWord | None) -> Resume:
    """Return what a trainer is told, for what followed ``--resume``; None: it was not given."""
    return "auto" if word is ResumeWord.auto else word is not None


class FallThroughGroup(TyperGroup):
    """A group in which an unknown first word goes to the command ``tokenizer``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's name first where the words leave it out."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the commands, and what the first word of the command ``tokenizer`` may be."""
        first = self.commands[DEFAULT].params[0]
        return [*super().shell_complete(ctx, incomplete), *first.shell_complete(ctx, incomplete)]


def new_group() -> typer.Typer:
    """Return the group ``spectok train`` with the command for tokenizers."""
    group = typer.Typer(
        cls=FallThroughGroup,
        help="Train a tokenizer, by key, recipe or file. 'spectok train tokenizer --help' shows "
        "what can be set.",
        subcommand_metavar="KEY|RECIPE|FILE.yaml|COMMAND [ARGS]...",
        no_args_is_help=True,
    )
    group.command(DEFAULT, cls=ResumableCommand)(train_tokenizer)
    return group


def train_tokenizer(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="KEY|RECIPE|FILE.yaml",
            autocompletion=complete_recipe,
            help="A key of 'spectok list tokenizers', a name of 'spectok list recipes', or a file.",
        ),
    ],
    overrides: Overrides = None,
    data: Data = None,
    output: Output = None,
    resume: ResumeOption = None,
) -> None:
    """Train a tokenizer."""
    from spectok.data.choice import check_places, data_override
    from spectok.training.recipe import TokenizerRecipe, load_tokenizer_recipe

    check_settings(overrides or [])
    check_output(output, resume_of(resume))
    recipe = named_recipe(recipe, resume)
    prepared = recipe_for(recipe, data)
    own_data = [data_override(data)] if data and prepared is None else []
    changes = [*own_data, *(overrides or [])]
    if resume is None:  # a run that goes on has what it needs, or is told by its trainer
        check_places(prepared or recipe, changes, TokenizerRecipe)
    resolved = load_tokenizer_recipe(prepared or recipe, changes)
    folder = Path(home(output or resolved.output or default_output(recipe, resolved)))
    check_output(folder, resume_of(resume))

    from spectok.training import train_tokenizer as run

    result = run(resolved, folder, resume=resume_of(resume))
    say(f"trained {result.step:,} steps in {result.seconds:,.0f} s: {folder / 'model'}")
    model, own = str(folder / "model"), resolved.data
    images = str(own.path) if own.name == "folder" else "IMAGE"
    say_next(
        ["spectok", "reconstruct", model, images, "--out", "grid.png"],
        ["spectok", "train", "prior", "--tokenizer", model],
    )


def check_settings(words: list[str]) -> None:
    """Refuse a word that is no setting but looks like images to train on, or anything else.

    Raises:
        ConfigError: Says how images are given.
    """
    for word in words:
        if "=" not in word and (is_path(word) or os.path.exists(word)):
            raise ConfigError(
                f"{word} is no setting; images to train on are given as --data {shlex.quote(word)}"
            )


def option_as_setting(option: str, words: list[str]) -> str:
    """Return the setting that an option that does not exist was meant for; empty if none.

    Args:
        option: Such as ``--steps``.
        words: The command line.
    """
    from spectok.recipes.recipe import path_of_setting
    from spectok.training.recipe import TokenizerRecipe

    name = option.lstrip("-").replace("-", "_")
    path = path_of_setting(name, TokenizerRecipe)
    if path is None:
        return ""
    given = [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
    after = [value for word, value in itertools.pairwise(words) if word == option]
    value = next((v for v in (*given, *after) if v and not v.startswith("-")), "VALUE")
    return f"{path}={shlex.quote(value)}"


def named_recipe(name: str, resume: ResumeWord | None) -> str:
    """Return what was given for a recipe; with ``--resume``, a run's folder means its recipe."""
    from spectok.plugins.registry import list_tokenizers
    from spectok.recipes.files import recipe_of_run

    own = None if resume is None or name in list_tokenizers() else recipe_of_run(name)
    return own or name


def recipe_for(name: str, data: str | None) -> str | None:
    """Return the recipe made for a key and a data set, ``KEY/DATA``.

    Args:
        name: What was given on the command line.
        data: What ``--data`` was given, if anything; the built-in digits otherwise.

    Returns:
        None if the name is not a bare key, or there is no such recipe.
    """
    from spectok.recipes.files import list_recipes
    from spectok.training.recipe import TokenizerRecipe

    recipes = list_recipes()
    prepared = f"{TokenizerRecipe.folder}/{name}/{data or DEFAULT_DATA}"
    return prepared if prepared in recipes else None


def default_output(name: str, recipe: TokenizerRecipe) -> Path:
    """Return ``runs/<recipe or key>-<data set>``.

    Args:
        name: What was given on the command line.
        recipe: What it resolved to.
    """
    from spectok.recipes.files import RUN_RECIPE

    path, data = Path(name), recipe.data
    if path.name == RUN_RECIPE:
        return path.parent  # a run's own recipe stands for that run
    is_file = path.suffix in (".yaml", ".yml")
    words = (
        [path.stem] if is_file else [w for w in path.parts if w not in (recipe.folder, "default")]
    )
    dataset = name_of_data(data)
    return Path("runs", "-".join(words if dataset in words else [*words, dataset]))


def name_of_data(data: DataConfig) -> str:
    """Return a short name for a data set; ``shards/*.tar`` is named after its folder."""
    if data.path is None or data.name not in OWN_DATA:
        return data.name
    images = Path(data.path)
    is_pattern = any(sign in images.name for sign in "*?[{")
    return images.absolute().parent.name if is_pattern else images.stem


def check_output(output: str | Path | None, resume: Resume) -> None:
    """Refuse a folder that cannot be one of a run, or to overwrite a finished run.

    Args:
        output: Folder of the run. None: it is not known yet.
        resume: What was said about going on.

    Raises:
        ConfigError: If it is a file or inside one, or may not be written to; or if it holds a
            trained model and ``--resume`` was not given.
    """
    if output is None:
        return
    folder = Path(home(output))
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not os.path.isdir(existing):
        raise ConfigError(f"--output {folder}: {existing} is no directory; give another folder")
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"--output {folder} cannot be written; give a folder of your own")
    if (folder / "model" / "config.json").is_file() and not resume:
        raise ConfigError(
            f"{folder} holds a finished run; give another --output, or --resume to train it "
            "further (with more train.steps)"
        )
