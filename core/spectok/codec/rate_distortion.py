"""Rate and distortion: real files of tokenizers beside those of JPEG, WebP and AVIF."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spectok.codec.codec import AT_ONCE, Codec
from spectok.errors import InputError
from spectok.images import make_grid, to_float, to_pil, to_uint8
from spectok.metrics import psnr, ssim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUALITIES = {
    "jpeg": (1, 3, 5, 8, 12, 18, 25, 35, 50, 65, 80, 90),
    "webp": (0, 3, 8, 15, 25, 40, 55, 70, 82, 92),
    "avif": (0, 5, 10, 18, 26, 36, 48, 60, 72, 84),
}
"""Settings of the codecs of pillow, as its option ``quality``."""


@dataclass(frozen=True)
class Point:
    """One file of all images.

    Args:
        setting: The quality, or how many tokens are kept.
        bytes: Its length, headers included.
        bits_per_pixel: Its bits by the pixels of all images.
        psnr: Mean over the images, in dB.
        ssim: Mean over the images.
    """

    setting: str
    bytes: int
    bits_per_pixel: float
    psnr: float
    ssim: float


def measure_tokenizer(codec: Codec, images: Float[Tensor, "n c h w"]) -> list[Point]:
    """Return the real files of a tokenizer: one for each prefix or level that decodes on its own.

    Of more than eight prefixes, those closest to equal steps are measured.

    Args:
        codec: A codec; with a coder there is one point.
        images: In [-1, 1], of the tokenizer's size.
    """
    spec = codec.tokenizer.token_spec
    prefixes = [k for k in spec.decodable_prefixes if k]
    if len(prefixes) > 8:
        prefixes = [prefixes[-1] * step // 8 for step in range(1, 9)]
        prefixes = [k - k % spec.num_levels or spec.num_levels for k in prefixes]
    if codec.coder is not None:
        prefixes = prefixes[-1:]
    points = []
    for count in dict.fromkeys(prefixes):
        data = codec.compress(images, num_tokens=count if count < spec.num_tokens else None)
        decoded = torch.stack(codec.decompress(data).images)
        points.append(_point(f"{count} tokens", data, images, decoded))
    return points


def measure_codec(name: str, images: Float[Tensor, "n c h w"]) -> list[Point]:
    """Return the files that a codec of pillow makes of all images, as one mosaic.

    Small images one by one would mostly be headers; in a mosaic the codec pays for one. Its last
    places are white where the images do not fill it.

    Args:
        name: ``"jpeg"``, ``"webp"`` or ``"avif"``.
        images: In [-1, 1].
    """
    mosaic, points = make_grid(images, gap=0), []
    columns = mosaic.shape[-1] // images.shape[-1]
    for quality in QUALITIES[name]:
        stream = io.BytesIO()
        to_pil(mosaic).save(stream, format=name.upper(), quality=quality)
        decoded = _cut(stream.getvalue(), images, columns)
        points.append(_point(f"quality {quality}", stream.getvalue(), images, decoded))
    return points


def _cut(data: bytes, images: Tensor, columns: int) -> Tensor:
    from PIL import Image

    mode = "L" if images.shape[1] == 1 else "RGB"
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert(mode))
    whole = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).copy()).permute(2, 0, 1)
    height, width = images.shape[-2:]
    tiles = whole.unfold(1, height, height).unfold(2, width, width)  # (c, rows, columns, h, w)
    return tiles.permute(1, 2, 0, 3, 4).flatten(0, 1)[: len(images)]


def _point(setting: str, data: bytes, images: Tensor, decoded: Tensor) -> Point:
    bits = 8 * len(data) / (len(images) * images.shape[-2] * images.shape[-1])
    shown = to_float(to_uint8(decoded))
    pairs = list(zip(images.split(AT_ONCE), shown.split(AT_ONCE)))
    means = [torch.cat([metric(*pair) for pair in pairs]).mean().item() for metric in (psnr, ssim)]
    return Point(setting, len(data), bits, *means)


def bd_rate(points: Sequence[Point], anchor: Sequence[Point]) -> float | None:
    """Return the mean difference in rate at equal PSNR, as a fraction of the anchor's.

    As Bjøntegaard's (2001), it is the mean of the difference of the logarithms of the rates over
    the PSNR that both curves have; the curves are straight lines between points, not one cubic.

    Args:
        points: A curve; of a single point, the difference at its PSNR.
        anchor: The curve to compare with.

    Returns:
        -0.3 for 30 % fewer bits; None where the two have no PSNR in common.
    """
    ours, theirs = _curve(points), _curve(anchor)
    low, high = max(ours[0][0], theirs[0][0]), min(ours[0][-1], theirs[0][-1])
    if low > high:
        return None
    at = np.linspace(low, high, 1000)
    difference = np.interp(at, *ours) - np.interp(at, *theirs)
    return math.expm1(float(difference.mean()))


def _curve(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
    """Return PSNR, rising, and the logarithm of the least rate that has at least so much."""
    found: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point.bits_per_pixel, -point.psnr)):
        if not found or point.psnr > found[-1][0]:
            found.append((point.psnr, math.log(point.bits_per_pixel)))
    return np.array([x for x, _ in found]), np.array([y for _, y in found])


def measure_rates(
    codecs: dict[str, Codec],
    images: Float[Tensor, "n c h w"],
    anchor: str = "webp",
    on_curve: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure tokenizers and the codecs of pillow on the same images.

    Args:
        codecs: Name -> codec of a tokenizer.
        images: In [-1, 1], of the size of all tokenizers.
        anchor: What rates are compared with: ``"jpeg"``, ``"webp"`` or ``"avif"``.
        on_curve: Called with the name of each curve before it is measured.

    Returns:
        Plain JSON types: ``anchor``, ``num_images``, ``image_shape``, ``mosaic`` (its height and
        width), and ``curves``: name -> ``points`` and ``bd_rate``.

    Raises:
        InputError: If a tokenizer takes images of another shape, or the anchor is unknown.
    """
    if anchor not in QUALITIES:
        raise InputError(f"anchor {anchor} is not one of {', '.join(QUALITIES)}")
    for name, codec in codecs.items():
        if tuple(codec.tokenizer.image_shape) != tuple(images.shape[1:]):
            raise InputError(
                f"{name} takes images of shape {tuple(codec.tokenizer.image_shape)}, not "
                f"{tuple(images.shape[1:])}; compare tokenizers of one size"
            )
    curves: dict[str, list[Point]] = {}
    for name in [*codecs, *QUALITIES]:
        if on_curve is not None:
            on_curve(name)
        own = name in codecs
        curves[name] = (
            measure_tokenizer(codecs[name], images) if own else measure_codec(name, images)
        )
    mosaic = make_grid(images[:, :1], gap=0)
    return {
        "anchor": anchor,
        "num_images": len(images),
        "image_shape": list(images.shape[1:]),
        "mosaic": list(mosaic.shape[1:]),
        "curves": {
            name: {
                "points": [asdict(point) for point in points],
                "bd_rate": bd_rate(points, curves[anchor]),
            }
            for name, points in curves.items()
        },
    }


def to_markdown(result: dict[str, Any]) -> str:
    """Return a table of all points."""
    anchor = result["anchor"]
    columns = ["", "setting", "bytes", "bits per pixel", "PSNR", "SSIM", f"rate against {anchor}"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, curve in result["curves"].items():
        against = "–" if curve["bd_rate"] is None else f"{100 * curve['bd_rate']:+.1f} %"
        for number, point in enumerate(curve["points"]):
            cells = [name, point["setting"], f"{point['bytes']:,}"]
            cells += [f"{point['bits_per_pixel']:.4f}", f"{point['psnr']:.2f}"]
            cells += [f"{point['ssim']:.4f}", against if number == 0 else ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def draw_rates(result: dict[str, Any]) -> Figure:
    """Draw PSNR and SSIM over bits per pixel."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, key, label in zip(figure.subplots(1, 2), ("psnr", "ssim"), ("PSNR (dB)", "SSIM")):
        for name, curve in result["curves"].items():
            rates = [point["bits_per_pixel"] for point in curve["points"]]
            style = "--" if name in QUALITIES else "-"
            marker = "." if name in QUALITIES else "o"
            values = [point[key] for point in curve["points"]]
            axes.plot(rates, values, style, marker=marker, label=name)
        axes.set(xlabel="bits per pixel (whole files)", ylabel=label, xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure
