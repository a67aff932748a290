"""The demo: train tokenizers on equal terms, train a prior, sample, measure, write the results.

images ── train_tokenizer ──> models/<each tokenizer>/
images ── train_prior on the first one's tokens ──> models/prior/
prior  ── sample_tokens, decode_tokens ──> new images
images ── train_classifier ──> judge of the new images
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectok import ImageTokenizer, load_tokenizer
from spectok.data import DataConfig, build_dataset
from spectok.errors import CheckpointError, ConfigError, DataError
from spectok.evaluation import (
    ClassifierRecipe,
    ImageClassifier,
    evaluate_reconstruction,
    load_classifier,
    train_classifier,
)
from spectok.evaluation.protocol import make_protocol
from spectok.evaluation.terms import images_per_step
from spectok.images import save_grid, save_picture, to_pil
from spectok.machine import describe_machine, peak_memory_bytes
from spectok.messages import progress
from spectok.metrics import psnr
from spectok.recipes.yaml12 import dump_yaml
from spectok.training import FitResult, train_tokenizer
from spectok.training.lock import run_locked
from spectok.training.tokenizer import rehearse_tokenizer
from spectok.writing import write_text
from spectok_generation.demo.demo_recipe import Plan
from spectok_generation.demo.installed import OnPhotographs, show_photographs
from spectok_generation.demo.judge import (
    Closeness,
    accuracy,
    accuracy_by_class,
    find_nearest,
    share_of_copies,
)
from spectok_generation.demo.report import write_report
from spectok_generation.demo.results import Competitor, Drawn, Results, Split, prefix_lengths
from spectok_generation.demo.stages import Stages
from spectok_generation.drawing import decode_tokens
from spectok_generation.pairs import load_pair
from spectok_generation.rehearsal import rehearse
from spectok_generation.sampling import sample_tokens
from spectok_generation.tokens import TokenCache
from spectok_generation.training import OWN_TOKENS, train_prior

MARKER, METRICS, MODELS = "demo.yaml", "metrics.json", "models"
PHOTOGRAPHS = "photographs.png"
OURS = (MODELS, "images", "report.html", METRICS, "samples.png", PHOTOGRAPHS, MARKER)
NUM_EXAMPLES = 10
BATCH_SIZE = 250
MAX_THREADS = 2


def run_demo(plan: Plan, out: Path, stages: Stages) -> Results:
    """Run the demo.

    Writes ``report.html``, ``metrics.json``, ``samples.png``, ``photographs.png`` where trained
    models are installed, some held-out images in ``images/``, and in ``models/`` the runs of
    tokenizers, prior and classifier, which every ``spectok`` command accepts.

    Args:
        plan: What to train and draw.
        out: Folder of the demo; one that was stopped goes on, a finished or another one is
            replaced.
        stages: Reports progress and measures time.

    Raises:
        ConfigError: If the folder holds something other than a demo, or parts of the plan do not
            fit one another or this machine.
        CheckpointError: If another process runs a demo there, or it cannot be written to.
        DataError: If the images have no classes.
    """
    for recipe in plan.tokenizers.values():
        rehearse_tokenizer(recipe)
    rehearse(plan.prior)
    with run_locked(out, beside=True):
        prepare_folder(plan, out)
        return _run(plan, out, stages)


def _run(plan: Plan, out: Path, stages: Stages) -> Results:
    """Train, draw and measure, in a folder that is ready."""
    names = [*plan.tokenizers, "prior", "classifier", "samples"]
    names += ["installed"] * bool(plan.recipe.installed)
    stages.plan(names, plan.recipe.expected_seconds)
    with few_threads():
        data = plan.tokenizers[plan.main].data
        demo = Demo(plan, out, stages, load_split(data, data.split), load_split(data, "test"))
        competitors = {label: demo.train_tokenizer(label) for label in plan.tokenizers}
        prior = demo.train_prior()
        classifier = demo.train_classifier()
        drawn = demo.draw(classifier, competitors[plan.main])
        on_photographs = demo.show_installed()
        metrics = {
            "seconds": stages.seconds,
            "peak_memory_bytes": peak_memory_bytes(),
            **{label: competitor.metrics for label, competitor in competitors.items()},
            "prior": demo.describe_prior(prior),
            "samples": drawn.metrics,
            "installed": on_photographs.metrics if on_photographs else {},
            "stages": stages.timings,
            "machine": describe_machine(),
        }
    results = Results(
        plan,
        out,
        demo.training,
        demo.held_out,
        competitors,
        prior.history,
        drawn,
        on_photographs,
        metrics,
    )
    write_results(results)
    return results


@dataclass(frozen=True)
class Demo:
    """The stages of one demo.

    Args:
        plan: What to train and draw.
        out: Folder of the demo.
        stages: Reports progress and measures time.
        training: The training images.
        held_out: The held-out images.
    """

    plan: Plan
    out: Path
    stages: Stages
    training: Split
    held_out: Split

    @property
    def prior_folder(self) -> Path:
        """Folder of the run of the prior."""
        return self.out / "models" / "prior"

    def train_tokenizer(self, label: str) -> Competitor:
        """Train a tokenizer, load it again, and measure it on held-out images."""
        recipe, folder = self.plan.tokenizers[label], self.out / "models" / label
        with self.stages.stage(label, f"train {label}: {recipe.train.steps:,} steps"):
            fit = train_tokenizer(recipe, folder, resume="auto")
            tokenizer = load_tokenizer(folder / "model")
            metrics = evaluate_reconstruction(tokenizer, self.held_out.dataset) | {
                "psnr_by_num_tokens": psnr_by_num_tokens(tokenizer, self.held_out),
                "protocol": make_protocol(self.held_out.dataset, "float32", 0, {}),
                "steps": fit.step,
                "batch_size": images_per_step(recipe),
                "seconds": fit.seconds,
            }
            tokens = torch.cat([tokenizer.encode(x) for x in self.training.images.split(256)])
        return Competitor(tokenizer, fit.history, metrics, tokens)

    def train_prior(self) -> FitResult:
        """Train the prior on the tokens of the first tokenizer."""
        main = self.plan.main
        recipe = self.plan.prior.model_copy(update={"tokenizer": str(self.out / "models" / main)})
        what = f"{recipe.prior['name']} on the tokens of {main}"
        with self.stages.stage("prior", f"train {what}: {recipe.train.steps:,} steps"):
            return train_prior(recipe, self.prior_folder, resume="auto")

    def train_classifier(self) -> ImageClassifier:
        """Train the classifier on real images, shifted randomly by up to a pixel."""
        options = self.plan.recipe.classifier.model_dump() | {"warmup_steps": 20}
        main = self.plan.tokenizers[self.plan.main]
        data = main.data.model_copy(update={"max_shift": 1})
        raw = {"data": data, "train": options, "seed": self.plan.recipe.seed}
        recipe = ClassifierRecipe.model_validate(ClassifierRecipe.complete(raw))
        folder = self.out / "models" / "classifier"
        doing = f"train a classifier on real images: {recipe.train.steps:,} steps"
        with self.stages.stage("classifier", doing):
            train_classifier(recipe, folder, resume="auto")
            return load_classifier(folder)

    def draw(self, classifier: ImageClassifier, main: Competitor) -> Drawn:
        """Draw images of all classes from the saved prior, and judge them."""
        prior, tokenizer = load_pair(self.prior_folder)
        options = self.plan.recipe.samples
        count = options.per_class * prior.num_classes
        labels = torch.arange(prior.num_classes).repeat(options.per_class)
        with self.stages.stage("samples", f"draw and judge {count:,} new images"):
            with progress("sampling", count) as advance:
                indices = sample_tokens(
                    prior,
                    count,
                    labels,
                    seed=self.plan.recipe.seed,
                    options=options.options,
                    batch_size=BATCH_SIZE,
                    on_images=advance,
                )
            images = decode_tokens(tokenizer, indices)
            found = classifier.classify(images)
            nearest = self.find_nearest(images, decode_tokens(tokenizer, main.indices))
            learned = TokenCache(self.prior_folder / OWN_TOKENS).indices(slice(None))
        metrics = {
            "count": count,
            "class_accuracy": accuracy(found, labels),
            "class_accuracy_by_class": accuracy_by_class(found, labels),
            "classifier_accuracy": accuracy(
                classifier.classify(self.held_out.images), self.held_out.labels
            ),
            **nearest.summarize(),
            "token_copies": share_of_copies(indices, torch.from_numpy(learned)),
            "distinct": len(indices.unique(dim=0)) / count,
        }
        return Drawn(images, labels, found, nearest, metrics)

    def show_installed(self) -> OnPhotographs | None:
        """Reconstruct photographs by trained tokenizers, as far as these are installed."""
        names = self.plan.recipe.installed
        if not names:
            return None
        with self.stages.stage("installed", "reconstruct photographs by trained models"):
            return show_photographs(names)

    def find_nearest(self, samples: Tensor, reconstructed: Tensor) -> Closeness:
        """Find the nearest training images of samples and of both references."""
        recipes = (self.plan.prior, self.plan.tokenizers[self.plan.main])
        shift = max(recipe.data.max_shift for recipe in recipes)
        kinds = (samples, self.held_out.images, reconstructed)
        return Closeness(*(find_nearest(x, self.training.images, shift) for x in kinds))

    def describe_prior(self, fit: FitResult) -> dict[str, Any]:
        """Return the part of ``metrics.json`` about the prior."""
        prior, tokenizer = load_pair(self.prior_folder)
        indices = tokenizer.encode(self.held_out.images)
        nats = -prior.log_prob(indices, self.held_out.labels).mean()
        return {
            "name": self.plan.prior.prior["name"],
            "steps": fit.step,
            "seconds": fit.seconds,
            "parameters": sum(parameter.numel() for parameter in prior.parameters()),
            "train_bits_per_image": fit.history[-1]["bits_per_token"] * indices.shape[1],
            "held_out_bits_per_image": float(nats) / math.log(2),
        }


def load_split(data: DataConfig, split: str) -> Split:
    """Read all images of a split, without augmentation.

    Raises:
        DataError: If the images have no classes.
    """
    dataset = build_dataset(data.model_copy(update={"split": split}), train=False)
    if not dataset.num_classes:
        raise DataError(f"{data.name}/{split} has no classes; the demo needs labelled images")
    return Split.of(dataset)


@torch.no_grad()
def psnr_by_num_tokens(tokenizer: ImageTokenizer, held_out: Split) -> dict[int, float]:
    """Return the mean PSNR of the first 0, 1, 2, 4, … tokens, for prefixes that decode."""
    indices = tokenizer.encode(held_out.images)
    return {
        k: float(psnr(held_out.images, tokenizer.decode(indices, num_tokens=k)).mean())
        for k in prefix_lengths(tokenizer.token_spec)
    }


# -- the folder -----------------------------------------------------------------------------------


def prepare_folder(plan: Plan, out: Path) -> None:
    """Remove an earlier demo, unless it is this one and was stopped; mark the folder as a demo.

    Raises:
        ConfigError: If the folder holds something else.
        CheckpointError: If it cannot be written to.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file()):
        raise ConfigError(f"--out {out} exists and is not a demo; give a new or empty folder")
    try:
        parts = {label: r.model_dump(mode="json") for label, r in plan.tokenizers.items()}
        whole = plan.recipe.model_dump(mode="json") | {"tokenizers": parts}
        text = dump_yaml(whole | {"prior": plan.prior.model_dump(mode="json")})
        marker = out / MARKER
        is_ours = marker.is_file() and marker.read_bytes() == text.encode()
        was_stopped = is_ours and not (out / METRICS).is_file()
        for path in (out / name for name in OURS if not (was_stopped and name == MODELS)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        write_text(marker, text, CheckpointError)
    except OSError as error:
        raise CheckpointError(f"cannot write to {out}: {error.strerror}") from error


def write_results(results: Results) -> None:
    """Write everything but the models."""
    out, held_out = results.out, results.held_out
    (out / "images").mkdir()
    for number in held_out.one_per_class(NUM_EXAMPLES):
        name = f"class-{held_out.labels[number]}-number-{number}.png"
        save_picture(to_pil(held_out.images[number]), out / "images" / name)
    rows = results.drawn.first_of_each_class(10)
    save_grid(rows.flatten(0, 1), out / "samples.png", columns=rows.shape[1])
    if (shown := results.on_photographs) is not None:
        whole = torch.cat([shown.originals, *shown.reconstructions.values()])
        save_grid(whole, out / PHOTOGRAPHS, columns=len(shown.originals))
    text = json.dumps(results.metrics, indent=2)
    write_report(results, out / "report.html")
    write_text(
        out / METRICS, text + "\n", CheckpointError
    )  # last: it says that the demo is complete


@contextmanager
def few_threads() -> Iterator[None]:
    """Let torch use two threads at most inside the context: the networks are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, MAX_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)
