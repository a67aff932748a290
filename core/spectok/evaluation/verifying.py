"""Numbers that are measured again: what a card or a result claims, by its own protocol."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spectok.cards import CARD, Claim, read_claims
from spectok.data import (
    DataConfig,
    ImageDataset,
    OriginalImages,
    build_dataset,
    build_originals,
)
from spectok.errors import CheckpointError, ConfigError, DataError, SpectokError, one_line
from spectok.evaluation.checks import EXACT, Check, all_numbers, tolerance_of, worst_of_lists
from spectok.evaluation.measuring import Evaluation, evaluate
from spectok.evaluation.originals import SIZING, Sizing, evaluate_originals
from spectok.evaluation.protocol import protocol_id
from spectok.evaluation.reference import REFERENCE_IMAGES
from spectok.foreign.opening import open_folder
from spectok.loading import identify, model_folder
from spectok.modeling import model_fingerprint
from spectok.places import home, missing
from spectok.reading import read_json
from spectok.recipes.files import data_of_run
from spectok.recipes.schema import validate_section
from spectok.tokenizer import ImageTokenizer

REPEAT = (
    "--verify measures tokenizers again, and what the card of a prior's folder claims; numbers of "
    "drawn images come again from the same 'spectok eval PRIOR --num-images N'"
)
COLOUR = 3  # channels
MEASURED = "measured"
"""Key of a JSON file that holds a list of claims, as does the header of a card."""


@dataclass
class Claimed:
    """What a card or a JSON file claims of one model.

    Args:
        source: The file.
        model: Folder of the model.
        claims: Each by a protocol of its own.
        contradictions: Where the file contradicts itself.
    """

    source: Path
    model: Path
    claims: list[Claim]
    contradictions: list[str] = field(default_factory=list)


def find_claims(path: str | os.PathLike[str]) -> Claimed:
    """Return what is claimed by a model's folder, its run's folder, its card, or a JSON file.

    Args:
        path: One of these. A JSON file holds a result of ``spectok eval --out``, or the keys
            ``model``, a path, and ``measured``, a list of claims.

    Raises:
        CheckpointError: If there is no claim, or no model that it is about.
    """
    given = Path(home(path))
    if given.suffix == ".json":
        return _claims_of_json(given)
    folder = given.parent if given.name == CARD else Path(model_folder(os.fspath(path)))
    if not folder.is_dir():
        what = f"{given} is" if os.path.exists(given) else f"{missing(path)}; it is"
        raise CheckpointError(
            f"{what} no folder of a model, no card and no JSON file; give one of these"
        )
    try:
        saved = open_folder(folder, None, os.fspath(folder))
        identify(saved)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {REPEAT}") from error
    return claims_of_folder(saved.folder)


def claims_of_folder(folder: Path) -> Claimed:
    """Return what the card in the folder of a model of any kind claims.

    Raises:
        CheckpointError: If there is no card, or it claims nothing.
    """
    card = folder / CARD
    if not card.is_file():
        raise CheckpointError(
            f"{folder} has no {CARD}; 'spectok eval {folder} --card' measures and writes one"
        )
    claims, contradictions = read_claims(card)
    return Claimed(card, folder, claims, contradictions)


def verify(
    claim: Claim,
    tokenizer: ImageTokenizer,
    dataset: ImageDataset | OriginalImages,
    how: Evaluation | None = None,
    on_images: Callable[[int], None] | None = None,
) -> list[Check]:
    """Measure again what a claim says.

    Args:
        claim: What is claimed.
        tokenizer: The model, on the device to run on.
        dataset: The images; see :func:`reference_data`.
        how: Networks and batch size; the seed is the claim's.
        on_images: Called with the number of images done since the last call.

    Raises:
        CheckpointError: If a claimed number needs a network whose weights are not at hand.
        SpectokError: As of :func:`spectok.evaluation.evaluate`.
    """
    how = how or Evaluation()
    seed = claim.protocol.get("seed", 0)
    how = Evaluation(how.batch_size, how.metrics, how.networks, seed if type(seed) is int else 0)
    if isinstance(dataset, OriginalImages):
        sizing = Sizing.from_dict(claim.protocol[SIZING])
        result = evaluate_originals(tokenizer, dataset, sizing, seed=how.seed, on_images=on_images)
    else:
        result = evaluate(tokenizer, dataset, how, on_images)
    for name in claim.values:
        if name in result["not_measured"]:
            raise CheckpointError(f"{name} is claimed, and {result['not_measured'][name]}")
    found = Claim.from_result(result, model_fingerprint(tokenizer), claim.data)
    return compare_claims(claim, replace(found, values=all_numbers(result)))


def compare_claims(claimed: Claim, found: Claim, exact: Sequence[str] = EXACT) -> list[Check]:
    """Compare a claim with what was measured again.

    Args:
        claimed: What is claimed.
        found: The same of the model and the images at hand.
        exact: Names of numbers that are counted, not measured, and must be equal.
    """
    checks = [Check("weights", claimed.weights, found.weights)]
    checks += _protocol_checks(claimed.protocol, found.protocol)
    if claimed.reference_images is not None:
        checks.append(Check(REFERENCE_IMAGES, claimed.reference_images, found.reference_images))
    numbers = (
        Check(name, value, found.values.get(name), tolerance_of(name, value, exact))
        for name, value in claimed.values.items()
    )
    return checks + worst_of_lists(numbers)


def contradiction_checks(claimed: Claimed) -> list[Check]:
    """Return where a file contradicts itself, as checks that fail."""
    return [Check(text, "consistent", "contradiction") for text in claimed.contradictions]


def reference_data(
    claim: Claim, model: Path, path: str | None = None, settings: Mapping[str, Any] | None = None
) -> ImageDataset | OriginalImages:
    """Return the images that a claim is about, with the preprocessing of their data set.

    Args:
        claim: What is claimed.
        model: Folder of the model; the recipe of its run knows where its data is.
        path: Where the images are. None: where the recipe says, or their data set's own place.
        settings: Further settings of the data.

    Raises:
        DataError: If they are not at hand; says what is missing.
    """
    config = validate_section(DataConfig, claim.data | dict(settings or {}), "data")
    if path is None and config.path is None:
        recorded = data_of_run(model)
        there = recorded.get("path") if recorded.get("name") == config.name else None
        path = there if isinstance(there, str) else None
    if path is not None:
        config = config.model_copy(update={"path": path})
    try:
        if SIZING in claim.protocol:
            return build_originals(config, config.channels or COLOUR)
        return build_dataset(config, train=False)
    except (SpectokError, OSError) as error:
        if config.path is not None and os.path.exists(config.path):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        images = f"the reference images {config.name}/{config.split}"
        if path is not None:
            raise DataError(f"{images} are not at {one_line(path)}: {reason}") from error
        raise DataError(f"{images} are not at hand; give them with --data ({reason})") from error


def _claims_of_json(path: Path) -> Claimed:
    content = read_json(path, CheckpointError)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no result: it holds no JSON object")
    name = content.get("model")
    if "prior" in content:
        raise CheckpointError(f"{path} is of a prior; {REPEAT}")
    if not isinstance(name, str):
        raise CheckpointError(f"{path} names no model, so its numbers cannot be measured again")
    undefined: dict[str, Any] = {}
    if MEASURED in content:
        listed = content[MEASURED]
        listed = listed if isinstance(listed, list) else [listed]
    elif isinstance(content.get("metrics"), dict):
        values = all_numbers(content)
        undefined = {name: None for name, value in values.items() if _may_lack(name, value)}
        known = {name: value for name, value in values.items() if name not in undefined}
        listed = [content | {"values": known if content["metrics"] else {}}]
    else:
        raise CheckpointError(f"{path} has neither {MEASURED!r} nor 'metrics'; it claims nothing")
    claims = [Claim.from_dict(one, f"{path}: claim {n}") for n, one in enumerate(listed, 1)]
    if not claims:
        raise CheckpointError(f"{path} claims no numbers")
    claims = [replace(claim, values=claim.values | undefined) for claim in claims]
    return Claimed(path, _find_model(name, path), claims)


def _may_lack(name: str, value: Any) -> bool:
    """Return whether a result says that a number does not exist, as of codes without vectors."""
    return value is None and "distinct" in name


def _find_model(name: str, path: Path) -> Path:
    """Return the folder that a JSON file names: seen from here, or from a folder above the file."""
    for start in (Path(), *path.absolute().parents):
        folder = Path(model_folder(os.fspath(start / name)))
        if (folder / "config.json").is_file():
            return folder
    raise CheckpointError(f"{path} is about the model {name}, which is not here; copy it here")


def _protocol_checks(claimed: Mapping[str, Any], found: Mapping[str, Any]) -> list[Check]:
    """Compare protocols, as far as the claim goes: more networks may be at hand now than then."""
    extractors = claimed.get("extractors", {})
    if not isinstance(extractors, Mapping):
        raise ConfigError(f"the protocol {claimed['id']} has extractors that are no mapping")
    kept = {name: value for name, value in found["extractors"].items() if name in extractors}
    rest = {key: value for key, value in found.items() if key != "id"} | {"extractors": kept}
    rest = {key: value for key, value in rest.items() if key in claimed or key != "features"}
    differing = [
        key for key in {**claimed, **rest} if key != "id" and claimed.get(key) != rest.get(key)
    ]
    checks = [Check(f"protocol: {key}", claimed.get(key), rest.get(key)) for key in differing]
    return [Check("protocol", claimed["id"], protocol_id(rest)), *checks]
