"""YAML as people expect it: ``1e-3`` is a number, ``no`` is a word, a key appears once.

PyYAML reads YAML 1.1, where ``1e-3`` is a string, ``off`` is False and ``12:30:45`` is 45045.
Recipes use the scalar types of the YAML 1.2 JSON schema instead, both to read and to write. What is
read is bounded in size, depth and number of values, those that aliases repeat included.
"""

from __future__ import annotations

import os
import re
from typing import Any

import yaml

from spectok.errors import ConfigError, SpectokError, shown
from spectok.reading import MAX_DEPTH, read_text

MAX_BYTES = MAX_CHARACTERS = 1 << 17
MAX_VALUES = 10_000
"""Values of one document, every repetition by an alias counted."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = {  # the order matters: an integer also looks like a float
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the name PyYAML reads

    def __init__(self, text: str):
        super().__init__(text)
        self._depth, self._count = 0, 0
        self._sizes: dict[int, int] = {}  # values in each finished node

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= MAX_DEPTH:  # looking ahead through more takes quadratic time
            raise _problem(f"it nests deeper than {MAX_DEPTH} levels", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self._count
        self._depth += 1
        self._count += 1
        if self._depth > MAX_DEPTH + 1:
            raise _problem(f"it nests deeper than {MAX_DEPTH} levels", event.start_mark)
        node = super().compose_node(parent, index)
        if not isinstance(event, yaml.AliasEvent):
            _check_plain(node)
        elif id(node) in self._sizes:
            self._count = before + self._sizes[id(node)]
        else:
            raise _problem(f"the alias {shown(event.anchor)} contains itself", event.start_mark)
        self._sizes[id(node)] = self._count - before
        if self._count > MAX_VALUES:
            raise _problem(
                f"it has over {MAX_VALUES:,} values, repetitions by aliases counted",
                event.start_mark,
            )
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != _TAG + "str":
                written = f" {shown(key.value)}" if isinstance(key, yaml.ScalarNode) else ""
                raise _problem(f"the key{written} is not a word; put it in quotes", key.start_mark)
            if key.value in seen:
                raise _problem(f"the key {shown(key.value)} appears twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would read as anything but a string."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        return super().increase_indent(flow, False)  # indent lists under their key


def _check_plain(node: Any) -> None:
    """Refuse what has no place in JSON, and a value that an explicit tag does not fit."""
    kind = node.tag.removeprefix(_TAG)
    scalar = node.value if isinstance(node, yaml.ScalarNode) else None
    pattern = _SCALARS[kind][0] if kind in _SCALARS else ".*" if kind == "str" else None
    if scalar is None:
        fits = kind == ("map" if isinstance(node, yaml.MappingNode) else "seq")
    else:
        fits = pattern is not None and re.fullmatch(pattern, scalar, re.DOTALL)
    if not fits:
        raise _problem(f"the tag {shown(node.tag)} does not fit the value", node.start_mark)
    if scalar is not None and re.search("[\0\ud800-\udfff]", scalar):
        raise _problem("a text holds a character that no text can have", node.start_mark)


def _problem(what: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, mark)


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


def read_yaml(path: str | os.PathLike[str], error: type[SpectokError] = ConfigError) -> Any:
    """Parse a YAML file; see :func:`parse_yaml`.

    Args:
        path: The file.
        error: What to raise.

    Raises:
        SpectokError: Of the class ``error``: names the file and what is wrong with it.
    """
    return parse_yaml(read_text(path, error, MAX_BYTES), os.fspath(path), error)


def parse_yaml(text: str, place: str, error: type[SpectokError] = ConfigError) -> Any:
    """Parse one YAML document.

    Args:
        text: The document.
        place: Where it came from, for messages.
        error: What to raise.

    Raises:
        SpectokError: Of the class ``error``: with the line and column of a syntax error, or the
            bound that the document exceeds: 128 KiB, 100 levels, 10,000 values.
    """
    if len(text) > MAX_CHARACTERS:
        raise error(
            f"{place}: not valid YAML: it has {len(text):,} characters, over {MAX_CHARACTERS:,}"
        )
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: plain types only
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        at = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        what = getattr(problem, "problem", None) or str(problem).splitlines()[0]
        raise error(f"{place}: not valid YAML: {what}{at}") from problem
    except (ValueError, OverflowError) as problem:
        raise error(f"{place}: not valid YAML: a number in it has too many digits") from problem


def dump_yaml(data: Any) -> str:
    """Write plain types as YAML that :func:`parse_yaml` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
