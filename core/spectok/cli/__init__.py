"""The command ``spectok``.

Each module of this package adds one group of commands; plugins add theirs through the hook
``spectok_commands``. Nothing here imports torch, diffusers, transformers, datasets or pydantic:
commands import what they need when they run, so ``spectok --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from spectok import __version__, plugins
from spectok.cli import (
    by_model,
    classifier,
    doctor,
    evaluate,
    importing,
    listing,
    models,
    rates,
    resume,
    tokens,
    train,
)
from spectok.cli.console import WORDS
from spectok.errors import PluginError, SpectokError, did_you_mean, one_line
from spectok.interruption import Interrupted
from spectok.messages import is_main_process
from spectok.places import home

ERROR, INTERRUPTED, TERMINATED = 2, 130, 143
PATIENCE = 15  # seconds
REPEATABLE = ("extract", "compare", "demo", "resume")
"""Commands that go on where they were when they are repeated."""

# typer brings its own copy of click since 0.20; this names ClickException in either.
_UsageProblem: Any = typer.BadParameter.__mro__[2]


class _Stopped(Exception):
    """What stopped a command; of a KeyboardInterrupt, typer would keep only the exit status."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Stopped from error


def build_app() -> typer.Typer:
    """Return the application with the commands of every plugin."""
    app = typer.Typer(
        cls=_Commands,
        name="spectok",
        help="Train image tokenizers, and use them: images to a few integers and back.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_global_options)
    train_app = train.new_group()
    app.add_typer(train_app, name="train")
    evaluate.add_commands(app)
    classifier.add_commands(train_app)
    for module in (resume, models, tokens, listing, doctor, importing, rates):
        module.add_commands(app)
    _add_plugin_commands(app, train_app)
    return app


def _add_plugin_commands(app: typer.Typer, train_app: typer.Typer) -> None:
    """Add the commands of each plugin, except of those that take a name twice or cannot be read."""
    installed, groups = (
        plugins.installed(),
        (app, train_app, *by_model.groups_by_model(app).values()),
    )
    for plugin in list(installed.loaded):
        before = [(list(g.registered_commands), list(g.registered_groups)) for g in groups]
        if installed.call_one(plugin, "spectok_commands", app=app, train=train_app):
            try:
                for group, (commands, subgroups) in zip(groups, before):
                    _check_kept(group.registered_commands, commands)
                    _check_kept(group.registered_groups, subgroups)
                    _check_names(group)
                typer.main.get_command(app)
            except Exception as error:  # typer and click fail in many ways on a wrong signature
                installed.drop(plugin, error)
        if plugin not in installed.loaded:
            for group, (commands, subgroups) in zip(groups, before):
                group.registered_commands[:], group.registered_groups[:] = commands, subgroups


def _check_kept(now: list[Any], before: list[Any]) -> None:
    """Refuse a plugin that removes or replaces commands.

    Raises:
        PluginError: If commands are missing.
    """
    if now[: len(before)] != before:
        raise PluginError("spectok_commands() removes commands of others; it may only add some")


def _check_names(group: typer.Typer) -> None:
    """Refuse two commands of one name.

    Raises:
        PluginError: Names the command.
    """
    names = [info.name or _command_name(info.callback) for info in group.registered_commands]
    names += [info.name for info in group.registered_groups]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise PluginError(f"spectok_commands() adds a second command {twice[0]!r}")


def _command_name(function: Any) -> str:
    return typer.main.get_command_name(getattr(function, "__name__", ""))


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
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Before torch is imported. Threads that wait would keep their cores busy: two threads, beside
    # other work on two cores, trained at a tenth of the speed. On idle cores nothing changed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):  # a name may hold bytes that are no text
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    with _one_line_warnings(debug):
        sys.exit(_run(words, debug))


def _run(words: list[str], debug: bool) -> int:
    terminate = signal.signal(signal.SIGTERM, _stop)
    WORDS.set(words)
    try:
        return int(
            build_app()(list(map(_at_home, words)), prog_name="spectok", standalone_mode=False) or 0
        )
    except (_Stopped, KeyboardInterrupt, typer.Abort) as error:
        return _interrupted(words, error.__cause__ or error)
    except typer.Exit as error:
        return error.exit_code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (SpectokError, OSError, _UsageProblem) as error:
        if debug:
            traceback.print_exc()
        _let_the_first_speak()
        for line in _lines(error):
            _print_error(line)
        return ERROR
    except (Exception, SystemExit) as error:
        plugin = _culprit(error)
        if plugin is None or debug:
            raise
        what = f"{type(error).__name__}: {error}"
        _print_error(
            f"plugin {plugin.name!r} of {plugin.distribution} failed ({what}); --debug shows where"
        )
        return ERROR
    finally:
        signal.signal(signal.SIGTERM, terminate)


def _at_home(word: str) -> str:
    """Return a word with ``~`` as the home directory, where a shell leaves it: ``--out=~/a.png``.

    In settings, ``key=~/x``, it stays: recipes are read the same way everywhere.
    """
    option, equals, value = word.partition("=")
    if word.startswith("--") and equals:
        return f"{option}={home(value)}"
    return home(word)


def _let_the_first_speak() -> None:
    """Let the main process of a launch tell an error that all have: the others are then ended.

    A process that is not ended tells its own a few seconds later.
    """
    if not is_main_process():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PATIENCE)


def _stop(number: int, _: Any) -> None:
    raise Interrupted(number)


def _print_error(line: str) -> None:
    print(f"error: {one_line(line)}", file=sys.stderr)


def _culprit(error: BaseException) -> plugins.Plugin | None:
    """Return the plugin of somebody else whose code raised an error; None if ours did."""
    installed = plugins.installed()
    ours, found = installed.owner(__name__), None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found = installed.owner(frame.f_globals.get("__name__", "")) or found
    return found if ours and found and found.distribution != ours.distribution else None


def _lines(error: Any) -> Iterable[str]:
    """Return what to print: one line, or one per problem of a recipe."""
    if isinstance(error, SpectokError):
        return [line or type(error).__name__ for line in error.problems]
    if isinstance(error, OSError):
        return [f"{error.filename}: {error.strerror}" if error.filename else str(error)]
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "spectok"
    message = " ".join(error.format_message().split()).replace("Value error, ", "")
    if found := re.search("'([^']*)' is not one of (.*)", message):
        choices = re.findall("'([^']*)'", found[2])
        message = message.removesuffix(".") + did_you_mean(found[1], choices)
    option = getattr(error, "option_name", "") or ""
    if command.startswith("spectok train") and option.startswith("--"):
        meant = train.option_as_setting(option, WORDS.get([]))
        message = f"there is no {option}; settings are key=value: {meant}" if meant else message
    return [f"{message} (see '{command} --help')"] if message else []  # the help is shown already


def _interrupted(words: list[str], error: BaseException) -> int:
    """Say how to go on, and return the exit status."""
    if is_main_process():
        print("\ninterrupted", file=sys.stderr)
        for line in _how_to_go_on(words, getattr(error, "checkpoint", None) is not None):
            print(line, file=sys.stderr)
    return TERMINATED if getattr(error, "signal", None) == signal.SIGTERM else INTERRUPTED


def _how_to_go_on(words: list[str], has_checkpoint: bool) -> list[str]:
    if words[:1] == ["train"]:
        resume = ["--resume"] if has_checkpoint else ["--resume", "auto"]
        how = "continue from the last checkpoint with" if has_checkpoint else "go on with"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            return [f"{how}: the same launch of all processes and {shlex.join(resume)}"]
        return [f"{how}: {shlex.join(['spectok', *_without_resume(words), *resume])}"]
    if words[:1] and words[0] in REPEATABLE:
        return [f"go on where it stopped with: {shlex.join(['spectok', *words])}"]
    return []


def _without_resume(words: list[str]) -> list[str]:
    kept: list[str] = []
    for before, word in zip(["", *words], words):
        follows = word == "auto" and before == "--resume"
        if not (follows or word == "--resume" or word.startswith("--resume=")):
            kept.append(word)
    return kept


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
