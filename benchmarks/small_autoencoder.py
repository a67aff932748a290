"""Train a small ``AutoencoderKL`` of diffusers, for measurements of ``frozen`` without a download.

    python benchmarks/small_autoencoder.py --data cifar10 --path DIR --out runs/autoencoder

The published autoencoders are hundreds of times as large and as long in training: what is measured
on this one says how quantizers compare inside a frozen latent space, not how good such a space is.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from one_line import run_program
from torch.nn import functional as F

from spectok.data import DataConfig, build_dataset
from spectok.machine import describe_machine
from spectok.metrics import psnr
from spectok.training.batches import Stream, make_loader, read

ARCHITECTURE = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
}
"""Latents four times smaller each way, of four channels."""


def train(network: AutoencoderKL, images: object, steps: int, batch_size: int, seed: int) -> float:
    """Train on squared error plus a weak divergence from the normal; return the seconds it took."""
    stream = Stream(len(images), batch_size, seed, 0, steps)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.1)
    start = time.perf_counter()
    for step, batch in enumerate(read(make_loader(images, stream, 0))):  # type: ignore[arg-type]
        latents = network.encode(batch["images"]).latent_dist
        error = F.mse_loss(network.decode(latents.sample()).sample, batch["images"])
        divergence = latents.kl().mean() / latents.mean[0].numel()
        optimizer.zero_grad()
        (error + 1e-4 * divergence).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: {error.item():.5f}, {time.perf_counter() - start:.0f} s")
    return time.perf_counter() - start


@torch.no_grad()
def measure(network: AutoencoderKL, images: object) -> float:
    """Return the mean PSNR in dB of images decoded from the means of their latents."""
    found = []
    for first in range(0, len(images), 100):  # type: ignore[arg-type]
        rows = range(first, min(first + 100, len(images)))  # type: ignore[arg-type]
        batch = torch.stack([images[row]["images"] for row in rows])  # type: ignore[index]
        decoded = network.decode(network.encode(batch).latent_dist.mean).sample
        found.append(psnr(batch, decoded.clamp(-1, 1)))
    return torch.cat(found).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--path", help="where the data set is; the hub otherwise")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    data = {"name": args.data, "path": args.path}
    network = AutoencoderKL(**ARCHITECTURE)
    images = build_dataset(DataConfig(**data, split="train"))
    seconds = train(network, images, args.steps, args.batch_size, args.seed)
    held_out = build_dataset(DataConfig(**data, split="test", limit=1000))
    network.eval().save_pretrained(args.out)
    record = {
        "command": f"python benchmarks/small_autoencoder.py --data {args.data} --path DIR --out "
        f"{args.out} --steps {args.steps} --batch-size {args.batch_size} --seed {args.seed}",
        "machine": describe_machine(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "latent_shape": [4, 8, 8],
        "seconds": seconds,
        "psnr_unquantised": measure(network, held_out),
        "held_out_images": len(held_out),
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    run_program(main)
