"""The constructor signature is the schema.

A plugin author writes an annotated constructor once; recipes, overrides and ``load_tokenizer``
are validated against it, with one line per problem: the dotted path, the rule, the closest match.

Ranges are written as ``Annotated[int, Field(ge=1)]``; an argument that names another registered
object is written as ``Annotated[str | dict[str, Any], Registered("quantizer")]``.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from spectok.errors import SHOWN, ConfigError, shown
from spectok.recipes.usual_names import suggest


@dataclass(frozen=True)
class Registered:
    """Marks an argument that is the name of a registered object, or ``{name: …, option: …}``.

    Args:
        kind: ``"quantizer"``, ``"tokenizer"``, ``"discriminator"``, ``"prior"`` or ``"dataset"``.
    """

    kind: str


SectionT = TypeVar("SectionT", bound=BaseModel)
QuantizerOption = Annotated[str | dict[str, Any], Registered("quantizer")]


class Section(BaseModel):
    """Base of the typed sections of a recipe: unknown keys and wrong types are errors.

    Numbers are finite, and integers have 64 bits.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, validate_default=True, allow_inf_nan=False
    )


@functools.lru_cache(maxsize=256)
def section_model(function: Callable[..., Any], supplied: tuple[str, ...] = ()) -> type[BaseModel]:
    """Derive a pydantic model from a constructor's signature.

    Args:
        function: A class or function with annotated arguments.
        supplied: Arguments that the caller provides and a recipe may not.
    """
    init = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(inspect.unwrap(init), include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in supplied or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[name] = (_lenient_sequences(hints.get(name, Any)), default)
    return create_model(getattr(function, "__name__", "Options"), __base__=Section, **fields)


def validate_section(
    model: type[SectionT], data: Any, path: str, also: tuple[str, ...] = ()
) -> SectionT:
    """Validate one section; turn pydantic's report into one line per problem.

    Args:
        model: The section.
        data: What was given for it.
        path: Its dotted path, for messages.
        also: Keys beside the section's own, which a slip may have meant.

    Raises:
        ConfigError: With the dotted path, the value and, for a key, the closest known one.
    """
    if unfit := list(_unfit_values(data, path)):
        raise ConfigError(*unfit)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_explain(problem, model, path, also) for problem in error.errors()]
        raise ConfigError(*lines) from error


def _unfit_values(value: Any, path: str) -> Iterator[str]:
    """Yield a problem for each integer that no 64 bits hold, and each text that is no UTF-8."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        yield f"{path}: a number of {len(str(value))} digits does not fit into 64 bits"
    elif isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        yield f"{path}: {shown(value)} is no text in UTF-8"
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _unfit_values(part, join_path(path, key))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _unfit_values(part, path)


def unknown_key(path: str, key: str, known: Iterable[str], also: Iterable[str] = ()) -> ConfigError:
    """Return the error for a key that a section does not have.

    Args:
        path: Dotted path of the section.
        key: The key.
        known: The keys of the section.
        also: Keys beside these, which a slip may have meant.
    """
    known = list(known)
    listing = ", ".join(known) or "none"
    hint = suggest(key, [*known, *also])
    return ConfigError(f"{join_path(path, key)}: unknown key{hint}; known: {listing}")


def _explain(problem: Any, model: type[BaseModel], path: str, also: tuple[str, ...]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section, _, key = join_path(path, where).rpartition(".")
        inside = problem["loc"][:-1]
        return str(unknown_key(section, key, _known_at(model, inside), () if inside else also))
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if problem["type"] == "missing" else f" (got {shown(problem['input'])})"
    return f"{join_path(path, where)}: {message}{given}"


def subsection(model: type[BaseModel], name: Any) -> type[BaseModel] | None:
    """Return the section that a field holds or may hold; None if it holds none."""
    annotation = model.model_fields[name].annotation if name in model.model_fields else None
    for option in (annotation, *typing.get_args(annotation)):
        if inspect.isclass(option) and issubclass(option, BaseModel):
            return option
    return None


def _known_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        section = subsection(model, part)
        if section is None:
            return []
        model = section
    return list(model.model_fields)


def _lenient_sequences(hint: Any) -> Any:
    """Accept a YAML list where a signature says tuple; everything else stays strict."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return Annotated[hint, Field(strict=False)]
    if origin is Annotated:
        return Annotated[(_lenient_sequences(arguments[0]), *arguments[1:])]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_lenient_sequences(argument) for argument in arguments)]  # noqa: UP007
    return hint


def join_path(path: str, key: str) -> str:
    """Return the dotted path of a key in a section; either may be empty."""
    return ".".join(part[:SHOWN] for part in (path, str(key)) if part)
