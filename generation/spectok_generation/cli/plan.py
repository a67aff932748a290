"""``spectok plan``: what a training needs, before it is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectok.cli.models import AsJson
from spectok.cli.train import Overrides
from spectok.errors import ConfigError, UnknownNameError
from spectok.messages import say

if TYPE_CHECKING:
    from spectok.planning import Row, Stored, Subject
    from spectok.training import TrainConfig


def add_commands(app: typer.Typer) -> None:
    """Add ``spectok plan``."""
    app.command("plan")(plan)


def plan(
    recipe: Annotated[
        str,
        typer.Argument(help="A recipe ('spectok list recipes'), a file, or the key of a model."),
    ],
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="GPUs, one process on each.")] = 1,
    tflops: Annotated[
        float | None,
        typer.Option(
            help="Peak of one GPU, 10¹² operations a second. (default: an A100's in the recipe's "
            "precision: 312 in bf16, 156 in tf32, 19.5 in float32)"
        ),
    ] = None,
    utilisation: Annotated[float, typer.Option(help="Fraction of the peak reached.")] = 0.35,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Shard over the GPUs; priors only.")] = False,
    images: Annotated[
        int | None, typer.Option(min=1, help="Training images, for sizes on disk.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show each number's formula.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell what a training needs: memory per GPU, time and disk; nothing is computed."""
    from spectok.planning import Hardware

    hardware = Hardware(gpus, tflops, utilisation, fsdp)
    subject, stored, config = find(recipe, overrides or [], fsdp)

    from spectok.planning import make_plan, measure_step
    from spectok.planning.plan import to_dict

    cost = measure_step(lambda: subject, config)
    rows = make_plan(cost, config, hardware, stored, images)
    if as_json:
        say(json.dumps({"recipe": recipe, "gpus": gpus, "fsdp": fsdp} | to_dict(rows), indent=2))
    else:
        show(rows, explain)


def find(
    name: str, overrides: list[str], fsdp: bool, device: str = "meta"
) -> tuple[Subject, Stored, TrainConfig]:
    """Return the training that a recipe describes, of a tokenizer or of a prior.

    Args:
        name: What was given on the command line.
        overrides: Settings.
        fsdp: Whether it is to be sharded.
        device: Where untrained models are built.

    Raises:
        ConfigError: If it is neither, or FSDP is wanted for a tokenizer.
        TrainingError: If training would refuse its settings on any machine.
    """
    from spectok.training import load_tokenizer_recipe
    from spectok_generation.prior_recipe import load_prior_recipe

    if is_prior(name, overrides):
        prior = load_prior_recipe(name, overrides)

        from spectok.training.launch import check_settings
        from spectok.training.sharding import check_can_shard

        check_settings(prior.train)
        if fsdp:
            check_can_shard(prior.train)

        from spectok_generation.planning import prior_subject

        return *prior_subject(prior, device), prior.train
    tokenizer = load_tokenizer_recipe(name, overrides)
    if fsdp:
        raise ConfigError(
            "--fsdp: tokenizers are not sharded, because quantizers edit whole codebooks between "
            "steps; leave it out"
        )

    from spectok.planning import Stored, tokenizer_subject
    from spectok.training.launch import check_settings

    check_settings(tokenizer.train)
    subject = tokenizer_subject(tokenizer, device)
    shape: Any = subject.batch["images"].shape
    return subject, Stored(int(shape[1:].numel())), tokenizer.train


def is_prior(name: str, overrides: list[str]) -> bool:
    """Return whether a recipe is one of a prior: by its sections, or as the key of one.

    Raises:
        ConfigError: If it is a recipe of neither kind.
    """
    from spectok.recipes.recipe import read_recipe
    from spectok.training.recipe import TokenizerRecipe
    from spectok_generation.prior_recipe import PriorRecipe

    raw: dict[str, Any] = {}
    for kind in (TokenizerRecipe, PriorRecipe):
        try:
            raw = read_recipe(name, kind)
        except (ConfigError, UnknownNameError):
            if kind is PriorRecipe:
                raise
            continue
        if kind.main in raw and (kind is PriorRecipe or isinstance(raw["tokenizer"], dict)):
            return kind is PriorRecipe
    told = ", ".join(map(str, raw)) or "nothing"
    raise ConfigError(
        f"{Path(name)}: a plan is for a tokenizer or a prior, and this recipe has {told}; see "
        f"'spectok list recipes'"
    )


def show(rows: list[Row], explain: bool) -> None:
    """Print a plan as a table."""
    from spectok.planning.plan import shown

    width = max(len(row.name) for row in rows)
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            say(group)
        value = shown(row.value, row.unit)
        formula = f"  {row.formula}" if explain else ""
        say(f"  {row.name:{width}}  {value:>14}{formula}".rstrip())
