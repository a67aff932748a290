"""Build a prior by name, or load a trained one."""

from __future__ import annotations

import inspect
import os
from typing import Any

from spectok import TokenSpec
from spectok.errors import ConfigError
from spectok.plugins import registry
from spectok.recipes.options import SUPPLIED, validate_options
from spectok_generation.folders import class_of_prior, prior_folder
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
    """Build an untrained prior for a token layout.

    Args:
        name: A registered name, such as ``"gpt"``.
        token_spec: Layout of the tokens.
        num_classes: Number of classes; 0 for a prior without classes.
        tokenizer: Record of the tokenizer; see :func:`spectok_generation.records.tokenizer_record`.
        text: Record of the text encoder, for a prior conditioned on text; see
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
    """Check that a text encoder is given if a prior needs one, and only if it can use one.

    Args:
        name: A registered name.
        given: Whether a text encoder is given.

    Raises:
        ConfigError: If one is missing or unusable.
    """
    cls = registry.get_prior(name)
    if given:
        check_reads_text(name, cls)
    elif cls.needs_text:
        raise ConfigError(f"prior.name: {name} reads texts; give a text encoder (--text)")


def check_reads_text(name: str, cls: type[Prior]) -> None:
    """Check that a prior can be conditioned on text.

    Raises:
        ConfigError: If not; names the priors that can.
    """
    priors = registry.list_registered("prior")
    reading = [
        key for key, prior in priors.items() if "text" in inspect.signature(prior).parameters
    ]
    if "text" not in inspect.signature(cls).parameters:
        raise ConfigError(f"prior.name: {name} reads no text; these do: {', '.join(reading)}")


def load_prior(path: str | os.PathLike[str], *, trust: bool = False) -> Prior:
    """Load a trained prior of any registered class, in eval mode.

    Args:
        path: Directory of the saved model, or of a run that holds it in ``model/``.
        trust: See :meth:`spectok.modeling.SpectokModel.from_pretrained`.

    Raises:
        CheckpointError: If it is missing, no plugin provides its class, or weights do not fit.
    """
    folder = prior_folder(path)
    cls = registry.classes_named("prior", class_of_prior(folder))[-1]
    return cls.from_pretrained(folder, trust=trust)
