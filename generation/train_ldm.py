"""Train latent diffusion from a recipe: ``spectok train prior`` with ``ldm``, for any launcher.

python generation/train_ldm.py --tokenizer runs/mine
python generation/train_ldm.py --config ldm/digits --output runs/ldm
accelerate launch generation/train_ldm.py --config … --resume train.steps=20000
"""

from __future__ import annotations

import argparse

from spectok.cli import main


def arguments() -> list[str]:
    """Return the words of ``spectok`` that this script's arguments stand for."""
    parser = argparse.ArgumentParser(description="Train latent diffusion from a recipe.")
    parser.add_argument("--config", default="ldm", help="recipe file or name (default: ldm)")
    parser.add_argument("--tokenizer", help="trained tokenizer, or a recipe of one")
    parser.add_argument("--text", help="CLIP, to condition on captions")
    parser.add_argument("--data", help="folder, parquet file, tar shards or registered data set")
    parser.add_argument("--output", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.steps=2000")
    given = parser.parse_intermixed_args()
    words = ["train", "prior", given.config, *given.overrides]
    for name in ("tokenizer", "text", "data", "output"):
        if value := getattr(given, name):
            words += [f"--{name}", value]
    return words + (["--resume"] if given.resume else [])


if __name__ == "__main__":
    main(arguments())
