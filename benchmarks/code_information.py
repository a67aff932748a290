"""How evenly trained tokenizers use their codes, and how much each code carries.

    python benchmarks/code_information.py vqvae/cifar10 cvqvae/cifar10 fqvae/cifar10 --data DIR

After Fig. 3 and 4 of the paper of FQ-VAE, on test images: how often each code is chosen, and by how
much the mean squared error of all images grows where its vector is zero. ``spectok codes`` draws
the same; this keeps the numbers, in ``results/code_information.json``, with the picture beside it;
``--result`` is for those of other models or images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from alike import load_alike
from kept import check_free
from one_line import positive, run_program
from tqdm import tqdm

from spectok.errors import ConfigError
from spectok.evaluation.protocol import make_protocol
from spectok.machine import describe_machine
from spectok.quantizers import perplexity
from spectok_fqvae.analysis import study_codes
from spectok_fqvae.cli import test_images
from spectok_fqvae.pictures import draw_codes

RESULT = Path(__file__).parent / "results" / "code_information.json"
BATCH_SIZE = 16


def main() -> None:
    """Study the codes of each model on the same images."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("models", nargs="+", help="trained models of one size of images")
    parser.add_argument("--data", required=True, help="folder with the data set as parquet files")
    parser.add_argument("--limit", type=positive, default=500, help="test images")
    parser.add_argument("--result", type=Path, default=RESULT, help="JSON file to write")
    arguments = parser.parse_args()
    words = ["python benchmarks/code_information.py", *arguments.models, "--data DIR"]
    command = " ".join([*words, "--limit", str(arguments.limit)])
    check_free(arguments.result, command)
    torch.set_num_threads(1)
    tokenizers = load_alike(arguments.models)
    for name, model in tokenizers.items():
        if model.token_spec.num_levels > 1:
            raise ConfigError(f"{name} has several levels: single codes cannot be left out")
    dataset = test_images(arguments.data, next(iter(tokenizers.values())), arguments.limit)
    batches = torch.stack([dataset[i]["images"] for i in range(len(dataset))]).split(BATCH_SIZE)
    studies = {
        name: study_codes(model, tqdm(batches, name, disable=None))
        for name, model in tokenizers.items()
    }
    found = {name: summarise(study) for name, study in studies.items()}
    result = {
        "command": command,
        "protocol": make_protocol(dataset, "float32", 0, {}),
        "machine": describe_machine(),
        "models": found,
    }
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    draw_codes(studies).savefig(arguments.result.with_suffix(".png"), dpi=150)
    for name, numbers in found.items():
        print(name, numbers)


def summarise(study: Any) -> dict[str, float]:
    """Return how many codes are used, how evenly, and what one of them carries."""
    usage, carried = study.usage.double(), study.information.double()
    tenth = max(1, len(usage) // 10)
    return {
        "codes": len(usage),
        "used": float((usage > 0).double().mean()),
        "perplexity": float(perplexity(usage[None])),
        "busiest_over_mean": float(usage.max() / usage.mean()),
        "information_mean": float(carried.mean()),
        "information_median": float(carried.median()),
        "information_of_least_tenth": float(carried.sort().values[:tenth].mean()),
    }


if __name__ == "__main__":
    run_program(main)
