"""YAML as people expect it: ``1e-3`` is a number, ``no`` is a word, a key appears once.

PyYAML reads YAML 1.1, where ``1e-3`` is a string, ``off`` is False and ``12:30:45`` is 45045.
Recipes use the scalar types of the YAML 1.2 JSON schema instead, both to read and to write.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from spectok.errors import ConfigError

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

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} appears twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would read as anything but a string."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        return super().increase_indent(flow, False)  # indent lists under their key


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


def parse_yaml(text: str, place: str) -> Any:
    """Parse one YAML document.

    Args:
        text: The document.
        place: Where it came from, for messages.

    Raises:
        ConfigError: With the line and column of a syntax error.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: plain types only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{place}: not valid YAML: {problem}{at}") from error


def dump_yaml(data: Any) -> str:
    """Write plain types as YAML that :func:`parse_yaml` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
