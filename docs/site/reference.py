"""Reference pages of Python packages, from what they export and its docstrings."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import griffe

PACKAGES = (
    "spectok",
    "spectok.quantizers",
    "spectok.data",
    "spectok.training",
    "spectok.losses",
    "spectok.nn",
    "spectok.evaluation",
    "spectok.codec",
    "spectok.planning",
    "spectok.testing",
    "spectok_generation",
)
LINE = 88  # characters of a signature on one line

logging.getLogger("griffe").setLevel(logging.ERROR)  # types stand in signatures, not in docstrings


def package_page(package: str) -> str:
    """Return the page of a package: each name it exports, with signature and docstring."""
    module = importlib.import_module(package)
    intro = _markdown(inspect.getdoc(module) or "").split("\n\n")[0]
    names = sorted(module.__all__, key=lambda name: (name.isupper(), name.lower()))
    entries = [_entry(name, getattr(module, name)) for name in names]
    return "\n\n".join([f"# {package}", intro, *filter(None, entries)]) + "\n"


def docstring(value: Any, *, parameters: bool = True) -> str:
    """Return the docstring of a class or function as Markdown, its sections as lists.

    Args:
        value: The class or function.
        parameters: Whether to include the section ``Args``, which :func:`options_table` also shows.
    """
    left_out = () if parameters else (griffe.DocstringSectionKind.parameters,)
    parts = [_section(part) for part in _sections(value) if part.kind not in left_out]
    return "\n\n".join(part for part in parts if part)


def options_table(kind: type) -> str:
    """Return a table of a constructor's options: type and range, default, and what its class says.

    Args:
        kind: A class whose docstring has the section ``Args``.
    """
    said = {
        item.name: _markdown(item.description)
        for part in _sections(kind)
        if part.kind is griffe.DocstringSectionKind.parameters
        for item in part.value
    }
    rows = [
        f"| `{name}` | {_cell(_type(option.annotation))} | {_cell(_default(option))} "
        f"| {_cell(said.get(name, ''), code=False)} |"
        for name, option in inspect.signature(kind).parameters.items()
        if option.kind is not option.VAR_KEYWORD
    ]
    return "\n".join(["| option | type | default | |", "|---|---|---|---|", *rows])


def _entry(name: str, value: Any) -> str:
    if inspect.isclass(value) and issubclass(value, Exception):
        return f"## {name}\n\n{docstring(value)}"
    if inspect.isclass(value):
        parts = [f"## {name}", _signature(name, value), docstring(value), *_members(value)]
        return "\n\n".join(parts)
    if inspect.isfunction(value):
        return "\n\n".join([f"## {name}", _signature(name, value), docstring(value)])
    return "" if name.startswith("__") else f"## {name}\n\n```python\n{name} = {_plain(value)}\n```"


def _members(kind: type) -> Iterator[str]:
    """Yield what a class itself defines for its users, in the order of its source."""
    for name, member in vars(kind).items():
        value = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if name.startswith("_") or not (inspect.getdoc(value) or "").strip():
            continue
        heading = f"### {kind.__name__}.{name}"
        if isinstance(value, property | cached_property):
            yield f"{heading}\n\n{docstring(value)}"
        elif inspect.isfunction(value):
            yield "\n\n".join([heading, _signature(name, value), docstring(value)])


def _signature(name: str, value: Callable[..., Any]) -> str:
    signature = inspect.signature(value)
    given = [_as_written(p, value) for p in signature.parameters.values() if p.name != "self"]
    words, kinds = [_parameter(p) for p in given], [p.kind for p in given]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        words.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    result = signature.return_annotation
    end = ")" if inspect.isclass(value) or result is signature.empty else f") -> {_plain(result)}"
    line = f"{name}({', '.join(words)}{end}"
    if len(line) > LINE:
        line = "\n".join([f"{name}(", *(f"    {word}," for word in words), end])
    return f"```python\n{line}\n```"


def _as_written(parameter: inspect.Parameter, value: Any) -> inspect.Parameter:
    """Return a parameter with the annotation of its field, which pydantic has evaluated."""
    fields = (vars(kind).get("__annotations__", {}) for kind in getattr(value, "__mro__", ()))
    found = next((each[parameter.name] for each in fields if parameter.name in each), None)
    return parameter if found is None else parameter.replace(annotation=found)


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    word = stars + parameter.name
    if parameter.annotation is not parameter.empty:
        word += f": {_plain(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        word += f" = {_default(parameter)}"
    return word


def _plain(annotation: Any) -> str:
    """Return an annotation as it stands in the source."""
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if inspect.isclass(annotation) else repr(annotation)


def _type(annotation: Any) -> str:
    """Return an annotation with the bounds of its ``Field`` as inequalities."""
    text = _plain(annotation)
    found = re.fullmatch(r"Annotated\[(.+?), (?:pydantic\.)?Field\((.*)\)\]", text)
    if not found:
        return text
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = re.findall(r"\b(ge|gt|le|lt)=([^,]+)", found[2])
    return ", ".join([found[1], *(f"{signs[name]} {bound}" for name, bound in bounds)])


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return "required"
    return re.sub(r"<(?:function|class) '?([\w.]+).*>", r"\1", repr(parameter.default))


def _cell(text: str, *, code: bool = True) -> str:
    text = " ".join(text.split()).replace("|", r"\|")
    return f"`{text}`" if code and text and text != "required" else text


def _sections(value: Any) -> list[griffe.DocstringSection]:
    return griffe.Docstring(inspect.getdoc(value) or "").parse("google")


def _section(part: griffe.DocstringSection) -> str:
    if part.kind is griffe.DocstringSectionKind.text:
        return _markdown(part.value)
    if part.kind is griffe.DocstringSectionKind.admonition:
        return f"**{part.title}**: {_markdown(part.value.description)}"
    if part.kind is griffe.DocstringSectionKind.examples:
        return "\n\n".join(f"```pycon\n{text}\n```" for _, text in part.value)
    lines = [_item(item) for item in part.value]
    return "\n".join([f"**{part.kind.value.capitalize()}**", "", *lines])


def _item(item: Any) -> str:
    name = getattr(item, "name", "") or (_plain(item.annotation) if item.annotation else "")
    text = " ".join(_markdown(item.description).split())
    return f"- `{name}`: {text}" if name else f"- {text}"


def _markdown(text: str) -> str:
    """Return a docstring's text with its reStructuredText marks as Markdown's."""
    text = re.sub(r":\w+:`~[\w.]*?(\w+)`", r"`\1`", text)
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)
