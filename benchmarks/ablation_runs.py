"""Single runs of ``ablations.py``: trained unless they are there, and measured."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from ablation_files import Ablation, Start, slug
from spectra import BandErrors
from torch import Tensor

from spectok import load_tokenizer, messages
from spectok.data import ImageDataset, build_dataset
from spectok.errors import CheckpointError, ConfigError, TrainingError
from spectok.evaluation import evaluate_reconstruction
from spectok.evaluation.comparison import check_run, is_finished
from spectok.evaluation.protocol import make_protocol
from spectok.evaluation.terms import seconds_of_run
from spectok.machine import describe_machine
from spectok.metrics import psnr
from spectok.tokenizer import ImageTokenizer
from spectok.training import TokenizerRecipe, train_tokenizer
from spectok.training.log import read_log
from spectok.training.tokenizer import build
from spectok.writing import write_text

STANDARD = ("psnr", "ssim", "mse")
USAGE = ("distinct_usage", "distinct_perplexity", "codebook_usage", "perplexity")
NUMBERS = (*STANDARD, *USAGE, "bits_per_image", "parameters")
SEED = 0  # of what a tokenizer draws while it is measured, if it draws
START_IMAGES = 4096
FEW_IMAGES = 500  # where images are decoded many times, or kept
FIRST_MAPS = 8
BATCH_SIZE = 64
SEED_FOLDER = re.compile(r"seed-(\d+)")
MEASURED, REPLACED = "measured.json", ".replaced"


class Runs:
    """The runs of one file.

    Args:
        ablation: The file.
        folder: Where runs are kept.
        more: Overrides that do not change what is compared, such as where the data is.
    """

    def __init__(self, ablation: Ablation, folder: Path, more: dict[str, Any]):
        self.ablation, self.folder, self.more = ablation, folder, more
        self.families = {name: ablation.family_of(name) for name in ablation.variants}
        self.searched: dict[str, dict[str, float]] = {}
        self._recipes: dict[tuple[str, int, float | None], TokenizerRecipe] = {}

    def recipe(self, name: str, seed: int, rate: float | None) -> TokenizerRecipe:
        """Return the recipe of a run."""
        key = (name, seed, rate)
        if key not in self._recipes:
            self._recipes[key] = self._load(name, seed, rate)
        return self._recipes[key]

    def _load(self, name: str, seed: int, rate: float | None) -> TokenizerRecipe:
        more = self.more | {"seed": seed}
        start = self.ablation.variants[name].start
        if rate is not None:
            more["train.learning_rate"] = rate
        if start != "random":
            more["init_from"] = str(self.folder / slug(name) / f"start-{start}-seed-{seed}")
        return self.ablation.recipe_of(name, more)

    def place(self, name: str, seed: int, rate: float | None) -> Path:
        """Return the folder of a run."""
        at = "" if rate is None else f"-rate-{rate:g}"
        return self.folder / slug(name) / f"seed-{seed}{at}"

    def seeds(self, name: str) -> list[int]:
        """Return the seeds that a variant has folders of."""
        found = (SEED_FOLDER.match(path.name) for path in (self.folder / slug(name)).glob("seed-*"))
        return sorted({int(match[1]) for match in found if match})

    def train(self, name: str, seed: int, rate: float | None) -> Path:
        """Train a run, go on with it, or leave it as it is if it is finished.

        A run of another recipe is put aside, with ``.replaced`` after its name.
        """
        recipe, folder = self.recipe(name, seed, rate), self.place(name, seed, rate)
        if not is_same(recipe, folder):
            aside = folder.with_name(folder.name + REPLACED)
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
        if not is_finished(folder):
            if recipe.init_from is not None:
                start = self.ablation.variants[name].start
                write_start(recipe.model_copy(update={"init_from": None}), start, recipe.init_from)
            with messages.silenced():
                train_tokenizer(recipe, folder, resume="auto")
        return folder

    def rate_of(self, name: str, *, train: bool = True) -> float | None:
        """Return the learning rate of a variant's family, searched for if the file says so.

        Args:
            name: The variant.
            train: Whether to train what the search needs.

        Raises:
            LookupError: If runs are missing and ``train`` is off.
        """
        if not self.ablation.rates:
            return None
        family = self.families[name]
        if family not in self.searched:
            first = next(v for v, of in self.families.items() if of == family)
            errors = {}
            for rate in self.ablation.rates:
                if not train and not self.has(first, 0, rate):
                    raise LookupError(f"the search of {family} is not finished")
                errors[f"{rate:g}"] = self.training_error(first, rate)
            self.searched[family] = errors
        errors = self.searched[family]
        return float(min(errors, key=lambda rate: errors[rate]))

    def training_error(self, name: str, rate: float) -> float:
        """Return the mean error over the last fifth of a training; infinite if it diverged."""
        try:
            records = read_log(self.train(name, 0, rate) / "log.jsonl")
        except TrainingError:
            return float("inf")
        last = records[-max(1, len(records) // 5) :]
        return sum(record["loss/reconstruction"] for record in last) / len(last)

    def has(self, name: str, seed: int, rate: float | None) -> bool:
        """Return whether a run is finished, with this recipe."""
        folder = self.place(name, seed, rate)
        return is_finished(folder) and is_same(self.recipe(name, seed, rate), folder)

    def measure(self, name: str, seed: int, rate: float | None) -> dict[str, Any]:
        """Return what was measured of a finished run; measure it if that is not written yet."""
        folder, recipe = self.place(name, seed, rate), self.recipe(name, seed, rate)
        asked = {"held_out": self.ablation.held_out, "measures": self.ablation.measures}
        path = folder / MEASURED
        if path.is_file() and (found := json.loads(path.read_text()))["asked"] == asked:
            return found
        test = {"split": "test", "limit": self.ablation.held_out}
        held_out = build_dataset(recipe.data.model_copy(update=test), train=False)
        model = load_tokenizer(folder / "model").eval()
        bands = {"bands": BandErrors()} if "bands" in self.ablation.measures else {}
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            result = evaluate_reconstruction(model, held_out, metrics=STANDARD, more=bands)
        numbers = {key: result[key] for key in NUMBERS}
        numbers |= {"seconds": seconds_of_run(folder)} | result.get("bands", {})
        if "prefixes" in self.ablation.measures:
            numbers |= prefix_psnr(model, held_out)
        if "maps" in self.ablation.measures:
            numbers |= map_cosines(model, held_out)
        protocol = make_protocol(held_out, str(model.dtype).removeprefix("torch."), SEED, {})
        found = {"asked": asked, "protocol": protocol, "machine": describe_machine()}
        known = {key: value for key, value in numbers.items() if value is not None}
        found |= {"numbers": {key: float(f"{value:.6g}") for key, value in known.items()}}
        write_text(path, json.dumps(found, indent=1) + "\n", CheckpointError)
        return found


def is_same(recipe: TokenizerRecipe, folder: Path) -> bool:
    """Return whether a folder holds a run of this recipe, or none."""
    try:
        check_run(recipe, folder)
    except ConfigError:
        return False
    return True


def write_start(recipe: TokenizerRecipe, start: Start, folder: str) -> None:
    """Write an untrained model whose codes lie on the data; the rest is as training draws it.

    Args:
        recipe: The run that is to start from it.
        start: ``"data"``: codes are vectors of training images. ``"kmeans"``: they are the centres
            of these vectors, after ten rounds.
        folder: Where to write it.

    Raises:
        ConfigError: If there are fewer vectors than codes.
    """
    model: Any = build(recipe.tokenizer, recipe.seed).eval()
    dataset = build_dataset(recipe.data, train=False)
    images = stack(dataset, range(min(START_IMAGES, len(dataset))))
    with torch.no_grad():
        z = [model.token_space.to_vectors(model.encode_latents(part)) for part in images.split(64)]
        vectors = model.quantizer.by_codebook(torch.cat(z))  # (G, P, D)
        codes = model.quantizer.codebook
        if vectors.shape[1] < codes.shape[1]:
            raise ConfigError(
                f"start {start!r} needs {codes.shape[1]} vectors per codebook, and {len(images)} "
                f"images give {vectors.shape[1]}; take more images or smaller codebooks"
            )
        for book, of_book in zip(codes, vectors):
            book.copy_(choose_codes(of_book, len(book), start, recipe.seed))
    model.save_pretrained(folder)


def choose_codes(vectors: Tensor, count: int, start: Start, seed: int) -> Tensor:
    """Return vectors drawn without replacement, or their k-means from there."""
    rows = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:count]
    drawn = vectors[rows]
    if start == "data":
        return drawn
    from sklearn.cluster import KMeans

    options: dict[str, Any] = {"init": drawn.numpy(), "n_init": 1, "max_iter": 10}
    fitted = KMeans(count, **options).fit(vectors.numpy())
    return torch.from_numpy(fitted.cluster_centers_).to(vectors.dtype)


@torch.no_grad()
def prefix_psnr(model: ImageTokenizer, dataset: ImageDataset) -> dict[str, float]:
    """Return the PSNR of images decoded from their first 1, 2, 4, … tokens.

    Two ways to leave out the others are taken: ``first k`` as an ordered model decodes, with zeros
    in their place; ``first k, others at their mean``, which an unordered model was not trained for
    either, but which is the best that one can do without the images.
    """
    count, size = min(FEW_IMAGES, len(dataset)), model.token_spec.num_tokens
    images = stack(dataset, range(count)).split(BATCH_SIZE)
    vectors = [model.embed(model.encode(batch)) for batch in images]
    mean = torch.cat(vectors).mean(0)
    found = {}
    for k in sorted({*(2**i for i in range(size.bit_length()) if 2**i < size), size}):
        zeros, means = [], []
        for batch, z_q in zip(images, vectors):
            first = torch.arange(size) < k
            keep = torch.full((len(batch),), k)
            latents = model.token_space.to_latents(z_q, keep)
            zeros.append(psnr(batch, model.decoder(latents)))
            filled = torch.where(first[:, None], z_q, mean)
            means.append(psnr(batch, model.decoder(model.token_space.to_latents(filled))))
        found[f"first {k}"] = float(torch.cat(zeros).mean())
        found[f"first {k}, others at their mean"] = float(torch.cat(means).mean())
    return found


@torch.no_grad()
def map_cosines(model: ImageTokenizer, dataset: ImageDataset) -> dict[str, float]:
    """Return the mean absolute cosine between two feature maps of one image; 0 is orthogonal.

    The maps are the channels of the latents, each less its mean, so that a constant says nothing.
    """
    images = stack(dataset, range(min(FEW_IMAGES, len(dataset)))).split(BATCH_SIZE)
    maps = torch.cat([model.encode_latents(batch).flatten(2) for batch in images])  # (N, C, H·W)
    directions = torch.nn.functional.normalize(maps - maps.mean(2, keepdim=True), dim=2)
    cosines = (directions @ directions.mT).abs().mean(0)  # (C, C)
    found = {}
    for name, count in {f"first {FIRST_MAPS}": FIRST_MAPS, "all": len(cosines)}.items():
        pairs = torch.triu_indices(count, count, 1).unbind()
        found[f"cosine of {name} maps"] = float(cosines[pairs].mean())
    return found


def stack(dataset: ImageDataset, rows: range) -> Tensor:
    """Return images of a data set, (N, C, H, W)."""
    return torch.stack([dataset[i]["images"] for i in rows])
