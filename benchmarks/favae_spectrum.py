"""FA-VAE's claim about the high band, at a small scale. Writes ``results/favae_spectrum.json``.

    python benchmarks/favae_spectrum.py

The claim: with frequency complement modules and the dynamic spectrum loss, the decoder's spectrum
is nearer to the encoder's, and the reconstruction's to the image's, than in the same model without
them. All variants see the same batches of grey 16×16 crops of photographs, with one learning
rate and number of steps; per seed they start from the same weights, except ``wide``, a model
without modules but with more weights than those with them. Measurements are taken from tokens
alone, on crops that share no pixel with the training crops, at frequencies of at least 0.25 cycles
per pixel of the map.

For features at each tap i, the decoder's before its stage i against the encoder's A_i:

1. ``scaled``: sum of ``|s F_dec - F_enc|²`` over sum of ``|F_enc|²``, at the best s. 1 means that
   no frequency of any channel is matched better than by zero.
2. ``probed``: the same, after a linear map from all channels to all, fitted on training crops: what
   the features tell about A_i, in any channels. It can exceed 1.
3. ``amplitude``: as in Fig. 3, log10 amplitudes, averaged over channels; the mean absolute
   difference after subtracting each map's mean over all frequencies.

``complement`` has 1 and 3 for C_i itself, if something else is passed on. For images: mean squared
error per frequency, mean absolute error of log10 amplitudes, and the share of energy retained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from kept import check_free
from one_line import positive, run_program
from spectra import FLOOR, radial_frequencies
from torch import Tensor

from spectok import load_tokenizer
from spectok.data import DataConfig, ImageDataset, build_dataset
from spectok.evaluation.protocol import make_protocol
from spectok.machine import describe_machine
from spectok.training import TrainConfig
from spectok.training.optimizer import make_optimizer, set_learning_rate
from spectok_favae.model import FAVAE

MODEL = {
    "image_size": 16,
    "in_channels": 1,
    "downsample_factor": 2,
    "channel_multipliers": [1, 2],
    "channels": 8,
    "num_blocks": 1,
    "codebook_size": 64,
    "codebook_dim": 16,
    "post_quant_conv": False,  # the results that are kept were measured without it
    "quantizer": {"name": "cosine", "revive_below": 0.1},
}
PLAIN = {"fcm": "none", "spectrum_loss": "none"}
VARIANTS: dict[str, dict[str, Any]] = {
    "without": PLAIN,
    "wide": PLAIN | {"channels": 10},
    "modules only": {"spectrum_loss": "none"},
    "conv, weight 0.01": {},  # the paper's weight, kernel and sigma
    "conv, weight 1": {"spectrum_weight": 1.0},
    "residual, weight 1": {"spectrum_weight": 1.0, "fcm": "residual"},
    "residual, weight 1, sigma 0.5": {"spectrum_weight": 1.0, "fcm": "residual", "sigma": 0.5},
}
TRAINING_CROPS, TEST_CROPS = 1024, 256
BATCH_SIZE, LEARNING_RATE = 16, 3e-3
BAND = 0.25  # cycles per pixel


def dataset_of(split: str, count: int) -> ImageDataset:
    """Return grey crops of photographs."""
    size = {"image_size": MODEL["image_size"], "channels": MODEL["in_channels"]}
    config = {"name": "photos", "split": split, "limit": count} | size
    return build_dataset(DataConfig.model_validate(config))


def crops(split: str, count: int) -> Tensor:
    """Return them as a batch, (N, 1, H, W)."""
    data = dataset_of(split, count)
    return torch.stack([data[i]["images"] for i in range(count)])


def build(options: dict[str, Any], seed: int) -> FAVAE:
    """Return a variant; the parts it shares with the model without modules start equal."""
    torch.manual_seed(seed)
    model = load_tokenizer("favae", **(MODEL | options))
    if "channels" not in options:
        torch.manual_seed(seed)
        plain = load_tokenizer("favae", **(MODEL | PLAIN))
        model.load_state_dict(plain.state_dict(), strict=False)
    return model


def fit(model: FAVAE, images: Tensor, steps: int, seed: int) -> None:
    """Train as the trainer does."""
    schedule = {"steps": steps, "warmup_steps": 20, "lr_schedule": "cosine"}
    config = TrainConfig.model_validate(schedule | {"learning_rate": LEARNING_RATE})
    optimizer = make_optimizer(model.train(), config)
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    for step in range(steps):
        set_learning_rate(optimizer, config, step)
        batch = images[torch.randint(len(images), (BATCH_SIZE,), generator=order)]
        optimizer.zero_grad()
        torch.stack(list(model(batch).losses.values())).sum().backward()
        optimizer.step()
        model.after_step([optimizer])
    model.eval()


@torch.no_grad()
def inside(model: FAVAE, images: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Return A_1 … A_4, what enters the decoder's stages and C_i in that order, and the images."""
    activations = model.encoder.stages(images)
    z = model.token_space.to_vectors(activations[-1])
    x = model.token_space.to_latents(model.quantizer.lookup(model.quantizer.encode(z)))
    features, complements = [], []
    for module, stage in zip(reversed(model.decoder.complements), model.decoder.stages()):
        complement, x = module(x)
        complements.insert(0, complement)
        features.insert(0, x)
        x = stage(x)
    return activations, features, complements, x


def band(maps: Tensor) -> Tensor:
    """Return which frequencies are in the high band, (H, W)."""
    return radial_frequencies(maps) >= BAND


def high(maps: Tensor) -> Tensor:
    """Return the frequencies of the high band, (B, C, n)."""
    return torch.fft.fft2(maps, norm="ortho")[..., band(maps)]


def error(output: Tensor, target: Tensor) -> float:
    """Return the squared error of spectra over the energy of the target."""
    return float((output - target).abs().square().sum() / target.abs().square().sum())


def scaled_error(maps: Tensor, target: Tensor) -> float:
    """Return measure 1."""
    output, wanted = high(maps), high(target)
    scale = (output.conj() * wanted).real.sum() / output.abs().square().sum()
    return error(scale * output, wanted)


def with_constant(maps: Tensor) -> Tensor:
    """Return maps as pixels, (B*H*W, C + 1), in float64."""
    pixels = maps.movedim(1, -1).flatten(0, 2).double()
    return torch.cat([pixels, torch.ones(len(pixels), 1, dtype=torch.float64)], dim=1)


def probed_error(maps: Tensor, target: Tensor, fit_maps: Tensor, fit_target: Tensor) -> float:
    """Return measure 2."""
    inputs, wanted = with_constant(fit_maps), with_constant(fit_target)[:, :-1]
    found = torch.linalg.lstsq(inputs, wanted, driver="gelsd").solution
    b, c, h, w = target.shape
    output = (with_constant(maps) @ found).view(b, h, w, c).movedim(-1, 1)
    return error(high(output.float()), high(target))


def amplitude_error(maps: Tensor, target: Tensor) -> float:
    """Return measure 3."""
    difference = level_free_amplitudes(maps) - level_free_amplitudes(target)
    return float(difference[:, band(maps)].abs().mean())


def level_free_amplitudes(maps: Tensor) -> Tensor:
    """Return log10 amplitudes, mean over channels, minus their mean over frequencies, (B, H, W)."""
    spectrum = torch.fft.fft2(maps, norm="ortho").abs().clamp_min(1e-6).log10().mean(1)
    return spectrum - spectrum.mean((-2, -1), keepdim=True)


def measure(model: FAVAE, training: Tensor, test: Tensor) -> dict[str, Any]:
    """Compare features and images in the high band."""
    fit_targets, fit_features, _, _ = inside(model, training)
    targets, features, complements, reconstruction = inside(model, test)
    result: dict[str, Any] = {}
    for i, (target, feature, complement) in enumerate(zip(targets, features, complements)):
        values = {
            "scaled": scaled_error(feature, target),
            "probed": probed_error(feature, target, fit_features[i], fit_targets[i]),
            "amplitude": amplitude_error(feature, target),
        }
        if model.config["fcm"] == "conv":
            values["complement scaled"] = scaled_error(complement, target)
            values["complement amplitude"] = amplitude_error(complement, target)
        result |= {f"tap {i + 1} {name}": value for name, value in values.items()}
    output, wanted = high(reconstruction), high(test)
    logs = [spectrum.abs().clamp_min(FLOOR).log10() for spectrum in (output, wanted)]
    return result | {
        "image squared": float((output - wanted).abs().square().mean()),
        "image log amplitude": float((logs[0] - logs[1]).abs().mean()),
        "image energy left": float(output.abs().square().sum() / wanted.abs().square().sum()),
        "image mse, all frequencies": float((reconstruction - test).square().mean()),
    }


def run(options: dict[str, Any], seed: int, steps: int, training: Tensor, test: Tensor) -> dict:
    """Train one variant from one seed, and measure it."""
    start = time.process_time()
    model = build(options, seed)
    fit(model, training, steps, seed)
    measured = measure(model, training[: len(test)], test)
    parameters = sum(p.numel() for p in model.parameters())
    return measured | {"parameters": parameters, "cpu_seconds": time.process_time() - start}


def summarise(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Return mean, least and largest value over the seeds."""
    rows = {name: [r[name] for r in runs] for name in runs[0]}
    return {
        name: {"mean": statistics.mean(values), "least": min(values), "largest": max(values)}
        for name, values in rows.items()
    }


def main() -> None:
    """Run all variants for every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=positive, default=300)
    parser.add_argument("--seeds", type=positive, default=3)
    path = Path(__file__).parent / "results" / "favae_spectrum.json"
    parser.add_argument("--out", type=Path, default=path)
    arguments = parser.parse_args()
    command = "python benchmarks/favae_spectrum.py "
    command += f"--steps {arguments.steps} --seeds {arguments.seeds}"
    check_free(arguments.out, command, "--out")
    torch.set_num_threads(1)
    training, test = crops("train", TRAINING_CROPS), crops("test", TEST_CROPS)
    runs: dict[str, list] = {name: [] for name in VARIANTS}
    for seed in range(arguments.seeds):
        for name, options in VARIANTS.items():
            runs[name].append(run(options, seed, arguments.steps, training, test))
            print(seed, name, json.dumps(runs[name][-1]), flush=True)
    report = {
        "command": command,
        "machine": describe_machine(),
        "protocol": make_protocol(
            dataset_of("test", TEST_CROPS), "float32", 0, {}, band=f"from {BAND} cycles per pixel"
        ),
        "model": MODEL,
        "training": {
            "crops": TRAINING_CROPS,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
        },
        "variants": VARIANTS,
        "over_seeds": {name: summarise(results) for name, results in runs.items()},
        "per_seed": runs,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
