"""What the demo trains and draws, and the check that its comparison is a fair one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from spectok import load_tokenizer
from spectok.errors import ConfigError
from spectok.recipes.recipe import read_recipe
from spectok.recipes.schema import Section, validate_section
from spectok.training.recipe import TokenizerRecipe, load_tokenizer_recipe
from spectok_generation.prior_recipe import PriorRecipe, load_prior_recipe
from spectok_generation.sampling import SamplingOptions

DEFAULT = "demo/demo"
RESERVED = ("seconds", "peak_memory_bytes", "prior", "samples", "stages", "machine")


class Samples(Section):
    """Which images are drawn from the prior.

    Args:
        per_class: Images of each class.
        temperature: See :class:`~spectok_generation.SamplingOptions`; so for the next two.
        top_k: Keep only the k most likely codes.
        top_p: Keep the fewest most likely codes whose probabilities reach p.
    """

    per_class: int = Field(100, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)

    @property
    def options(self) -> SamplingOptions:
        """What the sampler takes."""
        return SamplingOptions(self.temperature, self.top_k, self.top_p)


class ClassifierConfig(Section):
    """How the classifier that judges the samples is trained.

    Args:
        epochs: Passes over the training images.
    """

    epochs: int = Field(15, ge=1)


class DemoRecipe(Section):
    """The demo as it is written in YAML.

    Args:
        tokenizers: Name in the report -> recipe or file. The prior learns the tokens of the first.
        prior: Recipe or file; its ``tokenizer`` is filled in.
        samples: What to draw.
        classifier: What judges it.
        expected_seconds: Stage -> rough time, from which the time left is reckoned.
        seed: Seed of everything that is drawn.
    """

    tokenizers: dict[str, str] = Field(min_length=1)
    prior: str
    samples: Samples = Samples.model_validate({})
    classifier: ClassifierConfig = ClassifierConfig.model_validate({})
    expected_seconds: dict[str, float] = Field(default_factory=dict)
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Plan:
    """A demo whose every part is validated.

    Args:
        recipe: The demo.
        tokenizers: Recipe of each tokenizer; the first is the one whose tokens the prior learns.
        prior: Recipe of the prior, with the first tokenizer's recipe in place of a folder.
    """

    recipe: DemoRecipe
    tokenizers: dict[str, TokenizerRecipe]
    prior: PriorRecipe

    @property
    def main(self) -> str:
        """Name of the tokenizer whose tokens the prior learns."""
        return next(iter(self.tokenizers))


def load_plan(name_or_path: str | os.PathLike[str] = DEFAULT) -> Plan:
    """Read a demo's recipe and everything that it names.

    Raises:
        ConfigError: If a recipe is wrong, or the tokenizers would not be compared on equal terms.
        UnknownNameError: If something has no such name.
    """
    recipe = validate_section(DemoRecipe, read_recipe(os.fspath(name_or_path), TokenizerRecipe), "")
    tokenizers = {}
    for label, name in recipe.tokenizers.items():
        if label in RESERVED:
            raise ConfigError(f"tokenizers.{label}: metrics.json has its own {label!r}; rename it")
        tokenizers[label] = load_tokenizer_recipe(name, [("seed", recipe.seed)])
    first = next(iter(recipe.tokenizers.values()))
    prior = load_prior_recipe(recipe.prior, [("tokenizer", first), ("seed", recipe.seed)])
    if not prior.class_conditional:
        raise ConfigError("class_conditional: false in the prior's recipe; the demo needs classes")
    check_equal_terms(tokenizers)
    return Plan(recipe, tokenizers, prior)


def check_equal_terms(tokenizers: dict[str, TokenizerRecipe]) -> None:
    """Refuse to compare tokenizers that see, spend or train differently.

    Raises:
        ConfigError: Names what differs, and by how much.
    """
    terms: dict[str, Callable[[TokenizerRecipe], Any]] = {
        "bits per image": bits_per_image,
        "images": lambda recipe: recipe.data.model_dump(mode="json", exclude_defaults=True),
        "steps": lambda recipe: recipe.train.steps,
        "images per step": images_per_step,
    }
    for what, read in terms.items():
        values = {label: read(recipe) for label, recipe in tokenizers.items()}
        if any(value != next(iter(values.values())) for value in values.values()):
            listing = ", ".join(f"{label} {value}" for label, value in values.items())
            raise ConfigError(
                f"tokenizers: {what} differ ({listing}); the demo compares like with like: make "
                f"them equal in the recipes"
            )


def bits_per_image(recipe: TokenizerRecipe) -> float:
    """Return what the tokens of one image take."""
    options = {key: value for key, value in recipe.tokenizer.items() if key != "name"}
    with torch.device("meta"):  # the layout alone, without weights
        return load_tokenizer(recipe.tokenizer["name"], **options).token_spec.bits_per_image


def images_per_step(recipe: TokenizerRecipe) -> int:
    """Return how many images one process takes per optimiser step."""
    return recipe.train.batch_size * recipe.train.gradient_accumulation
