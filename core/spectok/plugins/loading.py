"""Find plugins through entry points, one at a time, and ask them what they register.

A plugin that cannot be imported causes a warning that names it, and an error only when something
that it should provide is requested. A misspelt hook, or a name claimed twice, is an error.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from spectok.errors import PluginError, did_you_mean
from spectok.plugins import hookspecs


@dataclass(frozen=True)
class Plugin:
    """One loaded entry point: its name, the distribution it came from, and the module."""

    name: str
    distribution: str
    module: Any


@dataclass
class Plugins:
    """The plugins of an environment: those that loaded and those that did not.

    Args:
        loaded: Plugins in a fixed order (by distribution, then by name).
        broken: Entry point name -> the reason it did not load.
    """

    loaded: list[Plugin] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    def collect(self, hook: str) -> dict[str, tuple[Any, Plugin]]:
        """Call a ``dict``-returning hook on each plugin; return ``{name: (object, plugin)}``.

        Raises:
            PluginError: If two plugins claim one name.
        """
        found: dict[str, tuple[Any, Plugin]] = {}
        for plugin, result in self.call(hook):
            if not isinstance(result, dict):
                kind = type(result).__name__
                self.drop(plugin, TypeError(f"{hook}() returned a {kind}, not a dict"))
                continue
            for name, value in result.items():
                if name in found:
                    first = found[name][1]
                    raise PluginError(
                        f"{name!r} ({hook}) is registered twice: by plugin {first.name!r} of "
                        f"{first.distribution} and by plugin {plugin.name!r} of "
                        f"{plugin.distribution}; uninstall one of them"
                    )
                found[name] = (value, plugin)
        return found

    def call(self, hook: str, **kwargs: Any) -> list[tuple[Plugin, Any]]:
        """Call one hook on every plugin that implements it; a failing plugin becomes broken."""
        results = []
        for plugin in list(self.loaded):
            function = getattr(plugin.module, hook, None)
            if function is None or not hasattr(function, "spectok_impl"):
                continue
            try:
                results.append((plugin, function(**kwargs)))
            except Exception as error:
                self.drop(plugin, error)
        return results

    def drop(self, plugin: Plugin, error: Exception) -> None:
        """Continue without a loaded plugin whose hook failed."""
        self.mark_broken(plugin.name, plugin.distribution, error)
        self.loaded.remove(plugin)

    def mark_broken(self, name: str, distribution: str, error: Exception) -> None:
        """Remember why a plugin does not work and warn once."""
        self.broken[name] = f"{type(error).__name__}: {_one_line(error)}"
        warnings.warn(
            f"plugin {name!r} of {distribution} is not available: {self.broken[name]}",
            RuntimeWarning,
            stacklevel=2,
        )


def load_plugins(points: list[EntryPoint]) -> Plugins:
    """Import each entry point on its own.

    Args:
        points: Entry points of the group ``spectok.plugins``.

    Raises:
        PluginError: If a module marks a function as a hook that does not exist.
    """
    plugins = Plugins()
    checker = pluggy.PluginManager("spectok")
    checker.add_hookspecs(hookspecs)
    known = [name for name in vars(hookspecs) if name.startswith("spectok_")]
    for point in sorted(points, key=lambda p: (_distribution(p), p.name)):
        try:
            module = point.load()
        except Exception as error:
            plugins.mark_broken(point.name, _distribution(point), error)
            continue
        try:
            checker.register(module, name=f"{point.name} ({point.value})")
            checker.check_pending()
        except pluggy.PluginValidationError as error:
            wrong = [n for n in vars(module) if n.startswith("spectok_") and n not in known]
            hint = did_you_mean(wrong[0], known) if wrong else ""
            raise PluginError(
                f"plugin {point.name!r} of {_distribution(point)} has a wrong hook: "
                f"{_one_line(error)}{hint}"
            ) from error
        plugins.loaded.append(Plugin(point.name, _distribution(point), module))
    return plugins


@functools.cache
def installed() -> Plugins:
    """Return the plugins of this environment, loaded once."""
    return load_plugins(list(entry_points(group=hookspecs.GROUP)))


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
