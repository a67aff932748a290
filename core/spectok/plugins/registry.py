"""Look up what plugins register: tokenizers, quantizers, data sets and the rest."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spectok.errors import PluginError, UnknownNameError
from spectok.plugins.loading import installed
from spectok.plugins.references import Reference

if TYPE_CHECKING:
    from spectok.data.sources import DatasetSource
    from spectok.quantizers import Quantizer
    from spectok.tokenizer import ImageTokenizer

HOOKS = {
    "tokenizer": "spectok_tokenizers",
    "foreign_model": "spectok_foreign_models",
    "quantizer": "spectok_quantizers",
    "discriminator": "spectok_discriminators",
    "prior": "spectok_priors",
    "dataset": "spectok_datasets",
    "metric": "spectok_metrics",
    "checkpoint_format": "spectok_checkpoint_formats",
}


def names(kind: str) -> list[str]:
    """Return every registered name of one kind, sorted; nothing is imported for it.

    Args:
        kind: One of ``"tokenizer"``, ``"foreign_model"``, ``"quantizer"``,
            ``"discriminator"``, ``"prior"``, ``"dataset"``, ``"metric"``.
    """
    return sorted(installed().collect(HOOKS[kind]))


def list_registered(kind: str) -> dict[str, Any]:
    """Return every registered object of one kind by name, sorted; all are imported.

    Args:
        kind: What they are; see :func:`names`.
    """
    plugins, found = installed(), {}
    for name, (value, plugin) in sorted(plugins.collect(HOOKS[kind]).items()):
        with contextlib.suppress(PluginError):  # a warning has named the plugin
            found[name] = plugins.resolve(HOOKS[kind], name, value, plugin), plugin
    return {name: value for name, (value, plugin) in found.items() if plugin in plugins.loaded}


def summaries(kind: str) -> dict[str, tuple[str, str]]:
    """Return the first line of the docstring and the distribution of each registered object.

    What is registered by its place is read from its source; it is imported where that does not
    tell.

    Args:
        kind: What they are; see :func:`names`.
    """
    plugins, found = installed(), {}
    for name, (value, plugin) in sorted(plugins.collect(HOOKS[kind]).items()):
        summary = value.summary() if isinstance(value, Reference) else None
        if summary is None:
            with contextlib.suppress(PluginError):  # a warning has named the plugin
                value = plugins.resolve(HOOKS[kind], name, value, plugin)
                summary = (inspect.getdoc(value) or "").partition("\n")[0]
        found[name] = summary, plugin
    return {
        name: (summary, plugin.distribution)
        for name, (summary, plugin) in found.items()
        if plugin in plugins.loaded
    }


def class_names(kind: str) -> dict[str, str]:
    """Return the own name of each registered class, by its registered name; none is imported.

    Args:
        kind: What they are; see :func:`names`.
    """
    found = installed().collect(HOOKS[kind])
    return {
        name: value.name if isinstance(value, Reference) else value.__name__
        for name, (value, _) in sorted(found.items())
    }


def classes_named(kind: str, class_name: str) -> list[Any]:
    """Return the registered classes of one name, usually one; they alone are imported.

    Args:
        kind: What they are; see :func:`names`.
        class_name: The class's own name, such as a saved model records.
    """
    called = class_names(kind).items()
    return [get_registered(kind, name) for name, found in called if found == class_name]


def renamed_options(kind: str, name: str) -> Mapping[str, str]:
    """Return the ``renamed_options`` of a registered class; empty if there is no such name.

    Args:
        kind: What it is; see :func:`names`.
        name: Its registered name.
    """
    value, _ = installed().collect(HOOKS[kind]).get(name, (None, None))
    renamed = value.renamed() if isinstance(value, Reference) else None
    if renamed is None and value is not None:
        renamed = getattr(get_registered(kind, name), "renamed_options", {})
    return renamed or {}


def known_options(kind: str, name: str) -> list[str] | None:
    """Return the arguments of a registered class as far as its source tells without importing it.

    Args:
        kind: What it is; see :func:`names`.
        name: Its registered name.

    Returns:
        Their names in order; None if only the class itself can tell.
    """
    value, _ = installed().collect(HOOKS[kind])[name]
    return value.arguments() if isinstance(value, Reference) else None


def broken_plugins() -> dict[str, str]:
    """Return the plugins that did not load, each with the reason."""
    return dict(installed().broken)


def provider(kind: str, name: str) -> str:
    """Return the distribution (``"package version"``) that registers a name."""
    return installed().collect(HOOKS[kind])[name][1].distribution


def check_name(kind: str, name: Any, note: str = "") -> None:
    """Check that a name is registered; nothing is imported for it.

    Args:
        kind: What it is; see :func:`names`.
        name: What was given for a name.
        note: One more sentence for the message if the name is unknown.

    Raises:
        UnknownNameError: If nothing registers the name; lists what is installed.
        PluginError: If the plugin of that name is installed but does not load.
    """
    found = names(kind)
    known = isinstance(name, str)  # a damaged config may give anything
    if known and name in found:
        return
    broken = installed().broken
    if known and name in broken:
        raise PluginError(f"{kind} {name!r} belongs to a plugin that fails to load: {broken[name]}")
    failed = f"Plugins that failed to load: {', '.join(sorted(broken))}" if broken else ""
    raise UnknownNameError(kind, name, found, ". ".join(filter(None, (note, failed))))


def get_registered(kind: str, name: str, note: str = "") -> Any:
    """Return one registered object; it alone is imported.

    Args:
        kind: What it is; see :func:`names`.
        name: Its registered name.
        note: One more sentence for the message if the name is unknown.

    Raises:
        UnknownNameError: If nothing registers the name; lists what is installed.
        PluginError: If the plugin that provides it does not load.
    """
    check_name(kind, name, note)
    value, plugin = installed().collect(HOOKS[kind])[name]
    return installed().resolve(HOOKS[kind], name, value, plugin)


def list_tokenizers() -> list[str]:
    """Return the keys of all registered tokenizers."""
    return names("tokenizer")


def list_quantizers() -> list[str]:
    """Return the names of all registered quantizers."""
    return names("quantizer")


def list_priors() -> list[str]:
    """Return the names of all registered priors."""
    return names("prior")


def list_datasets() -> list[str]:
    """Return the names of all registered data sets."""
    return names("dataset")


def get_tokenizer(name: str) -> type[ImageTokenizer]:
    """Return a registered tokenizer class."""
    return get_registered("tokenizer", name)


def get_quantizer(name: str) -> type[Quantizer]:
    """Return a registered quantizer class."""
    return get_registered("quantizer", name)


def get_prior(name: str) -> type[Any]:
    """Return a registered prior class."""
    return get_registered("prior", name)


def get_dataset(name: str) -> DatasetSource:
    """Return a registered data set definition."""
    return get_registered("dataset", name)
