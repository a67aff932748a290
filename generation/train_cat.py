"""Train CAT from a recipe: ``spectok train prior`` with a text encoder, for any launcher.

python generation/train_cat.py --config cat/shapes
python generation/train_cat.py --config cat --tokenizer runs/mine --text runs/clip --data images/
torchrun --standalone --nproc_per_node 2 generation/train_cat.py --config … --output DIR
accelerate launch generation/train_cat.py --config … --resume train.steps=2000
"""

from __future__ import annotations

from spectok.cli.scripts import run_training_script

if __name__ == "__main__":
    run_training_script(["train", "prior"], config="cat")
