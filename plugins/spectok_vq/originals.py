"""The released checkpoints of VQGAN and of LlamaGen's tokenizer, as our :class:`VQGAN`.

Both name one network differently (Esser, Rombach, Ommer, *Taming Transformers for High-Resolution
Image Synthesis*, CVPR 2021; Sun et al., *Autoregressive Model Beats Diffusion: Llama for Scalable
Image Generation*, 2024). The first numbers the decoder's levels from the image inwards, the second
from the middle outwards; where we project to queries, keys and values at once, both have three
convolutions. LlamaGen compares directions, so its codes are scaled to length one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from spectok import take_tensors
from spectok.errors import CheckpointError
from spectok.nn import VQGANEncoder
from spectok.nn.vqgan import MAX_GROUPS, Downsample, PixelAttention, ResidualBlock
from spectok_vq.vqgan import VQGAN

CODES = "quantize.embedding.weight"
RESIDUAL = {"branch.0": "norm1", "branch.2": "conv1", "branch.3": "norm2", "branch.6": "conv2"}
SHORTCUT = {"shortcut": "nin_shortcut"}
ATTENTION = {"norm": "norm", "to_out": "proj_out"}
QKV = ("q", "k", "v")


@dataclass(frozen=True)
class Layout:
    """How a project names the parts of the network.

    Args:
        encoder_level: Prefix of a level of the encoder, with a place for its number.
        decoder_level: The same of the decoder.
        block: What a residual block is called in a level.
        middle: Names of the three parts in the middle.
        outwards: Whether the decoder's levels are numbered from the middle outwards.
        ignored: Beginnings of names that are no part of the tokenizer.
    """

    encoder_level: str
    decoder_level: str
    block: str
    middle: tuple[str, str, str]
    outwards: bool
    ignored: tuple[str, ...]


TAMING = Layout(
    "encoder.down", "decoder.up", "block", ("block_1", "attn_1", "block_2"), False, ("loss.",)
)
LLAMAGEN = Layout(
    "encoder.conv_blocks",
    "decoder.conv_blocks",
    "res",
    ("0", "1", "2"),
    True,
    ("quantize.codebook_used",),
)


def from_taming(tensors: Mapping[str, Tensor], image_size: int) -> VQGAN:
    """Return VQGAN with the weights of its released code, whose discriminator is left out.

    Args:
        tensors: As in the checkpoint.
        image_size: Height and width of the training images, in pixels.

    Raises:
        CheckpointError: If tensors are missing, left over or of the wrong shape.
        InputError: If the network does not take such images.
    """
    return _convert(
        tensors,
        image_size,
        TAMING,
        {"name": "vq", "codebook_weight": 0.25, "commitment_weight": 1.0},
    )


def from_llamagen(tensors: Mapping[str, Tensor], image_size: int) -> VQGAN:
    """Return VQGAN with the weights of LlamaGen's tokenizer, whose codes have length one.

    Args:
        tensors: As in the checkpoint.
        image_size: Height and width of the training images, in pixels.

    Raises:
        CheckpointError: If tensors are missing, left over or of the wrong shape.
        InputError: If the network does not take such images.
    """
    if CODES in tensors:
        tensors = {**tensors, CODES: F.normalize(tensors[CODES].float(), dim=-1)}
    return _convert(tensors, image_size, LLAMAGEN, {"name": "cosine"})


def _convert(
    tensors: Mapping[str, Tensor], image_size: int, layout: Layout, quantizer: dict[str, Any]
) -> VQGAN:
    options = _read_options(tensors, layout, image_size)
    model = VQGAN(image_size=image_size, quantizer=quantizer, **options)
    names = dict(_names(model, layout))
    state = model.state_dict()
    codes = "quantizer.codebook"
    wanted = {ours: tuple(state[ours].shape) for ours in names}
    found = take_tensors(
        {**wanted, codes: tuple(state[codes].shape[1:])},
        {**names, codes: [CODES]},
        tensors,
        layout.ignored,
    )
    found[codes] = found[codes].unsqueeze(0)
    model.load_state_dict({**state, **found})
    return model


def _read_options(tensors: Mapping[str, Tensor], layout: Layout, image_size: int) -> dict[str, Any]:
    """Return the options of the network that these tensors belong to, from names and shapes.

    Raises:
        CheckpointError: If they belong to no such network.
    """
    level, block = re.escape(layout.encoder_level), layout.block
    blocks = _numbers(tensors, rf"{level}\.(\d+)\.{block}\.(\d+)\.conv1\.weight")
    attended = _numbers(tensors, rf"{level}\.(\d+)\.attn\.(\d+)\.q\.weight")
    try:
        channels, in_channels = tensors["encoder.conv_in.weight"].shape[:2]
        num_levels = 1 + max(i for i, _ in blocks)
        last = 1 + max(j for i, j in blocks if i == 0)
        widths = [
            len(tensors[f"{layout.encoder_level}.{i}.{block}.{last - 1}.conv2.bias"])
            for i in range(num_levels)
        ]
        codebook_size, codebook_dim = tensors[CODES].shape
        z_channels = len(tensors["quant_conv.weight"][0])
    except (KeyError, ValueError, IndexError, TypeError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        if not blocks:
            reason = f"none is called {layout.encoder_level}.0.{block}.0…"
        raise CheckpointError(
            f"these tensors are not that network's: {reason}{_other_format(tensors, layout)}; "
            f"their names begin with {', '.join(sorted({n.split('.')[0] for n in tensors})[:8])}"
        ) from error
    narrow = [w for w in {channels, *widths} if w % max(channels, 1) or w < 4 * MAX_GROUPS]
    if narrow:
        raise CheckpointError(
            f"the network has {narrow[0]} channels, which its norms take in {MAX_GROUPS} groups; "
            f"VQGAN here does so from {4 * MAX_GROUPS} channels on, in multiples of the first level"
        )
    middle = f"encoder.mid.{layout.middle[1]}.q.weight"
    return {
        "in_channels": in_channels,
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "channels": channels,
        "channel_multipliers": tuple(width // channels for width in widths),
        "num_blocks": last,
        "attention_sizes": tuple(sorted({image_size >> i for i, _ in attended}, reverse=True)),
        "middle_attention": middle in tensors,
        "z_channels": z_channels,
    }


def _other_format(tensors: Mapping[str, Tensor], layout: Layout) -> str:
    """Return what to say where tensors have the names of another format."""
    for name, other in {"taming": TAMING, "llamagen": LLAMAGEN}.items():
        if other is not layout and any(n.startswith(f"{other.encoder_level}.") for n in tensors):
            return f"; they are named as in the format {name}"
    return ""


def _numbers(tensors: Mapping[str, Tensor], pattern: str) -> list[tuple[int, int]]:
    found = (re.fullmatch(pattern, name) for name in tensors)
    return [(int(match[1]), int(match[2])) for match in found if match]


def _names(model: VQGAN, layout: Layout) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each weight of the networks, and what it is called in the checkpoint."""
    plain = {
        "encoder.stem": "encoder.conv_in",
        "encoder.head.0": "encoder.norm_out",
        "encoder.head.2": "encoder.conv_out",
        "encoder.head.3": "quant_conv",
        "decoder.stem.0": "post_quant_conv",
        "decoder.stem.1": "decoder.conv_in",
        "decoder.head.0": "decoder.norm_out",
        "decoder.head.2": "decoder.conv_out",
    }
    for ours, theirs in plain.items():
        yield from _pairs(ours, [theirs])
    encoder, decoder = cast(VQGANEncoder, model.encoder), model.decoder
    sides: dict[str, Any] = {"encoder": encoder.mid, "decoder": decoder.mid}
    for side, parts in sides.items():
        for i, part in enumerate(parts):
            name = layout.middle[i if len(parts) == 3 else 2 * i]
            yield from _part(f"{side}.mid.{i}", f"{side}.mid.{name}", part)
    num_levels = len(model.config["channel_multipliers"])
    yield from _levels(
        "encoder.down", encoder.down, layout.encoder_level, layout, range(num_levels)
    )
    inner = range(num_levels) if layout.outwards else range(num_levels - 1, -1, -1)
    yield from _levels("decoder.up", decoder.up, layout.decoder_level, layout, inner)


def _levels(
    ours: str, layers: torch.nn.Sequential, prefix: str, layout: Layout, numbers: Any
) -> Iterator[tuple[str, list[str]]]:
    """Yield names of the levels of one side, which a layer that halves or doubles ends."""
    numbers = iter(numbers)
    level, blocks, attentions = f"{prefix}.{next(numbers)}", 0, 0
    for i, layer in enumerate(layers):
        name = f"{ours}.{i}"
        if isinstance(layer, ResidualBlock):
            yield from _part(name, f"{level}.{layout.block}.{blocks}", layer)
            blocks += 1
        elif isinstance(layer, PixelAttention):
            yield from _part(name, f"{level}.attn.{attentions}", layer)
            attentions += 1
        elif not isinstance(layer, torch.nn.Upsample):  # which has no weights
            halves = isinstance(layer, Downsample)
            inside, theirs = (".convolution", "downsample") if halves else ("", "upsample")
            yield from _pairs(name + inside, [f"{level}.{theirs}.conv"])
            level, blocks, attentions = f"{prefix}.{next(numbers)}", 0, 0


def _part(ours: str, theirs: str, layer: Any) -> Iterator[tuple[str, list[str]]]:
    if isinstance(layer, PixelAttention):
        for mine, its in ATTENTION.items():
            yield from _pairs(f"{ours}.{mine}", [f"{theirs}.{its}"])
        yield from _pairs(f"{ours}.to_qkv", [f"{theirs}.{name}" for name in QKV])
        return
    changes = isinstance(layer.shortcut, torch.nn.Conv2d)
    for mine, its in {**RESIDUAL, **(SHORTCUT if changes else {})}.items():
        yield from _pairs(f"{ours}.{mine}", [f"{theirs}.{its}"])


def _pairs(ours: str, theirs: list[str]) -> Iterator[tuple[str, list[str]]]:
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", [f"{name}.{kind}" for name in theirs]
