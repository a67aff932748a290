"""Find plugins through entry points, one at a time, and ask them what they register.

A plugin that cannot be imported, has a misspelt hook or registers what its hook is not for causes a
warning that names it, and an error only when something that it should provide is requested. A name
claimed twice is an error. A plugin that ends the program at import does not end it.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import pluggy

from spectok.errors import SHOWN, PluginError, did_you_mean, shown
from spectok.plugins import hookspecs
from spectok.plugins.references import Reference


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

        What is registered as ``"module:Name"`` is a :class:`Reference`, for :meth:`resolve`. A
        plugin that returns anything else, or registers what the hook is not for, becomes broken.

        Raises:
            PluginError: If two plugins claim one name.
        """
        found: dict[str, tuple[Any, Plugin]] = {}
        for plugin, result in self.call(hook):
            if fault := _fault(hook, result):
                self.drop(plugin, TypeError(f"{hook}() {fault}"))
                continue
            for name, value in result.items():
                if name in found:
                    first = found[name][1]
                    raise PluginError(
                        f"{name!r} ({hook}) is registered twice: by plugin {first.name!r} of "
                        f"{first.distribution} and by plugin {plugin.name!r} of "
                        f"{plugin.distribution}; uninstall one of them"
                    )
                found[name] = (Reference.parse(value) or value, plugin)
        return found

    def resolve(self, hook: str, name: str, value: Any, plugin: Plugin) -> Any:
        """Return what :meth:`collect` found under a name; what is only referred to is imported.

        Raises:
            PluginError: If it cannot be imported or is not what the hook is for; its plugin becomes
                broken.
        """
        if not isinstance(value, Reference):
            return value
        try:
            found = value.load()
            if fault := _value_fault(hook, name, found):
                raise TypeError(f"{hook}() {fault}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.drop(plugin, error)
            kind, reason = hook.removeprefix("spectok_").removesuffix("s"), self.broken[plugin.name]
            raise PluginError(
                f"{kind} {name!r} belongs to a plugin that fails to load: {reason}"
            ) from error
        return found

    def call(self, hook: str, **kwargs: Any) -> list[tuple[Plugin, Any]]:
        """Call one hook on every plugin that implements it; a failing plugin becomes broken."""
        plugins = list(self.loaded)
        return [found for plugin in plugins for found in self.call_one(plugin, hook, **kwargs)]

    def call_one(self, plugin: Plugin, hook: str, **kwargs: Any) -> list[tuple[Plugin, Any]]:
        """Call one hook on one plugin; nothing is returned if it lacks the hook, or fails."""
        try:
            function = getattr(plugin.module, hook, None)
            if function is not None and hasattr(function, "spectok_impl"):
                return [(plugin, function(**kwargs))]
        except KeyboardInterrupt:
            raise  # the user's Ctrl-C
        except BaseException as error:  # nothing else that a plugin raises ends the program
            self.drop(plugin, error)
        return []

    def owner(self, module: str) -> Plugin | None:
        """Return the plugin in whose package a module is; None if it is in none."""
        package = module.partition(".")[0]
        found = (p for p in self.loaded if p.module.__name__.partition(".")[0] == package)
        return next(found, None)

    def drop(self, plugin: Plugin, error: BaseException) -> None:
        """Continue without a loaded plugin whose hook failed."""
        if plugin in self.loaded:
            self.mark_broken(plugin.name, plugin.distribution, error)
            self.loaded.remove(plugin)

    def mark_broken(self, name: str, distribution: str, error: BaseException) -> None:
        """Remember why a plugin does not work and warn once."""
        reason = _one_line(error)[:SHOWN]
        own = isinstance(error, PluginError)
        self.broken[name] = reason if own else f"{type(error).__name__}: {reason}"
        warnings.warn(
            f"plugin {name!r} of {distribution} is not available: {self.broken[name]}",
            RuntimeWarning,
            stacklevel=2,
        )


def load_plugins(points: list[EntryPoint]) -> Plugins:
    """Import each entry point on its own.

    Args:
        points: Entry points of the group ``spectok.plugins``.
    """
    plugins = Plugins()
    for point in sorted(points, key=lambda p: (_distribution(p), p.name)):
        try:
            module = point.load()
            _check_hooks(module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            plugins.mark_broken(point.name, _distribution(point), error)
            continue
        plugins.loaded.append(Plugin(point.name, _distribution(point), module))
    return plugins


@functools.cache
def installed() -> Plugins:
    """Return the plugins of this environment, loaded once."""
    return load_plugins(list(entry_points(group=hookspecs.GROUP)))


def _check_hooks(module: Any) -> None:
    """Refuse what is no module, and a function that is marked as a hook that does not exist.

    Raises:
        PluginError: Names the hook, and the closest one.
    """
    if not isinstance(module, ModuleType):
        raise PluginError(f"the entry point names a {type(module).__name__}, not a module")
    checker = pluggy.PluginManager("spectok")
    checker.add_hookspecs(hookspecs)
    known = [name for name in vars(hookspecs) if name.startswith("spectok_")]
    try:
        checker.register(module)
        checker.check_pending()
    except pluggy.PluginValidationError as error:
        wrong = [n for n in vars(module) if n.startswith("spectok_") and n not in known]
        named = next((name for name in wrong if repr(name) in str(error)), None)
        if named is None:
            raise PluginError(f"it has a wrong hook: {_one_line(error)}") from error
        hint = did_you_mean(named, known)
        raise PluginError(f"it has a wrong hook: unknown hook {named!r}{hint}") from error


def _fault(hook: str, result: Any) -> str | None:
    """Return what is wrong with what a hook returned; None if nothing is."""
    if not isinstance(result, dict):
        return f"returned a {type(result).__name__}, not a dict"
    for name, value in result.items():
        if not isinstance(name, str) or not name.strip():
            return f"registers the name {shown(name)}, which is no text"
        if Reference.parse(value) is None and (fault := _value_fault(hook, name, value)):
            return fault
    return None


def _value_fault(hook: str, name: str, value: Any) -> str | None:
    fault = _REGISTERED[hook](value)
    return fault and f"registers {shown(value)} as {shown(name)}, which {fault}"


def _class_fault(value: Any, base: str | None = None) -> str | None:
    """Return why a value is no class of a kind; where such a class exists, its base is imported."""
    if not isinstance(value, type):
        return "is not a class"
    module, _, name = (base or "builtins.object").rpartition(".")
    parent = getattr(sys.modules.get(module), name, None)
    if parent is None or not issubclass(value, parent):
        return f"is not a subclass of {base}"
    missing = sorted(getattr(value, "__abstractmethods__", ()))
    return f"does not define {', '.join(missing)}" if missing else None


def _dataset_fault(value: Any) -> str | None:
    fault = _class_fault(type(value), "spectok.data.sources.DatasetSource")
    return fault and "is not a DatasetSource"


def _call_fault(value: Any) -> str | None:
    return None if callable(value) else "cannot be called"


def _foreign_fault(value: Any) -> str | None:
    fault = _class_fault(type(value), "spectok.foreign.model.ForeignModel")
    return fault and "is not a ForeignModel"


_REGISTERED: dict[str, Callable[[Any], str | None]] = {
    "spectok_tokenizers": lambda value: _class_fault(value, "spectok.tokenizer.ImageTokenizer"),
    "spectok_foreign_models": _foreign_fault,
    "spectok_quantizers": lambda value: _class_fault(value, "spectok.quantizers.Quantizer"),
    "spectok_discriminators": lambda value: _class_fault(value, "torch.nn.Module"),
    "spectok_priors": _class_fault,
    "spectok_datasets": _dataset_fault,
    "spectok_metrics": _call_fault,
    "spectok_checkpoint_formats": _call_fault,
}
"""What each hook registers: a check of one value."""


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
