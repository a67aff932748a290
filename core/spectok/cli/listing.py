"""``spectok list``: what is installed."""

from __future__ import annotations

import contextlib
import enum
import json
from typing import Annotated, Any

import typer

from spectok.cli.console import print_table, say_next
from spectok.messages import say


class Kind(enum.StrEnum):
    """What can be listed."""

    tokenizers = "tokenizers"
    models = "models"
    foreign = "foreign"
    quantizers = "quantizers"
    discriminators = "discriminators"
    priors = "priors"
    datasets = "datasets"
    metrics = "metrics"
    recipes = "recipes"
    plugins = "plugins"


def add_commands(app: typer.Typer) -> None:
    """Add ``spectok list``."""
    app.command("list")(list_installed)


def list_installed(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """List what is installed: tokenizers, trained models, quantizers, recipes and so on."""
    rows = _ROWS[kind]()
    if kind == Kind.models and not as_json:
        rows = [_model_row(row) for row in rows]
    if kind == Kind.recipes and not as_json:
        rows = [{key: row[key] for key in ("name", "summary")} for row in rows]
    if as_json:
        say(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if not rows:
        say(f"no {kind.value} installed")
        return
    print_table(list(rows[0]), [row.values() for row in rows])
    say_next(_next_command(kind, rows))


def _described(kind: str) -> list[dict[str, Any]]:
    from spectok.plugins.registry import summaries

    return [
        {"name": name, "summary": summary, "package": package}
        for name, (summary, package) in summaries(kind).items()
    ]


def _foreign() -> list[dict[str, Any]]:
    from spectok.plugins.registry import list_registered, provider

    return [
        {
            "name": name,
            "summary": kind.summary,
            "claims": ", ".join((*kind.class_names, *kind.model_types, *kind.file_names)),
            "package": provider("foreign_model", name),
        }
        for name, kind in list_registered("foreign_model").items()
    ]


def _models() -> list[dict[str, Any]]:
    from spectok.cards.summary import summarize
    from spectok.plugins.registry import list_registered, provider

    return [
        {"name": name, "kind": model.kind, **summarize(model.folder)}
        | {"package": provider("model", name)}
        for name, model in list_registered("model").items()
    ]


def _model_row(facts: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the table of trained models; what a card does not say is left empty."""

    def show(name: str, form: str) -> str:
        return "" if facts[name] is None else format(facts[name], form)

    of_data = facts["data_license"]
    return {
        "name": facts["name"],
        "kind": facts["kind"],
        "data": facts["data"] or "",
        "bits": show("bits_per_image", ",.0f"),
        "PSNR, dB": show("psnr", ".2f"),
        "SSIM": show("ssim", ".3f"),
        "images": show("num_images", ","),
        "protocol": facts["protocol"] or "",
        "size": f"{facts['bytes'] / 1e6:.1f} MB",
        "licence": (facts["license"] or "") + (f" (data: {of_data})" if of_data else ""),
        "package": facts["package"],
    }


def _datasets() -> list[dict[str, Any]]:
    from spectok.plugins.registry import list_registered, provider

    rows = []
    for name, source in list_registered("dataset").items():
        card = source.describe()
        classes = "" if card.num_classes is None else card.num_classes
        size = f"{card.image_size}×{card.image_size}×{card.channels}"
        row = {"name": name, "size": size, "classes": classes, "summary": card.summary}
        rows.append(row | {"package": provider("dataset", name)})
    return rows


def _recipes() -> list[dict[str, Any]]:
    from spectok.errors import PluginError
    from spectok.reading import read_text
    from spectok.recipes.files import list_recipes

    rows = []
    for name, path in list_recipes().items():
        first = read_text(path, PluginError).splitlines()[:1]
        summary = first[0].lstrip("# ").strip() if first and first[0].startswith("#") else ""
        rows.append({"name": name, "summary": summary, "path": str(path)})
    return rows


def _plugins() -> list[dict[str, Any]]:
    from spectok.errors import PluginError
    from spectok.plugins.loading import installed
    from spectok.plugins.registry import HOOKS, summaries

    plugins = installed()
    for kind, hook in HOOKS.items():
        plugins.call(hook)  # a plugin may import, and then fail to register
        with contextlib.suppress(PluginError):  # of one name claimed twice, which costs no plugin
            summaries(kind)
    rows = [
        {"name": p.name, "package": p.distribution, "status": "ok", "module": p.module.__name__}
        for p in plugins.loaded
    ]
    return rows + [
        {"name": name, "package": "", "status": f"broken: {reason}", "module": ""}
        for name, reason in plugins.broken.items()
    ]


_ROWS = {
    Kind.tokenizers: lambda: _described("tokenizer"),
    Kind.models: _models,
    Kind.foreign: _foreign,
    Kind.quantizers: lambda: _described("quantizer"),
    Kind.discriminators: lambda: _described("discriminator"),
    Kind.priors: lambda: _described("prior"),
    Kind.datasets: _datasets,
    Kind.metrics: lambda: _described("metric"),
    Kind.recipes: _recipes,
    Kind.plugins: _plugins,
}


def _next_command(kind: Kind, rows: list[dict[str, Any]]) -> list[str]:
    names = [row["name"] for row in rows]
    first = next((name for name in names if name.startswith("tokenizers/")), names[0])
    train = ["spectok", "train", "TOKENIZER"]
    commands = {
        Kind.tokenizers: ["spectok", "train", first],
        Kind.models: ["spectok", "info", names[0]],
        Kind.foreign: ["spectok", "info", "FOLDER"],
        Kind.quantizers: [*train, f"tokenizer.quantizer.name={first}"],
        Kind.discriminators: [*train, f"adversarial.discriminator.name={first}"],
        Kind.priors: ["spectok", "train", "prior", "--help"],
        Kind.datasets: [*train, "--data", first],
        Kind.metrics: ["spectok", "reconstruct", "MODEL", "IMAGES", "--out", "grid.png"],
        Kind.recipes: ["spectok", "train", first],
        Kind.plugins: ["spectok", "list", "tokenizers"],
    }
    return commands[kind]
