"""Scripts that stand for a command of ``spectok``, for launchers that start a Python file.

``accelerate launch generation/train_prior.py --config RECIPE --resume`` is ``spectok train prior
RECIPE --resume``: the recipe has an option of its own, and everything else is passed on.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from spectok.cli import main


def run_training_script(
    command: Sequence[str], config: str | None = None, arguments: Sequence[str] | None = None
) -> None:
    """Run the command that a script's arguments stand for.

    Args:
        command: Words after ``spectok``, such as ``["train", "prior"]``.
        config: The recipe where ``--config`` gives none. None: it must be given.
        arguments: Words after the script's name; by default those of this process.
    """
    main(command_words(command, config, arguments))


def command_words(
    command: Sequence[str], config: str | None = None, arguments: Sequence[str] | None = None
) -> list[str]:
    """Return the words of ``spectok`` that a script's arguments stand for.

    Args:
        command: See :func:`run_training_script`.
        config: See :func:`run_training_script`.
        arguments: See :func:`run_training_script`.
    """
    whole = shlex.join(["spectok", *command])
    recipe = "--config RECIPE" if config is None else "[--config RECIPE]"
    parser = argparse.ArgumentParser(
        usage=f"%(prog)s {recipe} [key=value ...] [options]",
        description=f"Run '{whole} RECIPE', from any launcher.",
        epilog=f"Settings and options are those of the command; see '{whole} --help'.",
        allow_abbrev=False,
    )
    default = f" (default: {config})" if config else ""
    parser.add_argument(
        "--config",
        metavar="RECIPE",
        default=config,
        required=config is None,
        help=f"recipe, YAML file, or name of a model{default}",
    )
    given, rest = parser.parse_known_args(arguments)
    return [*command, given.config, *rest]
