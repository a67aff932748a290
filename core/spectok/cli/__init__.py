"""The command ``spectok``.

Each module of this package adds one group of commands; plugins add theirs through the hook
``spectok_commands``. Nothing here imports torch, diffusers, transformers, datasets or pydantic:
commands import what they need when they run, so ``spectok --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import typer

from spectok import __version__, plugins
from spectok.cli import evaluate, listing, models, tokens, train
from spectok.errors import SpectokError, one_line

ERROR, INTERRUPTED = 2, 130

# typer brings its own copy of click since 0.20; this names ClickException in either.
_UsageProblem: Any = typer.BadParameter.__mro__[2]


def build_app() -> typer.Typer:
    """Return the application with the commands of every plugin."""
    app = typer.Typer(
        name="spectok",
        help="Train image tokenizers, and use them: images to a few integers and back.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_global_options)
    train_app = train.new_group()
    app.add_typer(train_app, name="train")
    evaluate.add_commands(app, train_app)
    for module in (models, tokens, listing):
        module.add_commands(app)
    plugins.installed().call("spectok_commands", app=app, train=train_app)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run ``spectok``: the entry point of the command line.

    Args:
        arguments: Words after ``spectok``; by default those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not debug:  # we report errors ourselves; libraries need not add theirs
        for library in ("DIFFUSERS", "TRANSFORMERS"):
            os.environ.setdefault(f"{library}_VERBOSITY", "error")
    with _one_line_warnings(debug):
        sys.exit(_run(words, debug))


def _run(words: list[str], debug: bool) -> int:
    try:
        status = build_app()(words, prog_name="spectok", standalone_mode=False) or 0
        return _interrupted(words) if status == INTERRUPTED else int(status)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(words)
    except typer.Exit as error:
        return error.exit_code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (SpectokError, OSError, _UsageProblem) as error:
        if debug:
            traceback.print_exc()
        for line in _lines(error):
            print(f"error: {one_line(line)}", file=sys.stderr)
        return ERROR


def _lines(error: Any) -> Iterable[str]:
    """Return what to print: one line, or one per problem of a recipe."""
    if isinstance(error, SpectokError):
        return [line or type(error).__name__ for line in error.problems]
    if isinstance(error, OSError):
        return [f"{error.filename}: {error.strerror}" if error.filename else str(error)]
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "spectok"
    message = " ".join(error.format_message().split())
    return [f"{message} (see '{command} --help')"] if message else []  # the help is shown already


def _interrupted(words: list[str]) -> int:
    print("\ninterrupted", file=sys.stderr)
    if words[:1] == ["train"]:
        again = words if "--resume" in words else [*words, "--resume"]
        print(
            f"continue from the last checkpoint with: {shlex.join(['spectok', *again])}",
            file=sys.stderr,
        )
    return INTERRUPTED


@contextlib.contextmanager
def _one_line_warnings(debug: bool) -> Iterator[None]:
    """Show warnings, such as one about a broken plugin, as one line each."""
    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = lambda message, *_, **__: print(
                f"warning: {one_line(str(message).strip())}", file=sys.stderr
            )
        yield


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spectok {__version__}")
        raise typer.Exit


def _global_options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Show the version."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the full trace of an error."),
) -> None:
    """Accept the options common to all commands."""
