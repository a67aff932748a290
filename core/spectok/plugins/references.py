"""What a plugin registers as ``"module:Name"``: imported only where it is used.

The source of the module answers what listing and checking need (the first line of a docstring, the
names of a constructor's arguments), so that neither imports a network library.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from typing import Any

_PLACE = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")
_LONGEST = 300
_Definition = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True)
class Reference:
    """The place of a class or function that is not imported yet.

    Args:
        module: Its module, such as ``"my_package.model"``.
        name: Its own name there.
    """

    module: str
    name: str

    @classmethod
    def parse(cls, value: Any) -> Reference | None:
        """Return what a text such as ``"my_package.model:Mine"`` names; None if it names nothing.

        Args:
            value: What a hook registers.
        """
        if not isinstance(value, str) or len(value) > _LONGEST:
            return None
        found = _PLACE.fullmatch(value)
        return cls(*found.groups()) if found else None

    def load(self) -> Any:
        """Import the module, and return the object."""
        return getattr(importlib.import_module(self.module), self.name)

    def summary(self) -> str | None:
        """Return the first line of its docstring; None where the source does not tell."""
        found = self._definition()
        text = ast.get_docstring(found) if found else None
        return text.partition("\n")[0] if text else None

    def renamed(self) -> dict[str, str] | None:
        """Return its ``renamed_options``, its own or inherited; None where no source tells.

        Returns:
            Earlier name of an option -> its present name.
        """
        for definition in self._ancestry():
            if definition is None:
                return None
            value = _assigned(definition, "renamed_options")
            if value is not None:
                return _literal(value)
        return {}

    def arguments(self) -> list[str] | None:
        """Return the arguments of its constructor in their order; None where no source tells.

        A decorator but diffusers' own, which keeps the signature, tells nothing, and nor does
        ``**options``.
        """
        definition = self._definition()
        if not isinstance(definition, ast.ClassDef) or definition.decorator_list:
            return None
        for node in definition.body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                return _names(node)
        return None

    def _definition(self) -> _Definition | None:
        tree = _parse(self.module)
        for node in tree.body if tree else ():
            if isinstance(node, _Definition) and node.name == self.name:
                return node
        return None

    def _ancestry(self) -> Iterator[_Definition | None]:
        """Yield this class and those it inherits from, down to the contracts of this package.

        None stands for one whose source is not found.
        """
        if self.module.partition(".")[0] == __name__.partition(".")[0]:
            return
        definition = self._definition()
        yield definition
        for base in definition.bases if isinstance(definition, ast.ClassDef) else ():
            origin = _origin(self.module, base)
            if origin is None:
                yield None
            else:
                yield from origin._ancestry()


def _parse(module: str) -> ast.Module | None:
    """Return the syntax of a module, found without importing it or its packages."""
    spec, path, name = None, None, ""
    for part in module.split("."):
        if name and path is None:
            return None  # what it should be in is no package
        name = f"{name}.{part}".removeprefix(".")
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded else PathFinder.find_spec(name, path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    try:
        loader: Any = spec and spec.loader
        source = loader.get_source(module)
    except (AttributeError, ImportError):
        return None  # it does not lie in a file of Python
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            return ast.parse(source or "")
    except (SyntaxError, ValueError, RecursionError):
        return None  # importing it will say why


def _origin(module: str, base: ast.expr) -> Reference | None:
    """Return the place of a base class; None if it is not plain to see."""
    tree = _parse(module)
    if not isinstance(base, ast.Name) or tree is None:
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == base.id:
            return Reference(module, base.id)
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == base.id:
                    return Reference(node.module, alias.name)
    return None


def _names(init: ast.FunctionDef) -> list[str] | None:
    """Return a constructor's arguments but ``self``."""
    given = init.args
    kept = all(
        isinstance(d, ast.Name) and d.id == "register_to_config" for d in init.decorator_list
    )
    if not kept or given.vararg or given.kwarg or given.posonlyargs:
        return None
    return [argument.arg for argument in (*given.args[1:], *given.kwonlyargs)]


def _assigned(definition: _Definition, name: str) -> ast.expr | None:
    for node in definition.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return getattr(node, "value", None)
    return None


def _literal(value: ast.expr) -> dict[str, str] | None:
    try:
        found = ast.literal_eval(value)
    except (ValueError, TypeError):
        return None
    return dict(found) if isinstance(found, Mapping) else None
