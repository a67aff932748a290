"""``spectok ui``."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from spectok.cli.completing import complete_model
from spectok.errors import ConfigError
from spectok.loading import check_trained
from spectok.messages import say
from spectok.trained import KINDS

PORT = 7860


def add_commands(app: typer.Typer) -> None:
    """Add ``spectok ui``."""
    app.command("ui")(ui)


def ui(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            autocompletion=complete_model,
            help="Trained tokenizers, priors or pipelines: names, folders, or those of runs "
            "(default: the models that are installed).",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = PORT,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Play with trained models on a page that this machine alone can open."""
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError(
            "the page needs the library gradio; install it by pip install 'spectok[ui]'"
        )
    for name in models or []:
        check_trained(name, KINDS)

    from spectok_generation.playground.subjects import Subjects, check_names

    names = check_names(models or [])
    from spectok_generation.playground.page import HOST, serve

    page = serve(Subjects(names), port, browser=browser)
    say(f"the page is http://{HOST}:{port}; Ctrl-C stops it")
    page.block_thread()
