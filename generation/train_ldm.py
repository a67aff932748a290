"""Train latent diffusion from a recipe: ``spectok train prior`` with ``ldm``, for any launcher.

python generation/train_ldm.py --tokenizer runs/mine
python generation/train_ldm.py --config ldm/digits --output runs/ldm
accelerate launch generation/train_ldm.py --config … --resume train.steps=20000
"""

from __future__ import annotations

from spectok.cli.scripts import run_training_script

if __name__ == "__main__":
    run_training_script(["train", "prior"], config="ldm")
