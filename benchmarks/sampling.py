"""Sampling from priors, side by side with the usual methods. Writes ``results/sampling.json``.

    python benchmarks/sampling.py

Models have random weights and the recorded sizes; both sides draw the same tokens, except in the
case ``guidance``. They run alternately in one process with one thread.

1. ``cache``: steps that keep keys and values, against steps that run the whole sequence so far.
2. ``dynamic_cache``: the same sampler on transformers' own model and ``DynamicCache``, which grows
   by ``torch.cat``, against ours, allocated once.
3. ``dynamic_cache_text``: the same for a prior that attends to a text. As transformers does with a
   ``DynamicCache``, it projects the text to keys and values at every step; ours does so once.
4. ``pixelcnn``: cached activations against running the whole image for each place.
5. ``guidance``: guided against unguided sampling, and guided for the first half only.
6. ``extraction``: ``extract_tokens``, files and all, against ``encode`` on images in memory.

Seconds are CPU time of the process, the best of all rounds, so other programs matter less. Seconds
of wall time are recorded too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from one_line import run_program
from transformers import DynamicCache

from spectok import Level, TokenSpec, load_tokenizer
from spectok.data import DataConfig, build_dataset
from spectok.machine import describe_machine
from spectok.training.recipe import load_tokenizer_recipe
from spectok_generation import create_prior, extract_tokens
from spectok_generation.conditions import TextFeatures
from spectok_generation.sampling import SamplingOptions, sample_batch

SPEC = TokenSpec((Level((16, 16), 1024),))
BATCH, NUM_CLASSES, TEXT_LENGTH, TEXT_WIDTH = 16, 10, 16, 512
GPT = {"num_layers": 6, "num_heads": 6, "width": 384, "dropout": 0.0}
PIXELCNN = {"num_layers": 15, "width": 64}
EXTRACTED = {"recipe": "vqvae/cifar10", "images": 512, "batch_size": 64}
LABELS = torch.arange(BATCH) % NUM_CLASSES


class Recomputed:
    """A prior whose steps run the whole sequence so far: sampling without a cache."""

    def __init__(self, prior: Any, last_only: bool):
        self.prior, self.last_only = prior, last_only

    def start(self, condition: Any) -> Any:
        """Remember the condition."""
        return condition

    def next_logits(self, state: Any, indices: torch.Tensor) -> torch.Tensor:
        """Run the places so far (a transformer), or the whole image (a PixelCNN)."""
        place, prior = indices.shape[1], self.prior
        if self.last_only:
            inputs = prior._inputs(indices, prior.start_inputs(state), first=0)
            hidden = prior.backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state
            return prior.head.at(hidden[:, -1], place).float()
        padded = torch.nn.functional.pad(indices, (0, SPEC.num_tokens - place))
        return prior.logits(padded, state)[:, place]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prior, name)


class Grown(Recomputed):
    """A prior on transformers' model and its ``DynamicCache``."""

    def start(self, condition: Any) -> Any:
        """Begin an empty cache."""
        prior = self.prior
        return [DynamicCache(config=prior.backbone.config), condition, 0]

    def next_logits(self, state: Any, indices: torch.Tensor) -> torch.Tensor:
        """Run the model on what the cache does not hold yet."""
        cache, condition, first = state
        prior, place = self.prior, indices.shape[1]
        inputs = prior._inputs(indices, prior.start_inputs(condition), first)
        context = prior.context(condition)
        attended = {}
        if context is not None:
            attended["encoder_hidden_states"] = context.features
            attended["encoder_attention_mask"] = context.mask
        hidden = prior.backbone(
            inputs_embeds=inputs, past_key_values=cache, use_cache=True, **attended
        ).last_hidden_state
        state[2] = place + 1
        return prior.head.at(hidden[:, -1], place).float()


def make(name: str, **options: Any) -> Any:
    """Build a prior with random weights, the same each time."""
    torch.manual_seed(0)
    return create_prior(name, SPEC, **options).eval()


def make_gpt() -> Any:
    """Build the transformer of the cases without a text."""
    return make("gpt", num_classes=NUM_CLASSES, condition_dropout=0.1, **GPT)


def sampled(prior: Any, condition: Any = LABELS, **options: Any) -> Callable[[], torch.Tensor]:
    """Return a call that samples one batch."""
    how = SamplingOptions(**options)
    return lambda: sample_batch(prior, range(BATCH), condition, options=how)


def cache_case() -> dict[str, Any]:
    """Case 1."""
    prior = make_gpt()
    return {"uncached": sampled(Recomputed(prior, last_only=True)), "spectok": sampled(prior)}


def dynamic_cache_case() -> dict[str, Any]:
    """Case 2."""
    prior = make_gpt()
    return {"dynamic": sampled(Grown(prior, last_only=True)), "spectok": sampled(prior)}


def dynamic_cache_text_case() -> dict[str, Any]:
    """Case 3."""
    prior = make("cat", text={"width": TEXT_WIDTH}, **GPT)
    features = torch.randn(BATCH, TEXT_LENGTH, TEXT_WIDTH)
    text = TextFeatures(features, torch.ones(BATCH, TEXT_LENGTH, dtype=torch.bool))
    grown = Grown(prior, last_only=True)
    return {"dynamic": sampled(grown, text), "spectok": sampled(prior, text)}


def pixelcnn_case() -> dict[str, Any]:
    """Case 4."""
    prior = make("pixelcnn", num_classes=NUM_CLASSES, condition_dropout=0.1, **PIXELCNN)
    return {"whole_image": sampled(Recomputed(prior, last_only=False)), "spectok": sampled(prior)}


def guidance_case() -> dict[str, Any]:
    """Case 5."""
    prior = make_gpt()
    return {
        "guided": sampled(prior, guidance=3.0),
        "guided_first_half": sampled(prior, guidance=3.0, guidance_interval=(0.0, 0.5)),
        "spectok": sampled(prior),
    }


def extraction_case() -> dict[str, Any]:
    """Case 6."""
    options = dict(load_tokenizer_recipe(EXTRACTED["recipe"]).tokenizer)
    tokenizer = load_tokenizer(options.pop("name"), **options).eval()
    config = {"name": "digits", "image_size": 32, "channels": 3, "limit": EXTRACTED["images"]}
    dataset = build_dataset(DataConfig.model_validate(config))
    images = torch.stack([dataset[i]["images"] for i in range(len(dataset))])

    @torch.no_grad()
    def encode() -> torch.Tensor:
        return torch.cat([tokenizer.encode(part) for part in images.split(EXTRACTED["batch_size"])])

    def extract() -> torch.Tensor:
        with tempfile.TemporaryDirectory() as folder:
            cache = extract_tokens(tokenizer, dataset, Path(folder, "tokens"))
            return torch.from_numpy(cache.indices(slice(None)))

    return {"encode": encode, "spectok": extract}


CASES: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, Any], bool]] = {
    # how to build it, what its sizes are, whether one side takes minutes
    "cache": (cache_case, GPT, True),
    "dynamic_cache": (dynamic_cache_case, GPT, False),
    "dynamic_cache_text": (dynamic_cache_text_case, GPT | {"text_tokens": TEXT_LENGTH}, False),
    "pixelcnn": (pixelcnn_case, PIXELCNN, True),
    "guidance": (guidance_case, GPT, False),
    "extraction": (extraction_case, EXTRACTED, False),
}


def measure(case: str, rounds: int) -> dict[str, Any]:
    """Time the calls of one case alternately."""
    build, sizes, is_slow = CASES[case]
    calls = build()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    results: dict[str, torch.Tensor] = {}
    for turn in range(rounds):
        for name, call in calls.items():
            if is_slow and turn > 0 and name != "spectok":
                continue
            clock, processor = time.perf_counter(), time.process_time()
            results[name] = call()
            seconds[name].append((time.process_time() - processor, time.perf_counter() - clock))
    best = {name: min(s for s, _ in taken) for name, taken in seconds.items()}
    others = [name for name in calls if name != "spectok"]
    return {
        "sizes": sizes,
        "seconds": best,
        "seconds_by_the_clock": {n: min(s for _, s in taken) for n, taken in seconds.items()},
        "ratio_to_spectok": {name: best[name] / best["spectok"] for name in others},
        "identical_tokens": {n: torch.equal(results[n], results["spectok"]) for n in others},
    }


def main() -> None:
    """Measure the requested cases; other cases keep their earlier results."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    default = Path(__file__).parent / "results/sampling.json"
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    report |= {"command": "python benchmarks/sampling.py", "machine": describe_machine()}
    report |= {"tokens": SPEC.num_tokens, "codes": SPEC.max_vocab_size, "batch_size": BATCH}
    for case in arguments.only:
        report[case] = measure(case, arguments.rounds)
        print(json.dumps({case: report[case]}, indent=2), flush=True)
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run_program(main)
