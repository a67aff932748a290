"""Draw new images from a trained prior: ``spectok sample``, for any launcher.

python generation/sample.py --prior runs/mine --class 3 --num-images 16 --seed 0 --out grid.png
torchrun --standalone --nproc_per_node 2 generation/sample.py --prior runs/mine --out grid.png
"""

from __future__ import annotations

import sys

from spectok.cli import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
