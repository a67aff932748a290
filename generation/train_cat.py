"""Train CAT from a recipe: ``spectok train prior`` with a text encoder, for any launcher.

python generation/train_cat.py --config cat/shapes
python generation/train_cat.py --config cat --tokenizer runs/mine --text runs/clip --data images/
torchrun --standalone --nproc_per_node 2 generation/train_cat.py --config … --output DIR
accelerate launch generation/train_cat.py --config … --resume train.steps=2000
"""

from __future__ import annotations

import argparse

from spectok.cli import main


def arguments() -> list[str]:
    """Return the words of ``spectok`` that this script's arguments stand for."""
    parser = argparse.ArgumentParser(description="Train CAT from a recipe.")
    parser.add_argument("--config", default="cat", help="recipe file or name (default: cat)")
    parser.add_argument("--tokenizer", help="trained tokenizer, or a recipe of one")
    parser.add_argument("--text", help="CLIP: a folder, or the name of a model of open_clip")
    parser.add_argument("--tokens", help="folder written by extract_tokens.py")
    parser.add_argument("--data", help="folder, parquet file, tar shards or registered data set")
    parser.add_argument("--output", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.steps=2000")
    given = parser.parse_intermixed_args()
    words = ["train", "prior", given.config, *given.overrides]
    for name in ("tokenizer", "text", "tokens", "data", "output"):
        if value := getattr(given, name):
            words += [f"--{name}", value]
    return words + (["--resume"] if given.resume else [])


if __name__ == "__main__":
    main(arguments())
