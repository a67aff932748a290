"""The report of the demo: one self-contained HTML page."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import torch

from spectok import TokenSpec
from spectok.errors import CheckpointError
from spectok.metrics import count_codes, split_by_codebook
from spectok.training.contracts import Record
from spectok.writing import write_text
from spectok_generation.demo.demo_recipe import Plan
from spectok_generation.demo.page import duration, figure, page, section, table
from spectok_generation.demo.pictures import plot_histograms, plot_lines, png_uri
from spectok_generation.demo.results import Results, prefix_lengths
from spectok_generation.drawing import decode_tokens

STRIP = 10


def write_report(results: Results, path: Path) -> None:
    """Write the report of a demo as an HTML page.

    Raises:
        CheckpointError: If it cannot be written.
    """
    sections = [
        _summary(results),
        _reconstructions(results),
        _prefixes(results),
        _comparison(results),
        _samples(results),
        _closeness(results),
        _installed(results),
        _codebooks(results),
        _curves(results),
        _machine(results),
        _next_steps(results),
    ]
    title = f"spectok demo: {results.held_out.dataset.report.name.split('/')[0]}"
    write_text(path, page(title, sections), CheckpointError)


# -- sections -------------------------------------------------------------------------------------


def _summary(results: Results) -> str:
    metrics, samples = results.metrics, results.metrics["samples"]
    tiles = [(f"{m['psnr']:.2f} dB", f"PSNR of {label}, held-out") for label, m in _each(results)]
    tiles.append((f"{100 * samples['class_accuracy']:.1f} %", "of samples recognised"))
    tiles.append((duration(metrics["seconds"]), "for everything on this page"))
    shown = "".join(f"<div class=tile><b>{v}</b><span>{escape(t)}</span></div>" for v, t in tiles)
    spec, main = results.main.tokenizer.token_spec, results.plan.main
    _, height, width = results.main.tokenizer.image_shape
    return (
        "<h1>Images in, tokens, new images out</h1>\n"
        f"<p>{len(results.competitors)} tokenizers learned {len(results.training.images):,} real "
        f"images of {width}×{height} pixels at {spec.bits_per_image:g} bits per image. Then "
        f"{escape(results.metrics['prior']['name'])} learned the {spec.num_tokens} tokens per "
        f"image of {escape(main)}, and drew new images. Every number was measured in this run, on "
        f"this machine.</p>\n<div class=tiles>{shown}</div>\n"
    )


def _reconstructions(results: Results) -> str:
    numbers = results.held_out.one_per_class(STRIP)
    originals = results.held_out.images[numbers]
    rows = [figure(png_uri(originals, STRIP), "held-out images, never used in training")]
    for label, competitor in results.competitors.items():
        decoded = decode_tokens(competitor.tokenizer, competitor.tokenizer.encode(originals))
        tokens = _list_levels(competitor.tokenizer.token_spec, "{shape} tokens of {codes} codes")
        text = f"{label}: from {tokens}"
        rows.append(figure(png_uri(decoded, STRIP), text))
    return section("Into tokens and back", "".join(rows))


def _prefixes(results: Results) -> str:
    tokenizer = results.main.tokenizer
    lengths = prefix_lengths(tokenizer.token_spec)
    if len(lengths) < 2:
        return ""
    originals = results.held_out.images[results.held_out.one_per_class(STRIP)]
    indices = tokenizer.encode(originals)
    rows = []
    with torch.no_grad():
        for k in lengths:
            value = results.main.metrics["psnr_by_num_tokens"][k]
            text = f"{k} {'token' if k == 1 else 'tokens'}: {value:.1f} dB over all held-out images"
            rows.append(figure(png_uri(tokenizer.decode(indices, num_tokens=k), STRIP), text))
    rows.append(figure(png_uri(originals, STRIP), "originals"))
    intro = (
        f"{escape(results.plan.main)} orders its tokens by importance, so the first few decode "
        f"on their own; without any, the decoder gives the mean of the data."
    )
    return section("Token by token", f"<p>{intro}</p>\n{''.join(rows)}")


def _comparison(results: Results) -> str:
    names = {
        "psnr": ("PSNR, dB", "{:.2f}"),
        "ssim": ("SSIM", "{:.4f}"),
        "mse": ("MSE, pixels in [0, 1]", "{:.5f}"),
        "bits_per_image": ("bits per image", "{:g}"),
        "codebook_usage": ("share of codes in use", "{:.1%}"),
        "perplexity": ("perplexity of a codebook", "{:.1f}"),
        "parameters": ("parameters", "{:,}"),
        "steps": ("steps", "{:,}"),
        "batch_size": ("images per step", "{:,}"),
        "seconds": ("seconds of training", "{:.0f}"),
    }
    rows = [
        [text, *(form.format(metrics[key]) for _, metrics in _each(results))]
        for key, (text, form) in names.items()
    ]
    specs = [competitor.tokenizer.token_spec for competitor in results.competitors.values()]
    rows.insert(3, ["tokens", *(_list_levels(spec, "{shape} of {codes} codes") for spec in specs)])
    rows.insert(4, ["codebooks", *(_list_levels(spec, "{books:,}") for spec in specs)])
    count = results.main.metrics["num_images"]
    intro = (
        f"Same images, steps, images per step and bits. {_verdict(results)} Means over {count:,} "
        f"held-out images, rounded to 8 bits; SSIM uses a uniform 7×7 window."
    )
    numbers = table(["", *results.competitors], rows)
    return section("Side by side", f"<p>{escape(intro)}</p>\n{numbers}")


def _samples(results: Results) -> str:
    drawn, metrics = results.drawn, results.metrics["samples"]
    rows = drawn.first_of_each_class(10)
    grid = figure(png_uri(rows.flatten(0, 1), rows.shape[1]), "one row per class", "square")
    options = results.plan.recipe.samples.model_dump(exclude_none=True, exclude={"per_class"})
    how = ", ".join(f"{name} {value:g}" for name, value in options.items())
    names = results.training.dataset.class_names or range(len(metrics["class_accuracy_by_class"]))
    by_class = [f"{100 * share:.0f}" for share in metrics["class_accuracy_by_class"]]
    shares = table(["class", *map(str, names)], [["recognised, %", *by_class]])
    intro = (
        f"The first {rows.shape[1]} of {metrics['count'] // len(by_class):,} images per class, "
        f"not selected ({how}). A classifier that is right on "
        f"{100 * metrics['classifier_accuracy']:.1f} % of real held-out images recognises "
        f"{100 * metrics['class_accuracy']:.1f} % of all {metrics['count']:,} samples as the class "
        f"they were drawn for."
    )
    return section("New images", f"<p>{intro}</p>\n{grid}{shares}")


def _closeness(results: Results) -> str:
    drawn, metrics = results.drawn, results.metrics["samples"]
    first = torch.cat([(drawn.labels == k).nonzero()[0] for k in drawn.labels.unique()])
    nearest = results.training.images[drawn.closeness.samples.index[first]]
    plot = plot_histograms(
        {
            "samples": drawn.closeness.samples.distance,
            "real held-out images": drawn.closeness.held_out.distance,
            "training images, reconstructed": drawn.closeness.reconstructed.distance,
        },
        "distance to the nearest training image",
    )
    intro = (
        f"Copies would lie as close to training images as reconstructed training images do: at "
        f"{metrics['copies_nearest_train_distance']:.3f} on average (root mean squared difference "
        f"of pixels in [0, 1]). Samples lie at {metrics['nearest_train_distance']:.3f}, and real "
        f"held-out images at {metrics['held_out_nearest_train_distance']:.3f}. "
        f"{100 * metrics['closer_than_any_held_out']:.1f} % of the samples are closer than any "
        f"held-out image, {100 * metrics['token_copies']:.1f} % have exactly the tokens of a "
        f"training image, and {100 * metrics['distinct']:.1f} % are distinct."
    )
    pairs = figure(png_uri(drawn.images[first], len(first)), "samples") + figure(
        png_uri(nearest, len(first)), "the nearest training image of each"
    )
    return section("Are they copies?", f"<p>{intro}</p>\n{pairs}<div class=plots>{plot}</div>")


def _installed(results: Results) -> str:
    shown = results.on_photographs
    if shown is None:
        return ""
    _, _, height, width = shown.originals.shape
    columns = len(shown.originals)
    rows = [figure(png_uri(shown.originals, columns), f"photographs, {width}×{height} pixels")]
    for name, images in shown.reconstructions.items():
        found = shown.metrics[name]
        how = f"in {found['tiles']} tiles" if found["tiles"] > 1 else "whole"
        text = (
            f"{name}, {how}: {found['bits_per_pixel']:.3g} bits per pixel, {found['psnr']:.1f} dB"
        )
        rows.append(figure(png_uri(images, columns), text))
    intro = (
        "What these minutes leave to be wished for, time gives: tokenizers that are installed with "
        "spectok, trained for longer on other, smaller images, and what they make of photographs "
        "that they have never seen. <code>spectok list models</code> shows them all."
    )
    return section("Trained for longer", f"<p>{intro}</p>\n{''.join(rows)}")


def _codebooks(results: Results) -> str:
    lines = {}
    for label, competitor in results.competitors.items():
        spec = competitor.tokenizer.token_spec
        for i, counts in enumerate(split_by_codebook(spec, count_codes(spec, competitor.indices))):
            share = counts / counts.sum(1, keepdim=True).clamp_min(1)
            mean = 100 * share.sort(dim=1, descending=True).values.mean(0)
            name = label if spec.num_levels == 1 else f"{label}, level {i + 1}"
            lines[name] = (range(1, len(mean) + 1), mean.tolist())
            lines["_uniform"] = ([1, len(mean)], [100 / len(mean)] * 2)
    plot = plot_lines(lines, "code, most frequent first", "share of its codebook's tokens, %")
    intro = (
        "How often each code is chosen for training images, sorted within each codebook and "
        "averaged over codebooks. The dotted line is uniform use; codes that are never chosen "
        "waste bits."
    )
    return section("Codebooks", f"<p>{intro}</p>\n<div class=plots>{plot}</div>")


def _curves(results: Results) -> str:
    histories = {label: c.history for label, c in results.competitors.items()}
    histories[results.metrics["prior"]["name"]] = results.prior_history
    plots = [
        f"<figure>{_plot_history(history)}<figcaption>{escape(label)}</figcaption></figure>"
        for label, history in histories.items()
    ]
    intro = "Losses of different tokenizers are not on the same scale. The prior's is in nats."
    return section("Training", f"<p>{intro}</p>\n<div class=plots>{''.join(plots)}</div>")


def _machine(results: Results) -> str:
    metrics, machine = results.metrics, results.metrics["machine"]
    rows = [[name, duration(seconds)] for name, seconds in metrics["stages"].items()]
    rows.append(["everything", duration(metrics["seconds"])])
    peak = metrics["peak_memory_bytes"]
    facts = [
        f"{machine['processor']}, {machine['cores']} cores, {_threads(machine['threads'])} used",
        f"training on {machine['device']}",
        machine["system"],
        *([f"at most {peak / 2**30:.2f} GiB of memory"] if peak else []),
        ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
    ]
    facts_shown = " · ".join(map(escape, facts))
    return section("Time", f"{table(['stage', 'time'], rows)}<p class=soft>{facts_shown}</p>")


def _next_steps(results: Results) -> str:
    lines = [
        line
        for remark, command in next_commands(results.plan, results.out)
        for line in (f"# {remark}", shlex.join(command), "")
    ]
    return section("Next steps", f"<pre>{escape(chr(10).join(lines).strip())}</pre>\n")


def next_commands(plan: Plan, out: Path) -> list[tuple[str, list[str]]]:
    """Return suggested commands, each with what it does.

    Args:
        plan: The plan that was carried out.
        out: Folder of the demo.
    """
    folders = (f"models/{plan.main}", "models/prior", "images")
    tokenizer, prior, images = (str(out / folder) for folder in folders)
    key = plan.tokenizers[plan.main].tokenizer["name"]
    sample = ["spectok", "sample", "--prior", prior]
    return [
        ("draw more, with another seed", [*sample, "--seed", "1", "--out", "more.png"]),
        ("draw one class", [*sample, "--class", "3", "--num-images", "25", "--out", "threes.png"]),
        (
            "reconstruct images with the tokenizer",
            ["spectok", "reconstruct", tokenizer, images, "--out", "grid.png"],
        ),
        (
            "turn images into tokens",
            ["spectok", "encode", tokenizer, images, "--out", "tokens.npz"],
        ),
        ("train on your own images", ["spectok", "train", key, "--data", "path/to/images"]),
    ]


# -- parts ----------------------------------------------------------------------------------------


def _each(results: Results) -> Iterable[tuple[str, dict[str, Any]]]:
    return ((label, competitor.metrics) for label, competitor in results.competitors.items())


def _verdict(results: Results) -> str:
    ranked = sorted(_each(results), key=lambda pair: -pair[1]["psnr"])
    if len(ranked) < 2:
        return ""
    (best, first), (other, second) = ranked[:2]
    return f"{best} is ahead of {other} by {first['psnr'] - second['psnr']:.2f} dB."


def _list_levels(spec: TokenSpec, form: str) -> str:
    """Fill in the shape, vocabulary size and number of codebooks of each level."""
    nothing = torch.zeros(spec.num_codes)
    return " + ".join(
        form.format(
            shape="×".join(map(str, level.shape)), codes=level.vocab_size, books=len(codebooks)
        )
        for level, codebooks in zip(spec.levels, split_by_codebook(spec, nothing))
    )


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _plot_history(history: list[Record]) -> str:
    terms = [name for name in history[0] if name.startswith("loss/")]
    names = ["loss", *(terms if len(terms) > 1 else [])]  # a single term equals the loss
    steps = [record["step"] for record in history]
    lines = {name: (steps, [record[name] for record in history]) for name in names}
    positive = all(min(y) > 0 for _, y in lines.values())
    return plot_lines(lines, "step", "loss", log_y=positive and len(names) > 1)
