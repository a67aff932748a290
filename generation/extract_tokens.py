"""Write the tokens of a data set to disk: ``spectok extract``, for any launcher.

python generation/extract_tokens.py runs/mine --out tokens --data images/
torchrun --standalone --nproc_per_node 2 generation/extract_tokens.py runs/mine --out tokens
"""

from __future__ import annotations

import sys

from spectok.cli import main

if __name__ == "__main__":
    main(["extract", *sys.argv[1:]])
