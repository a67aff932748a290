"""Which settings of a run may change when it goes on; nothing here imports torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from spectok.data.data_config import DataConfig
from spectok.errors import ConfigError
from spectok.training.train_config import FREE_TO_CHANGE, TrainConfig

FREE_SETTINGS = {
    "output",
    "losses.perceptual.weights",  # a path on this machine
    *(f"train.{name}" for name in FREE_TO_CHANGE),
}

PLACES = ("data.path", "tokenizer", "tokens", "text.encoder", "text.pretrained")
"""Where that lies which a run builds on: it may move, as its content is compared by fingerprint."""

SETTLED = ("train.mixed_precision",)
"""Settings whose ``auto`` keeps what the run has."""


def check_same_run(
    recorded: Mapping[str, Any],
    current: Mapping[str, Any],
    places: Collection[str] = PLACES,
) -> None:
    """Refuse to resume with settings that would make it a different run.

    A setting that is None equals one that is missing, and one of ``train`` or ``data`` that is
    missing equals its default, so a run that was started before a setting existed still resumes.

    Args:
        recorded: The recipe in the checkpoint.
        current: The recipe of the run that wants to resume.
        places: Settings that may name another place; whether that holds the same is not checked.

    Raises:
        ConfigError: One line per setting that differs.
    """
    old, new = flatten(json.loads(json.dumps(recorded))), flatten(json.loads(json.dumps(current)))
    old = with_later_options(old, new)
    differing = [
        f"{name}: the run to resume has {old.get(name)!r}, not {new.get(name)!r}; set it back, or "
        f"start a new run in another output folder"
        for name in sorted(old.keys() | new.keys())
        if name not in FREE_SETTINGS
        and old.get(name) != new.get(name)
        and not (name in places and _are_given(old.get(name), new.get(name)))
        and not (name in SETTLED and new.get(name) == "auto")
    ]
    if differing:
        raise ConfigError(*differing)


def with_later_options(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings with those that came later, which are at what was done before.

    Args:
        recorded: Dotted name -> setting, as a run had them.
        current: The same of this version; options of ``train`` and ``data`` that the run lacks are
            taken from their defaults, since a later option does nothing by default.
    """
    sections = {"train": TrainConfig, "data": DataConfig}
    defaults = {name: of.model_validate({}) for name, of in sections.items()}
    known = flatten({name: of.model_dump(mode="json") for name, of in defaults.items()})
    return {name: known[name] for name in known.keys() & current.keys()} | dict(recorded)


def check_samples_per_step(recorded: Mapping[str, Any], samples: int) -> None:
    """Refuse another number of samples per step than a run had: its order of the data would change.

    Args:
        recorded: The manifest of the checkpoint to go on from.
        samples: Samples per step of all processes, as the run wants to go on.

    Raises:
        ConfigError: If the numbers differ.
    """
    if recorded["samples_per_step"] != samples:
        raise ConfigError(
            f"the run to resume took {recorded['samples_per_step']} samples per step, this one "
            f"takes {samples}; train.batch_size x train.gradient_accumulation "
            f"x processes must stay the same (it had {recorded['num_processes']} processes)"
        )


def check_steps_taken(taken: int, steps: int) -> None:
    """Refuse to end a run before a step that it has taken.

    Args:
        taken: Steps that the run has taken.
        steps: How many it is to take in all.

    Raises:
        ConfigError: If that is fewer.
    """
    if steps < taken:
        raise ConfigError(
            f"train.steps: {steps} is less than the {taken} steps that the run to resume has "
            f"taken; give more, or start a new run in another output folder"
        )


def _are_given(*places: Any) -> bool:
    return all(isinstance(place, str) for place in places)


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{path}.{key}" if path else str(key)
        flat |= flatten(value, name) if isinstance(value, Mapping) and value else {name: value}
    return flat
