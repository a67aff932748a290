"""The page of the playground, and the server that shows it on this machine alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

# Before gradio is imported, which asks at once: nothing is reported to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
from gradio import processing_utils
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from spectok.errors import ConfigError
from spectok_generation.playground import tabs
from spectok_generation.playground.desk import Desk, make_desk
from spectok_generation.playground.pictures import MAX_BYTES, show
from spectok_generation.playground.subjects import Subjects

HOST = "127.0.0.1"
HOSTS = [HOST, "localhost"]
STYLE = """
.levels { display: flex; flex-wrap: wrap; gap: 1.5rem; }
.levels figure { margin: 0; }
.levels figcaption { margin-bottom: 0.5rem; }
table.tokens { border: 0 !important; border-collapse: separate; border-spacing: 2px; }
table.tokens td { color: #222; font: 12px monospace; min-width: 2.4em; padding: 4px;
  text-align: center; border-radius: 3px; border: 0; }
#original img, #reconstruction img, #difference img, #prefix img, #mixed img, #swap-first img,
#swap-second img, .gallery-container img { image-rendering: pixelated; }
"""


def build_page(subjects: Subjects) -> gr.Blocks:
    """Return the page.

    Args:
        subjects: The models that it offers.
    """
    with gr.Blocks(title="spectok", analytics_enabled=False) as page:
        desk = gr.State()
        with gr.Row(equal_height=True):
            model = gr.Dropdown(subjects.names, label="Model", elem_id="model", scale=2)
            with gr.Column(scale=3):
                facts = gr.Markdown(elem_id="facts")
                upload = gr.UploadButton(
                    "Upload images",
                    file_count="multiple",
                    file_types=["image"],
                    elem_id="upload",
                    size="sm",
                )
        pictures = tabs.gallery("Pictures: choose one", "pictures", 12, choosing=True)
        shown = [
            tabs.reconstruction_tab(),
            tabs.tokens_tab(),
            tabs.progressive_tab(subjects, desk),
            tabs.influence_tab(subjects, desk),
            tabs.swap_tab(subjects, desk),
            tabs.codes_tab(subjects, desk),
            tabs.samples_tab(subjects, desk),
            tabs.edit_tab(subjects, desk),
        ]

        def start(name: str, before: Desk | None) -> Desk:
            return make_desk(subjects[name], before)

        def add(before: Desk, paths: Sequence[str]) -> Desk:
            return before.add(subjects[before.name], list(paths))

        def pick(before: Desk, event: gr.SelectData) -> Desk:
            return before.choose(event.index)

        def head(now: Desk) -> Sequence[Any]:
            chosen = gr.update(value=[show(image) for image in now.images], selected_index=None)
            return chosen, subjects[now.name].describe()

        def fill(now: Desk) -> Sequence[Any]:
            return [value for tab in shown for value in tab.fill(now, subjects[now.name])]

        outputs = [component for tab in shown for component in tab.outputs]
        began = [
            page.load(tabs.in_words(start), [model, desk], desk),
            model.input(tabs.in_words(start), [model, desk], desk),
            upload.upload(tabs.in_words(add), [desk, upload], desk),
        ]
        for event in began:
            event.success(tabs.in_words(head), desk, [pictures, facts]).success(
                tabs.in_words(fill), desk, outputs
            )
        pictures.select(tabs.in_words(pick), desk, desk).success(tabs.in_words(fill), desk, outputs)
    for function in page.fns.values():
        function.api_visibility = "private"  # the page alone calls them
    return page


async def refuse_address(url: str) -> Any:
    """Fetch nothing: gradio would, for whoever names an address in place of an upload.

    Raises:
        gradio.Error: Always.
    """
    raise gr.Error(f"{url[:80]} is on another machine; upload a file", print_exception=False)


if not hasattr(processing_utils, "async_ssrf_protected_get"):
    raise ConfigError(
        f"gradio {gr.__version__} fetches addresses in a way that this page cannot refuse; install "
        "the version that 'spectok[ui]' asks for"
    )
processing_utils.async_ssrf_protected_get = refuse_address


def serve(subjects: Subjects, port: int, *, browser: bool = False) -> Any:
    """Show the page on this machine, to nobody else.

    Args:
        subjects: The models that it offers.
        port: Where it listens.
        browser: Whether to open it.

    Returns:
        The page, which ``close()`` stops; ``block_thread()`` waits until it is stopped.

    Raises:
        ConfigError: If the port is taken.
    """
    page = build_page(subjects)
    try:
        page.launch(
            server_name=HOST,
            server_port=port,
            inbrowser=browser,
            share=False,
            quiet=True,
            max_file_size=MAX_BYTES,
            prevent_thread_lock=True,
            # A page elsewhere that gives this machine's address a name of its own is not answered.
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)]},
            footer_links=[],
            css=STYLE,
        )
    except OSError as error:
        raise ConfigError(
            f"--port {port} is taken by another program; give another, such as {port + 1}"
        ) from error
    return page
