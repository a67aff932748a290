"""Images for captions, some with words never seen together, read by a checker.

    python benchmarks/text_to_image.py
    python benchmarks/text_to_image.py --train --guidance 1 2 --out runs/text_to_image

On the built-in captioned ``shapes``, the recipe ``cat/shapes`` trained the model of that name which
is installed: a CLIP, a tokenizer, and CAT on its tokens given the text; ``--train`` trains another.
500 images are drawn for the 16 captions whose combination of size, colour and shape occurs in no
training image, and 500 for the 80 others.
The checker (``spectok.evaluation.shapes``) fits the outlines from which the data is drawn; it is
first tested on real images, and on their reconstructions by the tokenizer.

Each word of a caption is also changed on its own: the attribute it names must change, and the other
two must not.

What is trained is kept in ``--out`` and reused. Writes ``results/text_to_image.json`` and .png.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from drawn_shapes import ATTRIBUTES, Painter, drawing_protocol, judge_checker, read, score
from one_line import run_program

from spectok.data.shapes import COLOURS, COMBINATIONS, SHAPES, SIZES, caption, is_unseen
from spectok.images import make_grid, to_pil
from spectok.machine import describe_machine
from spectok_generation.prior_recipe import load_prior_recipe
from spectok_generation.training import train_prior

RECIPE = "cat/shapes"
NUM_IMAGES, SHOWN = 500, 4
WORDS = (list(SIZES), list(COLOURS), list(SHAPES))
RESULTS = Path(__file__).parent / "results"


def change_words(painter: Painter, guidance: float) -> dict[str, dict[str, float]]:
    """Change one word of a caption at a time; return how often only its attribute changes."""
    generator = np.random.default_rng(0)
    found = {}
    for place, attribute in enumerate(ATTRIBUTES):
        before = generator.integers(len(COMBINATIONS), size=NUM_IMAGES // 5).tolist()
        after = []
        for label in before:
            words = list(COMBINATIONS[label])
            words[place] = generator.choice([w for w in WORDS[place] if w != words[place]])
            after.append(COMBINATIONS.index(tuple(words)))
        first = read(painter.draw(before, guidance))
        second = read(painter.draw(after, guidance))
        others = [name for name in ATTRIBUTES if name != attribute]
        changed = [
            getattr(b, attribute) == COMBINATIONS[label][place] for b, label in zip(second, after)
        ]
        kept = [
            all(getattr(a, name) == getattr(b, name) for name in others)
            for a, b in zip(first, second)
        ]
        found[attribute] = {
            "pairs": len(before),
            "shows_the_new_word": float(np.mean(changed)),
            "the_other_two_stay": float(np.mean(kept)),
        }
    return found


def draw_picture(painter: Painter, labels: list[int], guidance: float, path: Path) -> None:
    """Draw images for several captions, each caption above its images."""
    columns = 4
    rows = -(-len(labels) // columns)
    images = painter.draw([label for label in labels for _ in range(SHOWN)], guidance, seed=1)
    figure, axes = plt.subplots(rows, columns, figsize=(2.4 * columns, 0.95 * rows))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, label, block in zip(axes.flat, labels, images.split(SHOWN)):
        axis.imshow(to_pil(make_grid(block, columns=SHOWN)), interpolation="nearest")
        axis.set_title(caption(label), fontsize=8, pad=3)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def train(out: Path) -> dict[str, Any]:
    """Train what does not exist yet; return how long it took and how well it learned."""
    record, recipe = out / "training.json", load_prior_recipe(RECIPE)
    if not (out / "model").is_dir():
        clock, processor = time.perf_counter(), time.process_time()
        result = train_prior(recipe, out, resume="auto")
        spent = {
            "seconds": round(time.perf_counter() - clock),
            "cpu_seconds": round(time.process_time() - processor),
        }
        record.write_text(json.dumps({"nll": result.history[-1]["loss"], **spent}))
    what = {"what": "CLIP, tokenizer and prior together", "steps_of_the_prior": recipe.train.steps}
    return json.loads(record.read_text()) | what


def main() -> None:
    """Train what does not exist yet, draw, read and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--train", action="store_true", help="not the installed model, but another")
    parser.add_argument("--out", type=Path, default=Path("runs/text_to_image"))
    arguments = parser.parse_args()
    is_trial = arguments.train or arguments.guidance != parser.get_default("guidance")
    results = arguments.out if is_trial else RESULTS
    results.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/text_to_image.py", *sys.argv[1:]]),
        "machine": describe_machine(),
        "protocol": drawing_protocol(NUM_IMAGES),
        "recipe": f"generation/{RECIPE}",
    }
    if arguments.train:
        report["training"] = train(arguments.out)
    else:
        report["trained_model"] = RECIPE
    painter = Painter(arguments.out if arguments.train else RECIPE)
    unseen = [label for label in range(len(COMBINATIONS)) if is_unseen(label)]
    seen = [label for label in range(len(COMBINATIONS)) if not is_unseen(label)]
    report |= {
        "parameters": {
            "prior": sum(p.numel() for p in painter.prior.parameters()),
            "tokenizer": sum(p.numel() for p in painter.tokenizer.parameters()),
        },
        "bits_per_image": painter.tokenizer.token_spec.bits_per_image,
        "checker": judge_checker(painter.tokenizer),
        "images": NUM_IMAGES,
    }
    for guidance in arguments.guidance:
        found = {}
        for name, labels in (("unseen", unseen), ("seen", seen)):
            wanted = [labels[i % len(labels)] for i in range(NUM_IMAGES)]
            found[name] = score(painter.draw(wanted, guidance), wanted)
        report[f"guidance {guidance:g}"] = found
        print(f"guidance {guidance:g}", json.dumps(found), flush=True)
    chosen = arguments.guidance[-1]
    report["one_word_changed"] = {"guidance": chosen, **change_words(painter, chosen)}
    (results / "text_to_image.json").write_text(json.dumps(report, indent=1) + "\n")
    draw_picture(painter, unseen, chosen, results / "text_to_image.png")
    print(json.dumps(report["one_word_changed"]))


if __name__ == "__main__":
    run_program(main)
