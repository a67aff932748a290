"""``create_prior`` and ``load_prior``: names in, checked models out."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from spectok import TokenSpec
from spectok.errors import CheckpointError, ConfigError
from spectok.modeling import read_config
from spectok.plugins import registry
from spectok.recipes.options import SUPPLIED, validate_options
from spectok_generation.priors.base import Prior


def create_prior(
    name: str,
    token_spec: TokenSpec,
    *,
    num_classes: int = 0,
    tokenizer: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    **options: Any,
) -> Prior:
    """Build a fresh prior for a token layout.

    Args:
        name: A registered name, such as ``"gpt"``.
        token_spec: Layout of the tokens.
        num_classes: Number of classes; 0 for a prior without classes.
        tokenizer: Record of the tokenizer; see :func:`spectok_generation.records.tokenizer_record`.
        text: Record of the encoder whose texts it is conditioned on; see
            :attr:`spectok_generation.text.TextEncoder.record`.
        **options: The prior's own options.

    Raises:
        UnknownNameError: If nothing registers the name.
        ConfigError: If an option is unknown, of the wrong type or out of range.
    """
    cls = registry.get_prior(name)
    options = validate_options(cls, options, "prior", SUPPLIED["prior"])
    check_text_is_given(name, text is not None)
    if text is not None:
        options["text"] = text
    return cls(
        token_spec=token_spec.to_dict(), num_classes=num_classes, tokenizer=tokenizer, **options
    )


def check_text_is_given(name: str, given: bool) -> None:
    """Refuse to build a prior with a text encoder that it does not read, or without one it needs.

    Args:
        name: A registered name.
        given: Whether there is a text encoder.

    Raises:
        ConfigError: Says which.
    """
    cls = registry.get_prior(name)
    if given:
        check_reads_text(name, cls)
    elif cls.needs_text:
        raise ConfigError(f"prior.name: {name} reads texts; give a text encoder (--text)")


def check_reads_text(name: str, cls: type[Prior]) -> None:
    """Refuse to condition a prior on text that does not read any.

    Raises:
        ConfigError: Names the priors that do.
    """
    priors = registry.list_registered("prior")
    reading = [
        key for key, prior in priors.items() if "text" in inspect.signature(prior).parameters
    ]
    if "text" not in inspect.signature(cls).parameters:
        raise ConfigError(f"prior.name: {name} reads no text; these do: {', '.join(reading)}")


def load_prior(path: str | os.PathLike[str]) -> Prior:
    """Load a trained prior of any registered class, in eval mode.

    Args:
        path: A directory with the saved model, or a run's directory with it in ``model/``.

    Raises:
        CheckpointError: If there is none, no plugin provides its class, or weights do not fit.
    """
    folder = Path(path)
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not folder.is_dir():
        raise CheckpointError(f"no directory {folder}; give a trained prior, or train one first")
    wanted = read_config(folder).get("_class_name")
    classes = {cls.__name__: cls for cls in registry.list_registered("prior").values()}
    if wanted not in classes:
        raise CheckpointError(
            f"{folder} holds a {wanted}, which no installed plugin provides as a prior; "
            f"installed: {', '.join(sorted(classes))}"
        )
    return classes[wanted].from_pretrained(folder)
