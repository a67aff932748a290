"""What the demo trains and draws, and the check that its comparison is fair."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pydantic import Field

from spectok.errors import ConfigError
from spectok.evaluation.terms import bits_per_image, check_equal, terms_of
from spectok.recipes.recipe import read_recipe
from spectok.recipes.schema import Section, validate_section
from spectok.training.recipe import TokenizerRecipe, load_tokenizer_recipe
from spectok_generation.prior_recipe import PriorRecipe, load_prior_recipe
from spectok_generation.sampling import SamplingOptions

DEFAULT = "demo/demo"
ALIKE = "the demo compares like with like: make them equal in the recipes of its tokenizers"
RESERVED = (
    "seconds",
    "peak_memory_bytes",
    "prior",
    "classifier",
    "samples",
    "installed",
    "stages",
    "machine",
)


class Samples(Section):
    """The images drawn from the prior.

    Args:
        per_class: Images of each class.
        temperature: See :class:`~spectok_generation.SamplingOptions`.
        top_k: See :class:`~spectok_generation.SamplingOptions`.
        top_p: See :class:`~spectok_generation.SamplingOptions`.
    """

    per_class: int = Field(100, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)

    @property
    def options(self) -> SamplingOptions:
        """These settings as options of the sampler."""
        return SamplingOptions(self.temperature, self.top_k, self.top_p)


class ClassifierConfig(Section):
    """Training of the classifier that judges the samples.

    Args:
        steps: Optimiser steps of 64 images.
        learning_rate: Peak learning rate.
    """

    steps: int = Field(400, ge=1)
    learning_rate: float = Field(1e-2, gt=0)


class DemoRecipe(Section):
    """The YAML recipe of a demo.

    Args:
        tokenizers: Name in the report -> recipe or file. The prior learns the tokens of the first.
        prior: Recipe or file; its ``tokenizer`` is filled in.
        samples: The images to draw.
        classifier: The classifier that judges them.
        installed: Trained tokenizers to show on photographs, as far as they are installed.
        expected_seconds: Stage -> rough time, to estimate the time left.
        seed: Seed of all training and sampling.
    """

    tokenizers: dict[str, str] = Field(min_length=1)
    prior: str
    samples: Samples = Samples.model_validate({})
    classifier: ClassifierConfig = ClassifierConfig.model_validate({})
    installed: list[str] = Field(default_factory=list)
    expected_seconds: dict[str, float] = Field(default_factory=dict)
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Plan:
    """A demo with every part validated.

    Args:
        recipe: Recipe of the demo.
        tokenizers: Recipe of each tokenizer; the prior learns the tokens of the first.
        prior: Recipe of the prior; its ``tokenizer`` is the recipe of the first tokenizer.
    """

    recipe: DemoRecipe
    tokenizers: dict[str, TokenizerRecipe]
    prior: PriorRecipe

    @property
    def main(self) -> str:
        """Name of the tokenizer whose tokens the prior learns."""
        return next(iter(self.tokenizers))


def load_plan(name_or_path: str | os.PathLike[str] = DEFAULT) -> Plan:
    """Read the recipe of a demo and every recipe it names.

    Raises:
        ConfigError: If a recipe is invalid, or the comparison would not be fair.
        UnknownNameError: If a recipe or model is unknown.
    """
    recipe = validate_section(DemoRecipe, read_recipe(os.fspath(name_or_path), TokenizerRecipe), "")
    tokenizers = {}
    for label, name in recipe.tokenizers.items():
        if label in RESERVED:
            raise ConfigError(f"tokenizers.{label}: the demo has its own {label!r}; rename it")
        tokenizers[label] = load_tokenizer_recipe(name, [("seed", recipe.seed)])
    first = next(iter(recipe.tokenizers.values()))
    prior = load_prior_recipe(recipe.prior, [("tokenizer", first), ("seed", recipe.seed)])
    if not prior.class_conditional:
        raise ConfigError("class_conditional: false in the prior's recipe; the demo needs classes")
    check_equal_terms(tokenizers)
    return Plan(recipe, tokenizers, prior)


def check_equal_terms(tokenizers: dict[str, TokenizerRecipe]) -> None:
    """Check that tokenizers have the same bits per image, images, steps and batch size.

    Raises:
        ConfigError: If not; names what differs, with the values.
    """
    terms = {
        label: {"bits per image": bits_per_image(recipe), **terms_of(recipe)}
        for label, recipe in tokenizers.items()
    }
    for what in next(iter(terms.values())):
        check_equal(what, {label: found[what] for label, found in terms.items()}, ALIKE)
