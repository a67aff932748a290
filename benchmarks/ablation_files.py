"""The declarative files of ``ablations.py``: which trainings are compared, and for which claims."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from spectok.errors import ConfigError, UnknownNameError, did_you_mean
from spectok.evaluation.terms import bits_per_image, check_equal, terms_of
from spectok.recipes.schema import Section, validate_section
from spectok.recipes.yaml12 import read_yaml
from spectok.training import TokenizerRecipe, load_tokenizer_recipe

FOLDER = Path(__file__).parent / "ablations"
Start = Literal["random", "data", "kmeans"]
INCIDENTAL = {
    "train.log_every": 20,
    "train.save_every": 200,
    "train.sample_every": None,
    "train.keep_last": 1,
}


class Variant(Section):
    """One side of a comparison.

    Args:
        settings: Overrides of the recipe, after those that are common to all variants.
        recipe: The recipe to start from. None: that of the file.
        group: Variants of one group spend equal bits.
        family: Variants of one family share a searched learning rate. None: the tokenizer's name.
        start: Where the codes start: as the quantizer draws them, at vectors of the untrained
            encoder, or at their k-means. The other weights are the same in all three cases.
        note: What the reader of the table must know.
    """

    settings: dict[str, Any] = Field(default_factory=dict)
    recipe: str | None = None
    group: str = "all"
    family: str | None = None
    start: Start = "random"
    note: str | None = None


class Ablation(Section):
    """A file: trainings that differ in what their settings name, and in nothing else.

    Args:
        about: What is asked, and what is held equal.
        claims: The rows of ``docs/claims.md`` that it serves.
        recipe: The recipe that variants start from.
        common: Overrides for all variants.
        seeds: Trainings of each variant, with the seeds 0, 1, ….
        rates: Learning rates to search. For each family, its first variant is trained with each
            of them from seed 0; the one with the least training error over the last fifth of the
            steps serves the whole family. Empty: the rates of the recipes.
        held_out: Test images. None: all.
        measures: What is measured besides: ``"bands"``, the error of rings of frequencies;
            ``"prefixes"``, what the first 1, 2, 4, … tokens decode to; ``"maps"``, how alike the
            feature maps of an image are, of the first 8 tokens and of all.
        variants: Name -> variant.
    """

    about: str
    claims: list[str] = Field(min_length=1)
    recipe: str
    common: dict[str, Any] = Field(default_factory=dict)
    seeds: int = Field(3, ge=1)
    rates: list[float] = Field(default_factory=list)
    held_out: int | None = Field(None, ge=1)
    measures: list[Literal["bands", "maps", "prefixes"]] = Field(default_factory=list)
    variants: dict[str, Variant] = Field(min_length=1)

    def settings_of(self, name: str) -> dict[str, Any]:
        """Return all overrides of a variant, as written."""
        return self.common | self.variants[name].settings

    def recipe_of(self, name: str, more: dict[str, Any]) -> TokenizerRecipe:
        """Return the recipe of a variant.

        Args:
            name: The variant.
            more: Further overrides: the seed, the learning rate, the place of the data.

        Raises:
            ConfigError: Names the variant, and what is wrong with its settings.
        """
        overrides = self.settings_of(name) | INCIDENTAL | more
        try:
            return load_tokenizer_recipe(
                self.variants[name].recipe or self.recipe, overrides.items()
            )
        except ConfigError as error:
            problems = (f"variants.{name}: {problem}" for problem in error.problems)
            raise ConfigError(*problems) from error

    def family_of(self, name: str) -> str:
        """Return which variants share a learning rate with this one."""
        return self.variants[name].family or self.recipe_of(name, {}).tokenizer["name"]

    def check(self) -> None:
        """Check that all variants load, and are compared on equal terms.

        Raises:
            ConfigError: Says what differs.
        """
        recipes = {name: self.recipe_of(name, {}) for name in self.variants}
        terms = {name: terms_of(recipe) for name, recipe in recipes.items()}
        for what in ("images", "steps", "images per step"):
            found = {name: of[what] for name, of in terms.items()}
            check_equal(what, found, "the variants of a file are trained alike")
        for group in {variant.group for variant in self.variants.values()}:
            bits = {
                name: bits_per_image(recipe)
                for name, recipe in recipes.items()
                if self.variants[name].group == group
            }
            check_equal("bits per image", bits, "give variants of unequal bits a 'group' each")
        slugs = {slug(name): name for name in self.variants}
        if len(slugs) < len(self.variants):
            twice = next(name for name in self.variants if slugs[slug(name)] != name)
            raise ConfigError(
                f"variants.{twice}: has the same folder as {slugs[slug(twice)]!r}; rename it"
            )


def load_ablation(name: str) -> tuple[str, Ablation]:
    """Read a file, and check what it compares; see :func:`read_ablation`.

    Raises:
        ConfigError: If variants do not load, or are not compared on equal terms.
    """
    stem, ablation = read_ablation(name)
    ablation.check()
    return stem, ablation


def read_ablation(name: str) -> tuple[str, Ablation]:
    """Read a file.

    Args:
        name: The name of a file in ``benchmarks/ablations``, or the path of a YAML file.

    Returns:
        Its name, and its content.

    Raises:
        UnknownNameError: If there is no such file.
        ConfigError: If its content is not valid.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if path.parent == FOLDER and not path.is_file():
        raise UnknownNameError("ablation", name, list_ablations())
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: an ablation is a mapping with the key 'variants'")
    return path.stem, validate_section(Ablation, raw, "")


def list_ablations() -> list[str]:
    """Return the names of the files that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def check_known(names: list[str], ablation: Ablation) -> None:
    """Refuse a variant that there is not.

    Raises:
        ConfigError: Names the closest one.
    """
    for name in names:
        if name not in ablation.variants:
            listing = ", ".join(map(repr, ablation.variants))
            close = did_you_mean(name, ablation.variants)
            raise ConfigError(f"no variant {name!r}{close}; there are {listing}")


def slug(name: str) -> str:
    """Return a variant's name as the name of a folder."""
    return re.sub(r"\W+", "_", name).strip("_")
