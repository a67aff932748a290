"""The page of the demo: one HTML file that needs nothing but itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import torch

from spectok import TokenSpec
from spectok.metrics import count_codes, split_by_codebook
from spectok.training.contracts import Record
from spectok_generation.demo.pictures import plot_histograms, plot_lines, png_uri
from spectok_generation.demo.recipe import Plan
from spectok_generation.demo.results import Results, prefix_lengths
from spectok_generation.generate import decode_tokens

STRIP = 10
STYLE = Path(__file__).with_name("page.css")


def write_report(results: Results, path: Path) -> None:
    """Write the page."""
    sections = [
        _summary(results),
        _reconstructions(results),
        _prefixes(results),
        _comparison(results),
        _samples(results),
        _closeness(results),
        _codebooks(results),
        _curves(results),
        _machine(results),
        _next_steps(results),
    ]
    title = f"spectok demo: {results.held_out.dataset.report.name.split('/')[0]}"
    path.write_text(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f"{''.join(sections)}</body>\n</html>\n",
        encoding="utf-8",
    )


# -- sections -------------------------------------------------------------------------------------


def _summary(results: Results) -> str:
    metrics, samples = results.metrics, results.metrics["samples"]
    tiles = [(f"{m['psnr']:.2f} dB", f"PSNR of {label}, held-out") for label, m in _each(results)]
    tiles.append((f"{100 * samples['class_accuracy']:.1f} %", "of samples recognised"))
    tiles.append((_duration(metrics["seconds"]), "from nothing to this page"))
    shown = "".join(f"<div class=tile><b>{v}</b><span>{escape(t)}</span></div>" for v, t in tiles)
    spec, main = results.main.tokenizer.token_spec, results.plan.main
    _, height, width = results.main.tokenizer.image_shape
    return (
        "<h1>Images in, tokens, new images out</h1>\n"
        f"<p>{len(results.competitors)} tokenizers learned {len(results.training.images):,} real "
        f"images of {width}×{height} pixels at {spec.bits_per_image:g} bits per image. Then "
        f"{escape(results.metrics['prior']['name'])} learned the {spec.num_tokens} tokens that "
        f"{escape(main)} makes of an image, and drew new ones. Every number is measured on this "
        f"machine, in this run.</p>\n<div class=tiles>{shown}</div>\n"
    )


def _reconstructions(results: Results) -> str:
    numbers = results.held_out.one_per_class(STRIP)
    originals = results.held_out.images[numbers]
    rows = [_figure(png_uri(originals, STRIP), "held-out images, which nothing learned from")]
    for label, competitor in results.competitors.items():
        decoded = decode_tokens(competitor.tokenizer, competitor.tokenizer.encode(originals))
        text = f"{label}: from {_describe_tokens(competitor.tokenizer.token_spec)}"
        rows.append(_figure(png_uri(decoded, STRIP), text))
    return _section("Through the tokens and back", "".join(rows))


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
            rows.append(_figure(png_uri(tokenizer.decode(indices, num_tokens=k), STRIP), text))
    rows.append(_figure(png_uri(originals, STRIP), "originals"))
    intro = (
        f"{escape(results.plan.main)} orders its tokens by importance, so the first few decode "
        f"on their own; none at all give the mean of the data."
    )
    return _section("Token by token", f"<p>{intro}</p>\n{''.join(rows)}")


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
    specs = [_describe_tokens(c.tokenizer.token_spec) for c in results.competitors.values()]
    rows.insert(3, ["tokens", *specs])
    count = results.main.metrics["num_images"]
    intro = (
        f"Same images, steps, images per step and bits. {_verdict(results)} Means over {count:,} "
        f"held-out images, rounded to 8 bits; SSIM with a uniform 7×7 window."
    )
    table = _table(["", *results.competitors], rows)
    return _section("Side by side", f"<p>{escape(intro)}</p>\n{table}")


def _samples(results: Results) -> str:
    drawn, metrics = results.drawn, results.metrics["samples"]
    rows = drawn.first_of_each_class(10)
    grid = _figure(png_uri(rows.flatten(0, 1), rows.shape[1]), "a row per class", "square")
    options = results.plan.recipe.samples.model_dump(exclude_none=True, exclude={"per_class"})
    how = ", ".join(f"{name} {value:g}" for name, value in options.items())
    names = results.training.dataset.class_names or range(len(metrics["class_accuracy_by_class"]))
    by_class = [f"{100 * share:.0f}" for share in metrics["class_accuracy_by_class"]]
    table = _table(["class", *map(str, names)], [["recognised, %", *by_class]])
    intro = (
        f"The first {rows.shape[1]} of {metrics['count'] // len(by_class):,} images per class, as "
        f"they were drawn ({how}). A classifier that is right on "
        f"{100 * metrics['classifier_accuracy']:.1f} % of real held-out images recognises "
        f"{100 * metrics['class_accuracy']:.1f} % of all {metrics['count']:,} as the class asked "
        f"for."
    )
    return _section("New images", f"<p>{intro}</p>\n{grid}{table}")


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
        f"If samples were copies, they would lie as close to training images as reconstructed "
        f"training images do: {metrics['copies_nearest_train_distance']:.3f} on average (root mean "
        f"squared difference of pixels in [0, 1]). They lie at "
        f"{metrics['nearest_train_distance']:.3f}; real images that nothing learned from lie at "
        f"{metrics['held_out_nearest_train_distance']:.3f}. "
        f"{100 * metrics['closer_than_any_held_out']:.1f} % of the samples are closer than any "
        f"held-out image, {100 * metrics['token_copies']:.1f} % have the very tokens of a training "
        f"image, and {100 * metrics['distinct']:.1f} % are distinct."
    )
    pairs = _figure(png_uri(drawn.images[first], len(first)), "samples") + _figure(
        png_uri(nearest, len(first)), "the training image nearest to each"
    )
    return _section("Are they copies?", f"<p>{intro}</p>\n{pairs}<div class=plots>{plot}</div>")


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
        "How often the codes are chosen for training images, sorted within each codebook and "
        "averaged over codebooks. The dotted line is what equal use would look like; codes that "
        "nothing chooses are bits that nothing uses."
    )
    return _section("Codebooks", f"<p>{intro}</p>\n<div class=plots>{plot}</div>")


def _curves(results: Results) -> str:
    histories = {label: c.history for label, c in results.competitors.items()}
    histories[results.metrics["prior"]["name"]] = results.prior_history
    plots = [
        f"<figure>{_plot_history(history)}<figcaption>{escape(label)}</figcaption></figure>"
        for label, history in histories.items()
    ]
    intro = "Each tokenizer has losses of its own, on scales of their own. The prior's is in nats."
    return _section("Training", f"<p>{intro}</p>\n<div class=plots>{''.join(plots)}</div>")


def _machine(results: Results) -> str:
    metrics, machine = results.metrics, results.metrics["machine"]
    rows = [[name, _duration(seconds)] for name, seconds in metrics["stages"].items()]
    rows.append(["everything", _duration(metrics["seconds"])])
    peak = metrics["peak_memory_bytes"]
    facts = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads used",
        f"training on {machine['device']}",
        machine["system"],
        *([f"at most {peak / 2**30:.2f} GiB of memory"] if peak else []),
        ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
    ]
    facts_shown = " · ".join(map(escape, facts))
    return _section("Time", f"{_table(['stage', 'time'], rows)}<p class=soft>{facts_shown}</p>")


def _next_steps(results: Results) -> str:
    lines = [
        line
        for remark, command in next_commands(results.plan, results.out)
        for line in (f"# {remark}", shlex.join(command), "")
    ]
    return _section("Go on", f"<pre>{escape(chr(10).join(lines).strip())}</pre>\n")


def next_commands(plan: Plan, out: Path) -> list[tuple[str, list[str]]]:
    """Return commands to go on with, each with what it does.

    Args:
        plan: What was done.
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
            "put images through the tokenizer",
            ["spectok", "reconstruct", tokenizer, images, "--out", "grid.png"],
        ),
        ("images to tokens", ["spectok", "encode", tokenizer, images, "--out", "tokens.npz"]),
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


def _describe_tokens(spec: TokenSpec) -> str:
    parts = []
    for level in spec.levels:
        own = {"shared": "", "position": ", each with its own codebook", "path": " of a tree"}
        shape = "×".join(map(str, level.shape))
        parts.append(f"{shape} tokens of {level.vocab_size}{own[level.codebook]}")
    return " + ".join(parts)


def _plot_history(history: list[Record]) -> str:
    names = [name for name in history[0] if name == "loss" or name.startswith("loss/")]
    if len(names) == 2:  # a single term is the loss itself
        names = names[:1]
    steps = [record["step"] for record in history]
    lines = {name: (steps, [record[name] for record in history]) for name in names}
    values: Mapping[str, Any] = {name: y for name, (_, y) in lines.items()}
    positive = all(min(y) > 0 for y in values.values())
    return plot_lines(lines, "step", "loss", log_y=positive and len(names) > 1)


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n"


def _figure(uri: str, text: str, kind: str = "") -> str:
    return (
        f'<figure class="{kind}"><img src="{uri}" alt="{escape(text)}">'
        f"<figcaption>{escape(text)}</figcaption></figure>\n"
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows
    )
    return (
        f"<div class=scroll><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody>"
        f"</table></div>\n"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
