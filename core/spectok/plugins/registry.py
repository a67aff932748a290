"""Look up what plugins register: tokenizers, quantizers, data sets and the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spectok.errors import PluginError, UnknownNameError
from spectok.plugins.loading import installed

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
}


def list_registered(kind: str) -> dict[str, Any]:
    """Return every registered object of one kind by name, sorted.

    Args:
        kind: One of ``"tokenizer"``, ``"foreign_model"``, ``"quantizer"``,
            ``"discriminator"``, ``"prior"``, ``"dataset"``, ``"metric"``.
    """
    found = installed().collect(HOOKS[kind])
    return {name: found[name][0] for name in sorted(found)}


def broken_plugins() -> dict[str, str]:
    """Return the plugins that did not load, each with the reason."""
    return dict(installed().broken)


def provider(kind: str, name: str) -> str:
    """Return the distribution (``"package version"``) that registers a name."""
    return installed().collect(HOOKS[kind])[name][1].distribution


def get_registered(kind: str, name: str, note: str = "") -> Any:
    """Return one registered object.

    Args:
        kind: What it is; see :func:`list_registered`.
        name: Its registered name.
        note: One more sentence for the message if the name is unknown.

    Raises:
        UnknownNameError: If nothing registers the name; lists what is installed.
        PluginError: If the plugin of that name is installed but does not load.
    """
    found = list_registered(kind)
    known = isinstance(name, str)  # a damaged config may give anything
    if known and name in found:
        return found[name]
    broken = installed().broken
    if known and name in broken:
        raise PluginError(f"{kind} {name!r} belongs to a plugin that fails to load: {broken[name]}")
    failed = f"Plugins that failed to load: {', '.join(sorted(broken))}" if broken else ""
    raise UnknownNameError(kind, name, found, ". ".join(filter(None, (note, failed))))


def list_tokenizers() -> list[str]:
    """Return the keys of all registered tokenizers."""
    return list(list_registered("tokenizer"))


def list_quantizers() -> list[str]:
    """Return the names of all registered quantizers."""
    return list(list_registered("quantizer"))


def list_priors() -> list[str]:
    """Return the names of all registered priors."""
    return list(list_registered("prior"))


def list_datasets() -> list[str]:
    """Return the names of all registered data sets."""
    return list(list_registered("dataset"))


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
