"""Which plugin loads a saved model that spectok did not write, told by its config or its files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from spectok.errors import PluginError
from spectok.foreign.model import ForeignModel
from spectok.messages import with_article
from spectok.plugins import registry
from spectok.plugins.hookspecs import GROUP

if TYPE_CHECKING:
    from spectok.foreign.tokenizer import ForeignTokenizer


def foreign_models() -> dict[str, ForeignModel]:
    """Return every kind of foreign model that an installed plugin loads, by its name."""
    return registry.list_registered("foreign_model")


def tokenizers() -> list[ForeignModel]:
    """Return the kinds that load as tokenizers, without those that are a part of one."""
    return [kind for kind in foreign_models().values() if not kind.instead]


def load_class(kind: ForeignModel) -> type[ForeignTokenizer]:
    """Import the class that loads a kind of foreign model.

    Raises:
        PluginError: If there is none, or it is no :class:`~spectok.ForeignTokenizer`.
    """
    from spectok.foreign.tokenizer import ForeignTokenizer

    try:
        found = EntryPoint(kind.class_name, kind.tokenizer, GROUP).load()
    except (ImportError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise PluginError(f"the plugin for {kind.summary} cannot load it: {reason}") from error
    if not isinstance(found, type) or not issubclass(found, ForeignTokenizer):
        raise PluginError(f"{kind.tokenizer}, for {kind.summary}, is no ForeignTokenizer")
    return found


def claimed(config: Mapping[str, Any], files: Iterable[str], place: str) -> ForeignModel | None:
    """Return the kind of foreign model that claims a saved one; None if none does.

    Args:
        config: Its ``config.json``; empty if it has none.
        files: Names of the files beside it.
        place: Where it is, for messages.

    Raises:
        PluginError: If several claim it.
    """
    files = tuple(files)
    found = {name: kind for name, kind in foreign_models().items() if kind.claims(config, files)}
    if len(found) > 1:
        packages = (f"{n!r} of {registry.provider('foreign_model', n)}" for n in sorted(found))
        raise PluginError(f"{place} is claimed by {' and by '.join(packages)}; uninstall one")
    return next(iter(found.values()), None)


def saved_by(class_name: str) -> ForeignModel | None:
    """Return the kind of foreign model whose tokenizer saves itself under a class name."""
    return next((kind for kind in tokenizers() if kind.class_name == class_name), None)


def describe_unclaimed(config: Mapping[str, Any]) -> str:
    """Return what a config holds and what plugins could load instead, for messages."""
    named = [config.get("_class_name"), config.get("model_type")]
    names = [n[:80] for n in named if isinstance(n, str) and re.fullmatch(r"[\w-]+", n)]
    held = names[0] if names else "model of no known class (_class_name, model_type)"
    classes = sorted(registry.class_names("tokenizer").values())
    others = sorted(kind.summary for kind in tokenizers())
    broken = sorted(registry.broken_plugins())
    failed = f". Plugins that failed to load: {', '.join(broken)}" if broken else ""
    return (
        f"holds {with_article(held)}, which no installed plugin provides as a tokenizer; "
        f"installed: {', '.join(classes)}; "
        f"of other libraries: {', '.join(others) or 'none'}{failed}"
    )
