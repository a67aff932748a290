"""Options of registered objects, checked against their constructors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from spectok.errors import ConfigError, UnknownNameError, shown
from spectok.plugins import registry
from spectok.recipes.schema import (
    Registered,
    join_path,
    section_model,
    unknown_key,
    validate_section,
)

SUPPLIED = {
    "quantizer": ("dim", "num_tokens", "codebook_size"),
    "discriminator": ("image_shape",),
    "prior": ("token_spec", "num_classes", "tokenizer", "text"),
}


def validate_named(kind: str, value: Any, path: str = "") -> dict[str, Any]:
    """Validate ``"name"`` or ``{name: …, option: …}`` of a registered object; fill in defaults.

    Args:
        kind: ``"quantizer"``, ``"tokenizer"``, ``"discriminator"``, ``"prior"``.
        value: What the recipe or caller gave.
        path: Dotted path of the section, for messages; by default the kind.

    Returns:
        A plain dict with ``name`` and every option.

    Raises:
        ConfigError: One line per problem.
        UnknownNameError: If nothing registers the name.
    """
    path = path or kind
    options = {"name": value} if isinstance(value, str) else value
    if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
        raise ConfigError(
            f"{path}: needs a name, or a mapping with the key 'name' (got {shown(value)})"
        )
    name, rest = options["name"], {k: v for k, v in options.items() if k != "name"}
    try:
        target = registry.get_registered(kind, name)
    except UnknownNameError as error:
        raise ConfigError(f"{path}.name: {error}") from error
    return {"name": name} | validate_options(
        target, rest, path, SUPPLIED.get(kind, ()), also=("name",)
    )


def validate_options(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    path: str,
    supplied: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Validate keyword options against a constructor's signature; fill in defaults.

    Args:
        function: The class, or a function.
        options: What was given.
        path: Dotted path of the section, for messages.
        supplied: Arguments that the caller provides and a recipe may not.
        also: Keys beside the options, which a slip may have meant.

    Raises:
        ConfigError: One line per problem, each with its dotted path.
    """
    renamed = getattr(function, "renamed_options", {})
    current = {renamed.get(key, key): value for key, value in options.items()}
    if len(current) < len(options):
        twice = [key for key in options if renamed.get(key, key) != key and renamed[key] in options]
        raise ConfigError(
            f"{join_path(path, twice[0])}: is now called {renamed[twice[0]]!r}, which is given too"
        )
    return validate_registered(section_model(function, supplied), current, path, also)


def check_keys(
    options: Mapping[str, Any],
    path: str,
    known: Sequence[str] | None,
    supplied: tuple[str, ...] = (),
    renamed: Iterable[str] = (),
) -> None:
    """Check that a class has options of these names, without the class.

    Args:
        options: ``name`` and the options.
        path: Dotted path of the section, for messages.
        known: The arguments of its constructor; None if they are not known.
        supplied: Arguments that the caller provides and a recipe may not.
        renamed: Earlier names of options, which still work.

    Raises:
        ConfigError: One line per unknown key.
    """
    if known is None:
        return
    allowed = [key for key in known if key not in supplied]
    wrong = [key for key in options if key not in {"name", *allowed, *renamed}]
    if wrong:
        raise ConfigError(*(str(unknown_key(path, key, allowed, ("name",))) for key in wrong))


def validate_registered(
    model: type[BaseModel], options: Mapping[str, Any], path: str, also: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Validate a section and the registered objects that its fields name; fill in defaults.

    Args:
        model: The section.
        options: What was given for it.
        path: Its dotted path, for messages.
        also: Keys beside its fields, which a slip may have meant.

    Raises:
        ConfigError: One line per problem, each with its dotted path.
    """
    resolved = validate_section(model, _with_default_names(model, options), path, also)
    dumped = resolved.model_dump(mode="json")
    for name, field in model.model_fields.items():
        for marker in field.metadata:
            if isinstance(marker, Registered) and dumped[name] is not None:
                dumped[name] = validate_named(marker.kind, dumped[name], join_path(path, name))
    return dumped


def keep_earlier_options(
    kind: str, options: Mapping[str, Any], recorded: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a model's options, changed to go on with a run that an earlier version began.

    An option that the earlier version lacked, and that is at its default now, gets the value with
    which the class builds what that version built.

    Args:
        kind: ``"tokenizer"`` or ``"prior"``.
        options: ``name`` and every option, as :func:`validate_named` returns them.
        recorded: The same section in the recipe that the run recorded; may be empty.
    """
    target = registry.get_registered(kind, options["name"])
    added = getattr(target, "added_options", {})
    fields = section_model(target, SUPPLIED.get(kind, ())).model_fields
    return dict(options) | {
        key: value
        for key, value in added.items()
        if recorded.get("name") == options["name"]
        and key not in recorded
        and options.get(key, fields[key].default) == fields[key].default
    }


def _with_default_names(model: type[BaseModel], options: Mapping[str, Any]) -> dict[str, Any]:
    """Take options without a name, such as ``quantizer: {decay: 0.9}``, for the default's."""
    named = dict(options)
    for name, field in model.model_fields.items():
        if any(isinstance(marker, Registered) for marker in field.metadata):
            default = {"name": field.default} if isinstance(field.default, str) else field.default
            given = named.get(name)
            if isinstance(given, Mapping) and isinstance(default, Mapping) and "name" in default:
                named[name] = {"name": default["name"]} | dict(given)
    return named


def upgrade_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resolved recipe of an earlier version, its models in the options of this one.

    Options that it lacks, those of a quantizer inside included, are at what ``added_options`` of
    :class:`spectok.modeling.SpectokModel` says, or else at their defaults; see ``renamed_options``
    there too. An option that is no more stays as it is.
    """
    sections = dict(recipe)
    for kind in ("tokenizer", "prior"):
        section = sections.get(kind)
        if isinstance(section, Mapping):
            name = section.get("name")
            cls = registry.get_registered(kind, name) if name in registry.names(kind) else None
            sections[kind] = upgraded = getattr(cls, "upgraded", dict)(section)
            with contextlib.suppress(ConfigError):
                sections[kind] = validate_named(kind, upgraded)
    return sections
