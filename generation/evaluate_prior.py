"""Measure a prior by the images it draws: ``spectok eval prior``, for any launcher.

python generation/evaluate_prior.py runs/mine --num-images 1000 --classifier runs/classifier
torchrun --standalone --nproc_per_node 2 generation/evaluate_prior.py runs/mine --num-images 50000
"""

from __future__ import annotations

import sys

from spectok.cli import main

if __name__ == "__main__":
    main(["eval", "prior", *sys.argv[1:]])
