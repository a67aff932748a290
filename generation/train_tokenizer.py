"""Train a tokenizer from a recipe: ``spectok train``, for any launcher.

python generation/train_tokenizer.py --config RECIPE
torchrun --standalone --nproc_per_node 2 generation/train_tokenizer.py --config … --output DIR
accelerate launch generation/train_tokenizer.py --config … --resume train.steps=2000
"""

from __future__ import annotations

import argparse

from spectok.cli import main


def arguments() -> list[str]:
    """Return the words of ``spectok`` that this script's arguments stand for."""
    parser = argparse.ArgumentParser(description="Train a tokenizer from a recipe.")
    parser.add_argument("--config", required=True, help="recipe file, recipe name or tokenizer key")
    parser.add_argument("--data", help="folder, parquet file, tar shards or registered data set")
    parser.add_argument("--output", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.steps=2000")
    given = parser.parse_intermixed_args()
    words = ["train", "tokenizer", given.config, *given.overrides]
    words += ["--data", given.data] if given.data else []
    words += ["--output", given.output] if given.output else []
    return words + (["--resume"] if given.resume else [])


if __name__ == "__main__":
    main(arguments())
