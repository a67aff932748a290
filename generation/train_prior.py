"""Train a prior from a recipe: ``spectok train prior``, for any launcher.

python generation/train_prior.py --config configs/smoke/prior_gpt.yaml
torchrun --standalone --nproc_per_node 2 generation/train_prior.py --config … --output DIR
accelerate launch generation/train_prior.py --config … --resume train.steps=2000
"""

from __future__ import annotations

from spectok.cli.scripts import run_training_script

if __name__ == "__main__":
    run_training_script(["train", "prior"])
