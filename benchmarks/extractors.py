"""FQ-VAE's three feature extractors (Table 4), side by side. Writes ``results/extractors.json``.

    pip install -e '.[bench]'
    python benchmarks/extractors.py                   # or with --device cuda

Throughput is measured from images to indices and back, as in ``spectok reconstruct``; all forms of
one size take turns in one process on the same images. With one thread the clock is the CPU time of
this process, which other programs disturb less. Peak memory is measured for the same call, in a
fresh process for each form: the weights, and what is added while it runs (on a CPU the growth of
the resident set, on a GPU what torch allocates).

About its transformer the paper says only that it follows ViT-VQGAN. ``transformer`` is
ViT-VQGAN-Small on patches of 4 pixels; in ``transformer, plain`` the same model forms the matrix of
all attention weights, as was common before fused attention. ``transformer, small`` has about the
parameters of the convolutions, for a comparison at equal size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import torch
from one_line import run_program
from torch.nn.attention import SDPBackend, sdpa_kernel

import spectok

SIZES = {32: 1, 64: 1, 128: 2}  # image size -> factor between image and latents, section 4.1
CONVOLUTIONS = {"channels": 128, "num_blocks": 2, "residual_channels": 32}
WHOLE_MAPS = {"codebook_dim": None, "filter_init": "noise", "network": "conv", **CONVOLUTIONS}
GRID = {"codebook_dim": 64, "quantizer": {"name": "cvq_pearson", "num_codebooks": 1}}
VIT = {"extractor": "transformer", "channels": 512, "num_blocks": 8, **GRID}
FORMS = {
    "fft": {"quantizer": GRID["quantizer"], "channels": 16, "max_channels": 64, "num_heads": 8},
    "fft, as printed": WHOLE_MAPS | {"quantizer": GRID["quantizer"]},
    "convolution": {"extractor": "convolution", **CONVOLUTIONS, **GRID},
    "transformer": VIT,
    "transformer, plain": VIT,
    "transformer, small": {"extractor": "transformer", "channels": 128, "num_blocks": 2, **GRID},
}
SHARED = ("batch-size", "threads", "device")  # options of the processes that measure memory


def build(form: str, size: int, device: str):
    """Return one form of FQ-VAE with a sixteenth as many tokens as pixels, untrained."""
    torch.manual_seed(0)
    factor = {"downsample_factor": SIZES[size]} if form.startswith("fft") else {}
    options = FORMS[form] | factor
    model = spectok.load_tokenizer("fqvae", image_size=size, num_tokens=size**2 // 16, **options)
    return model.eval().to(device)


@torch.no_grad()
def reconstruct(model, images, form: str) -> None:
    """Turn images into indices and back, and wait for the result."""
    with sdpa_kernel(SDPBackend.MATH) if form.endswith("plain") else contextlib.nullcontext():
        model.decode(model.encode(images)).sum().item()


def measure_size(size: int, arguments) -> dict:
    """Time all forms of one image size in turn, and measure their memory."""
    device, batch = arguments.device, arguments.batch_size
    images = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    models = {form: build(form, size, device) for form in FORMS}
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    own_time = device == "cpu" and arguments.threads == 1
    clock = time.process_time if own_time else time.perf_counter
    for form, model in models.items():
        reconstruct(model, images[:1], form)  # warms up
    for _ in range(arguments.rounds):
        for form, model in models.items():
            start = clock()
            reconstruct(model, images, form)
            seconds[form].append(clock() - start)
    result = {}
    for form, model in models.items():
        result[form] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "images_per_second": batch / min(seconds[form]),
            "images_per_second_median": batch / statistics.median(seconds[form]),
            **memory_in_fresh_process(form, size, arguments),
        }
    return result


def memory_in_fresh_process(form: str, size: int, arguments) -> dict:
    """Measure one form's memory in a process that has allocated nothing before."""
    options = [f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in SHARED]
    command = [sys.executable, __file__, "--memory", form, str(size), *options]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def measure_memory(form: str, size: int, batch: int, device: str) -> dict:
    """Return the bytes of the weights, and of what a reconstruction adds."""
    model, images = build(form, size, device), torch.rand(batch, 3, size, size, device=device)
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if device == "cuda":
        start = torch.cuda.memory_allocated()
        reconstruct(model, images, form)
        growth = torch.cuda.max_memory_allocated() - start
    else:
        growth = resident_growth(lambda: reconstruct(model, images, form))
    return {"weight_bytes": weights, "working_bytes": growth, "peak_bytes": weights + growth}


def resident_growth(call) -> int:
    """Return the growth of the resident set, in bytes, while a call runs."""
    process, done, peak = psutil.Process(), threading.Event(), 0
    start = process.memory_info().rss

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss - start)
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return peak


def ratios(forms: dict) -> dict:
    """Return how much faster and smaller each Fourier form is than each transformer."""
    found = {}
    for ours in ("fft", "fft, as printed"):
        for theirs in ("transformer", "transformer, plain", "transformer, small"):
            speed, memory = (
                forms[ours][key] / forms[theirs][key] for key in ("images_per_second", "peak_bytes")
            )
            found[f"{ours} / {theirs}"] = {"speed": round(speed, 2), "memory": round(memory, 3)}
    return found


def main() -> None:
    """Measure all forms at all sizes, or one form's memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--memory", nargs=2, metavar=("FORM", "SIZE"), help=argparse.SUPPRESS)
    folder = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=folder / "extractors.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        form, size = arguments.memory
        print(json.dumps(measure_memory(form, int(size), arguments.batch_size, arguments.device)))
        return
    gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else None
    report = {
        "command": " ".join(["python benchmarks/extractors.py", *sys.argv[1:]]),
        "machine": gpu or f"{arguments.threads} thread(s) of a {platform.machine()} CPU",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "batch_size": arguments.batch_size,
        "rounds": arguments.rounds,
        "forms": FORMS,
        "sizes": {},
    }
    for size in SIZES:
        forms = measure_size(size, arguments)
        report["sizes"][size] = {"forms": forms, "ratios": ratios(forms)}
        print(json.dumps(report["sizes"][size], indent=2), flush=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run_program(main)
