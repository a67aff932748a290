"""``spectok eval`` and ``spectok compare``.

``eval`` is a group of commands, one for each kind of model, to which plugins add their own. Words
that begin with none of them are those of the command that takes the model they name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectok.cli.by_model import DEFAULT, ModelCommand, add_group
from spectok.cli.competitors import FOLDER, check_competitors, name_competitors
from spectok.cli.console import (
    load_on_device,
    print_facts,
    print_table,
    say_next,
    this_command,
)
from spectok.cli.models import (
    Model,
    Original,
    Overlap,
    Subfolder,
    Tile,
    check_picture,
    check_sizing,
    pair_rows,
)
from spectok.cli.train import (
    Data,
    name_of_data,
)
from spectok.cli.verifying import check_claims, local_folder, verify_claims
from spectok.errors import ConfigError
from spectok.loading import check_trained
from spectok.messages import count_images, note, progress, say

if TYPE_CHECKING:
    from spectok.evaluation.comparison import Competitor

SHOWN = 8  # images

BatchSize = Annotated[int, typer.Option(min=1, help="Images evaluated at once.")]
DataSettings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the data, such as path=DIR."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Evaluate only this many images.")]
LPIPSWeights = Annotated[
    Path | None, typer.Option(help="Weights of LPIPS's backbone (default: torch's cache).")
]
LPIPSNetwork = Annotated[str, typer.Option(help="LPIPS's backbone: alex, vgg or squeeze.")]
InceptionWeights = Annotated[
    Path | None, typer.Option(help="Weights of FID's Inception (default: torch's cache).")
]
ClassifierFolder = Annotated[
    Path | None,
    typer.Option(help="Trained classifier of such images, to compare sets in its features."),
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = add_group(app, "eval", "Measure a trained model on held-out images.")
    group.command(DEFAULT, cls=ModelCommand)(evaluate)
    app.command("compare")(compare)


def evaluate(
    model: Model,
    overrides: DataSettings = None,
    data: Data = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the data to evaluate on (default: test).")
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = 64,
    classifier: ClassifierFolder = None,
    lpips_weights: LPIPSWeights = None,
    lpips_network: LPIPSNetwork = "alex",
    inception_weights: InceptionWeights = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Picture of originals and reconstructions to write.")
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write the numbers into the card of the model.")
    ] = False,
    original: Original = False,
    tile: Tile = None,
    overlap: Overlap = None,
    pad: Annotated[
        bool,
        typer.Option(help="With --original: pad images that do not fit, or refuse them."),
    ] = True,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Measure again what MODEL's card, or a JSON file given as MODEL, claims; exit "
            "status 1 if it does not hold.",
        ),
    ] = False,
    subfolder: Subfolder = None,
) -> None:
    """Measure what a trained tokenizer keeps of held-out images, and what it spends on them."""
    if picture is not None:
        check_picture(picture, "--picture")
    if out is not None and out.suffix != ".json":
        raise ConfigError(f"--out {out} does not end in .json; give a name such as result.json")
    check_sizing(None, original, tile, overlap)
    own_sizes = original or tile is not None
    if not pad and not own_sizes:
        raise ConfigError("--no-pad is for images at their own sizes; give --original or --tile")
    if own_sizes and (card or picture is not None):
        raise ConfigError(
            "a card, and a picture, are of images at the tokenizer's own size; leave out --card "
            "and --picture ('spectok reconstruct --original' draws one)"
        )
    if verify and (limit is not None or split is not None or card or picture or own_sizes):
        raise ConfigError(
            "--verify measures what is claimed, on the images that were claimed; leave out "
            "--split, --limit, --card, --picture, --original and --tile"
        )
    place = model if subfolder is None else os.path.join(model, subfolder)
    folder = local_folder(place) if card else None
    if verify:
        check_claims(place)
    else:
        check_given(model, data)

    from spectok.data import build_originals
    from spectok.evaluation import Evaluation, Networks, Sizing, evaluate_originals
    from spectok.evaluation import evaluate as run
    from spectok.evaluation.comparison import write_json
    from spectok.evaluation.numbers import record_numbers
    from spectok.evaluation.resizing import dataset_for
    from spectok.evaluation.terms import data_section
    from spectok.modeling import model_fingerprint

    networks = Networks(lpips_weights, lpips_network, inception_weights, classifier)
    how = Evaluation(batch_size, networks=networks)
    if verify:
        verify_claims(place, data, overrides or [], how, out)
        return
    tokenizer = load_on_device(model, subfolder)
    shape = {"channels": tokenizer.image_shape[0], "image_size": tokenizer.image_shape[1]}
    settings = shape | {"split": split or "test", "limit": limit}
    config = held_out(model, data, settings, overrides or [])
    if own_sizes:
        dataset: Any = build_originals(config, tokenizer.image_shape[0])
        sizing = Sizing(tile, overlap, pad)
        with progress("evaluating", len(dataset)) as advance:
            result = evaluate_originals(tokenizer, dataset, sizing, on_images=advance)
    else:
        dataset, config = dataset_for(tokenizer, config)
        with progress("evaluating", len(dataset)) as advance:
            result = run(tokenizer, dataset, how, advance)
    show_measured(result)
    if folder is not None:
        say(f"written into the card: {record_numbers(tokenizer, folder, result, config)}")
    if out is not None:
        facts = {"command": this_command(), "model": place, "weights": model_fingerprint(tokenizer)}
        write_json({**facts, "data": data_section(config), **result}, out)
        say(f"everything measured: {out}")
    if picture is not None:
        save_pairs(tokenizer, dataset, picture)
        say(f"originals above reconstructions: {picture}")
    say_next(["spectok", "compare", place, "OTHER", "--output", "comparison"])


def show_measured(result: dict[str, Any]) -> None:
    """Print what was measured."""
    from spectok.evaluation.report import format_metric

    facts = {name: format_metric(name, value) for name, value in result["metrics"].items()}
    facts["codebook_usage"] = f"{100 * result['codebook_usage']:.1f} %"
    if result["distinct_usage"] not in (None, result["codebook_usage"]):
        facts["distinct_usage"] = f"{100 * result['distinct_usage']:.1f} %, twins counted as one"
        facts["distinct_perplexity"] = f"{result['distinct_perplexity']:,.6g}"
    for key in ("perplexity", "bits_per_image", "bits_per_pixel", "images_per_second", "seconds"):
        if key in result:
            facts[key] = f"{result[key]:,.6g}"
    facts["parameters"] = f"{result['parameters']:,}"
    if "peak_memory_bytes" in result:
        peak = result["peak_memory_bytes"]
        facts["peak_memory"] = "–" if peak is None else f"{peak / 2**20:,.0f} MiB"
    print_facts(facts)
    say(f"{count_images(result['num_images'])}, protocol {result['protocol']['id']}")
    for name, why in result["not_measured"].items():
        note(f"{name} not measured: {why}")


def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY|RECIPE|MODEL... [KEY=VALUE]...",
            help="Tokenizers to train, by key, recipe or file, or folders of trained ones; then "
            "settings for all that are trained.",
        ),
    ],
    data: Data = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of each.")] = None,
    train_batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images per training step.")
    ] = None,
    bits: Annotated[float | None, typer.Option(help="Bits per image each must spend.")] = None,
    allow_unequal_bits: Annotated[
        bool, typer.Option("--allow-unequal-bits", help="Compare at unequal bits per image.")
    ] = False,
    limit: Limit = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the training.")] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder of the comparison (default: runs/compare-DATA).")
    ] = None,
    classifier: ClassifierFolder = None,
    lpips_weights: LPIPSWeights = None,
    lpips_network: LPIPSNetwork = "alex",
    inception_weights: InceptionWeights = None,
) -> None:
    """Train or load several tokenizers on equal terms, and measure them by one protocol."""
    names, own = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    check_competitors(names, data, own)

    given = {"train.steps": steps, "train.batch_size": train_batch_size, "seed": seed}
    overrides = [*own, *((key, value) for key, value in given.items() if value is not None)]
    if train_batch_size is not None:
        overrides.append(("train.gradient_accumulation", 1))
    competitors = name_competitors(names, data, overrides)

    from spectok.evaluation import Evaluation, Networks
    from spectok.evaluation.comparison import check_terms, write_json
    from spectok.evaluation.comparison import compare as run
    from spectok.evaluation.report import remarks, table, write_report

    check_terms(competitors, bits, allow_unequal_bits=allow_unequal_bits)
    held_out_data = common_data(competitors, data, limit)
    folder = Path(output or Path("runs", f"{FOLDER}-{name_of_data(held_out_data)}"))
    networks = Networks(lpips_weights, lpips_network, inception_weights, classifier)
    found = run(
        competitors, held_out_data, folder, Evaluation(networks=networks), num_shown=SHOWN,
        on_stage=lambda what: say(f"\n{what}"),
    )  # fmt: skip
    write_json({"command": this_command(), **found.record}, folder / "comparison.json")
    write_report(found.record, found.rows, folder)
    say("")
    print_table(*table(found.record))
    for remark in remarks(found.record):
        note(remark)
    say(f"table, numbers and picture: {folder}/comparison.md, .json, .png")
    say_next(["spectok", "eval", str(folder / next(iter(competitors)))])


def check_given(model: str, data: str | None) -> None:
    """Check that a trained tokenizer and its images are there, before anything reads them.

    Args:
        model: The argument MODEL.
        data: The argument of ``--data``.

    Raises:
        SpectokError: Says which is not.
    """
    from spectok.data.choice import check_choice

    check_trained(model)
    check_choice(data)


def held_out(model: str, data: str | None, settings: dict[str, Any], overrides: list[str]) -> Any:
    """Return the data to evaluate on: the given data, or that of the tokenizer's training.

    Raises:
        ConfigError: If neither is known.
    """
    from spectok.data import DataConfig
    from spectok.data.choice import data_override
    from spectok.evaluation.terms import recipe_of_run
    from spectok.loading import model_folder
    from spectok.recipes.recipe import apply_overrides, of_data
    from spectok.recipes.schema import validate_section

    if data is not None:
        own: Any = data_override(data)[1]
    elif (recipe := recipe_of_run(Path(model_folder(model)))) is not None:
        own = recipe.data.model_dump(mode="json", exclude_defaults=True)
        own = {"name": recipe.data.name} | own
    else:
        raise ConfigError(f"no recipe beside {model} says what it was trained on; give --data")
    section = apply_overrides({"data": own | settings}, of_data(overrides))
    return validate_section(DataConfig, section["data"], "data")


def common_data(competitors: dict[str, Competitor], data: str | None, limit: int | None) -> Any:
    """Return the held-out data that all competitors are measured on.

    Raises:
        ConfigError: If it is not known.
    """
    recipes = [c.recipe for c in competitors.values() if c.recipe is not None]
    if recipes:
        return recipes[0].data.model_copy(update={"split": "test", "limit": limit})
    first = next(iter(competitors.values()))
    from spectok.loading import load_tokenizer

    shape = load_tokenizer(first.model or first.source).image_shape
    settings = {"channels": shape[0], "image_size": shape[1], "split": "test", "limit": limit}
    return held_out(first.source, data, settings, [])


def save_pairs(tokenizer: Any, dataset: Any, picture: Path) -> None:
    """Save the first images above their reconstructions."""
    import torch

    from spectok.evaluation.comparison import reconstruct
    from spectok.images import enlarge, save_grid

    images = torch.stack([dataset[i]["images"] for i in range(min(4 * SHOWN, len(dataset)))])
    columns = min(len(images), SHOWN)
    rows = pair_rows(images, reconstruct(tokenizer, images), columns)
    save_grid(enlarge(rows), picture, columns)
