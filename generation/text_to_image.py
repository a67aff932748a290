"""Draw images of a text: ``spectok text-to-image``, for any launcher.

python generation/text_to_image.py "a prompt" --model DIR --num-images 4 --guidance 3 --out grid.png
torchrun --standalone --nproc_per_node 2 generation/text_to_image.py "a prompt" --model DIR --out …
"""

from __future__ import annotations

import sys

from spectok.cli import main

if __name__ == "__main__":
    main(["text-to-image", *sys.argv[1:]])
