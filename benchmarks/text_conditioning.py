"""Whether a prior should read all tokens of a text or one, and in every block or before the image.

    python benchmarks/text_conditioning.py
    python benchmarks/text_conditioning.py --forms cross prefix --steps 10000 --guidance 1 3
    python benchmarks/text_conditioning.py --steps 8 --shared-steps 8 --images 4 \
        --out runs/tried --result runs/tried.json             # shows in a minute that it runs

FA-VAE's paper claims that attention to all token embeddings of a text, in every block, follows the
text better than its pooled vector, and better than a text that is read before the image. The recipe
``cat/shapes`` is trained with each ``text_conditioning`` on the same tokens and text features, with
the same seed, batches and steps; tokenizer and CLIP are trained once, before. From each, images are
drawn for the 80 captions whose combination of size, colour and shape was trained on, and for the 16
others; the checker of ``text_to_image.py`` reads them. ``cross`` is also drawn with guidance.

``prefix`` has no cross-attention, so fewer weights; ``prefix_deeper`` has one block more, which
makes up for most of that. Everything is kept in ``--out`` and reused. Writes one JSON file.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from drawn_shapes import Painter, drawing_protocol, judge_checker, score
from kept import check_free
from one_line import positive, run_program

from spectok.data import DataConfig, ImageDataset, build_dataset
from spectok.data.shapes import COMBINATIONS, caption, is_unseen
from spectok.errors import ConfigError
from spectok.evaluation.protocol import make_protocol
from spectok.loading import load_trained, model_folder
from spectok.machine import describe_machine
from spectok.training import load_tokenizer_recipe, train_tokenizer
from spectok_generation.extraction import Extraction
from spectok_generation.prior_recipe import PriorRecipe, load_prior_recipe, tokenizer_recipe
from spectok_generation.sampling import SamplingOptions
from spectok_generation.text.clip import train_clip
from spectok_generation.text.clip_recipe import clip_recipe_file, load_clip_recipe
from spectok_generation.training import extract_data, train_prior

RECIPE = "cat/shapes"
RESULTS = Path(__file__).parent / "results"
FORMS = {  # name -> text_conditioning, and blocks more than the recipe has
    "cross": ("cross", 0),
    "pooled": ("pooled", 0),
    "prefix": ("prefix", 0),
    "prefix_deeper": ("prefix", 1),
}
LIKELIHOOD = {"likelihood": "exact", "condition": "text"}
SPLITS = {
    "seen": [label for label in range(len(COMBINATIONS)) if not is_unseen(label)],
    "unseen": [label for label in range(len(COMBINATIONS)) if is_unseen(label)],
}


def prepare(tokenizer: str, text: str, steps: int | None, out: Path) -> list[str]:
    """Train what all forms share, unless it is there; return the settings that name it.

    Args:
        tokenizer: Folder or recipe of a tokenizer.
        text: Folder or recipe of a CLIP.
        steps: Of either's training. None: those of their recipes.
        out: Folder for what is trained and extracted.

    Raises:
        ConfigError: If one of them is neither.
    """
    fewer = [] if steps is None else [f"train.steps={steps}"]
    for name, is_recipe in ((tokenizer, tokenizer_recipe), (text, clip_recipe_file)):
        is_folder = Path(model_folder(name)).is_dir()
        if is_recipe(name) is None and not is_folder:  # before hours are spent
            raise ConfigError(f"{name}: neither a recipe nor a folder")
    if tokenizer_recipe(tokenizer) is not None:
        train_tokenizer(load_tokenizer_recipe(tokenizer, fewer), out / "tokenizer", resume="auto")
        tokenizer = str(out / "tokenizer")
    if clip_recipe_file(text) is not None:
        train_clip(load_clip_recipe(text, fewer), out / "clip", resume="auto")
        text = str(out / "clip")
    data = DataConfig.model_validate({"name": "shapes"})
    tokens = out / "tokens"
    extract_data(load_trained(tokenizer), data, tokens, Extraction(), path=tokenizer)
    return [f"tokenizer={tokenizer}", f"text.encoder={text}", f"tokens={tokens}"]


def form_recipe(form: str, steps: int | None, seed: int, shared: list[str]) -> PriorRecipe:
    """Return the recipe of a form; they differ in nothing else."""
    conditioning, more = FORMS[form]
    recipe = load_prior_recipe(RECIPE)
    steps = recipe.train.steps if steps is None else steps
    settings = [
        f"prior.text_conditioning={conditioning}",
        f"prior.num_layers={recipe.prior['num_layers'] + more}",
        f"train.steps={steps}",
        f"train.warmup_steps={min(recipe.train.warmup_steps, steps // 4)}",
        "train.sample_every=null",
        f"seed={seed}",
    ]
    return load_prior_recipe(RECIPE, [*shared, *settings])


def train(recipe: PriorRecipe, folder: Path) -> dict[str, float]:
    """Train a prior, or check that the one that is there is of this recipe; say how that went.

    Raises:
        ConfigError: If the prior in the folder is of another recipe, tokenizer or text encoder.
    """
    record = folder / "training.json"
    clock, processor = time.perf_counter(), time.process_time()
    result = train_prior(recipe, folder, resume="auto")
    if not record.is_file():
        spent = {
            "seconds": round(time.perf_counter() - clock),
            "cpu_seconds": round(time.process_time() - processor),
        }
        record.write_text(json.dumps({"nll": result.history[-1]["loss"]} | spent))
    return json.loads(record.read_text())


def held_out() -> dict[str, ImageDataset]:
    """Return unseen images, of combinations that were trained on and of others."""
    configs = {
        name: DataConfig.model_validate({"name": "shapes", "split": split})
        for name, split in (("seen", "test"), ("unseen", "unseen"))
    }
    return {name: build_dataset(config, train=False) for name, config in configs.items()}


@torch.no_grad()
def held_out_bits(painter: Painter) -> dict[str, float]:
    """Return the bits that the tokens of an unseen image cost, given its caption."""
    found = {}
    for name, dataset in held_out().items():
        images = torch.stack([dataset[i]["images"] for i in range(len(dataset))])
        texts = painter.encoder([caption(int(dataset[i]["label"])) for i in range(len(dataset))])
        total = 0.0
        for rows in torch.arange(len(images)).split(64):
            tokens = painter.tokenizer.encode(images[rows])
            total -= painter.prior.log_prob(tokens, texts[rows]).sum().item()
        found[name] = total / len(images) / torch.log(torch.tensor(2.0)).item()
    return found


def measure(painter: Painter, guidance: float, count: int) -> dict[str, dict[str, float]]:
    """Return how many images show their caption, of combinations seen and never seen."""
    found = {}
    for name, labels in SPLITS.items():
        wanted = [labels[i % len(labels)] for i in range(count)]
        found[name] = score(painter.draw(wanted, guidance), wanted)
    return found


def main() -> None:
    """Train what does not exist yet, draw, read and write."""
    recipe = load_prior_recipe(RECIPE)
    assert recipe.text is not None
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["cross", "pooled", "prefix"])
    parser.add_argument(
        "--steps", type=positive, help="of each prior (default: those of the recipe)"
    )
    parser.add_argument(
        "--shared-steps", type=positive, help="of tokenizer and CLIP (default: theirs)"
    )
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 3.0, 5.0])
    parser.add_argument("--swept", nargs="*", choices=FORMS, default=["cross"])
    parser.add_argument(
        "--images", type=positive, default=500, help="for seen and for unseen captions"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the priors")
    parser.add_argument("--tokenizer", default=recipe.tokenizer, help="folder or recipe")
    parser.add_argument("--text", default=recipe.text.encoder, help="folder or recipe of a CLIP")
    parser.add_argument("--out", type=Path, default=Path("runs/text_conditioning"))
    parser.add_argument("--result", type=Path, default=RESULTS / "text_conditioning.json")
    arguments = parser.parse_args()
    out = arguments.out
    command = shlex.join(["python", "benchmarks/text_conditioning.py", *sys.argv[1:]])
    check_free(arguments.result, command)
    for guidance in arguments.guidance:
        SamplingOptions(guidance=guidance)  # refused before hours are spent
    shared = prepare(arguments.tokenizer, arguments.text, arguments.shared_steps, out)
    report: dict[str, Any] = {
        "command": command,
        "machine": describe_machine(),
        "protocol": drawing_protocol(arguments.images),
        "protocols_of_bits": {
            name: {"protocol": make_protocol(images, "float32", 0, {}, **LIKELIHOOD)}
            for name, images in held_out().items()
        },
        "recipe": f"generation/{RECIPE}",
        "tokenizer": arguments.tokenizer,
        "text": arguments.text,
        "images": arguments.images,
        "seed": arguments.seed,
        "forms": {},
    }
    for form in arguments.forms:
        own = form_recipe(form, arguments.steps, arguments.seed, shared)
        folder = out / f"{form}-{own.train.steps}-steps-seed-{arguments.seed}"
        training = train(own, folder)
        painter = Painter(folder)
        if "checker" not in report:
            report["checker"] = judge_checker(painter.tokenizer)
        found: dict[str, Any] = {
            "steps": own.train.steps,
            "batch_size": own.train.batch_size,
            "training": training,
            "parameters": sum(p.numel() for p in painter.prior.parameters()),
            "held_out_bits_per_image": held_out_bits(painter),
        }
        for guidance in arguments.guidance if form in arguments.swept else [1.0]:
            found[f"guidance {guidance:g}"] = measure(painter, guidance, arguments.images)
            print(form, f"guidance {guidance:g}", json.dumps(found[f"guidance {guidance:g}"]))
        report["forms"][form] = found
        arguments.result.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
