"""Train a tokenizer from a recipe: ``spectok train``, for any launcher.

python generation/train_tokenizer.py --config RECIPE
torchrun --standalone --nproc_per_node 2 generation/train_tokenizer.py --config … --output DIR
accelerate launch generation/train_tokenizer.py --config … --resume train.steps=2000
"""

from __future__ import annotations

from spectok.cli.scripts import run_training_script

if __name__ == "__main__":
    run_training_script(["train", "tokenizer"])
