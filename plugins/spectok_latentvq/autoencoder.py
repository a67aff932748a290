"""Autoencoders of diffusers as the two boxes at the ends of a tokenizer."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectok.errors import CheckpointError, ConfigError
from spectok.modeling import find_folder
from spectok.places import home, may_be_hub_id
from spectok.saved_config import read_config, saved_class
from spectok.saving import first_line
from spectok.weights import check_finite, find_weights, read_headers
from spectok_latentvq.plugin import KINDS

BLOCKS = {"AutoencoderKL": "block_out_channels"}
"""Option that has an entry for each resolution; ``encoder_block_out_channels`` of the others."""
USUAL_FOLDER = "vae"
"""Where pipelines keep their autoencoder."""
UNTRAINED: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [16, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
}
"""What is built, with random weights, where no autoencoder is given."""


@dataclass(frozen=True)
class Autoencoder:
    """An autoencoder of diffusers, taken apart.

    Args:
        encoder: Images to latents.
        decoder: Latents to images.
        config: Its class, under ``_class_name``, and options, in plain JSON types.
        in_channels: Channels C of its images.
        latent_channels: Channels c of its latents.
        factor: Pixels per latent pixel, each way.
        pretrained: Whether its weights were read from files.
    """

    encoder: LatentEncoder
    decoder: LatentDecoder
    config: dict[str, Any]
    in_channels: int
    latent_channels: int
    factor: int
    pretrained: bool


class LatentEncoder(nn.Module):
    """The encoder, up to the mean of the latents' distribution where there is one.

    It computes in the type of its weights, even under autocast, so that latents that are computed
    in training are those of ``encode``.

    Args:
        network: The whole autoencoder.
        latent_channels: Channels of its latents.
    """

    def __init__(self, network: Any, latent_channels: int):
        super().__init__()
        self.network = network.encoder
        self.quant_conv = getattr(network, "quant_conv", None)
        self.latent_channels = latent_channels

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b lc lh lw"]:
        """Return the latents, as the autoencoder scales them."""
        with torch.autocast(images.device.type, enabled=False):
            features = self.network(images)
            if self.quant_conv is not None:
                features = self.quant_conv(features)
        return features[:, : self.latent_channels]  # the rest is the logarithm of the variance


class LatentDecoder(nn.Module):
    """The decoder.

    Args:
        network: The whole autoencoder.
    """

    def __init__(self, network: Any):
        super().__init__()
        self.post_quant_conv = getattr(network, "post_quant_conv", None)
        self.network = network.decoder

    def forward(self, latents: Float[Tensor, "b lc lh lw"]) -> Float[Tensor, "b c h w"]:
        """Return images, about [-1, 1]."""
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.network(latents)


def open_autoencoder(option: str | Mapping[str, Any] | None, in_channels: int) -> Autoencoder:
    """Return the autoencoder that a tokenizer's option names.

    Args:
        option: A folder, a hub id (``"owner/name"``, or ``"owner/name/subfolder"``), or a config.
            Only the first two have weights; the others are built with random ones. None: a small
            ``AutoencoderKL``. Where torch's default device is ``meta``, weights are looked for and
            not read.
        in_channels: Channels of the images.

    Raises:
        ConfigError: If the config is none of an autoencoder, or its channels are others.
        CheckpointError: If a folder, a download or weights are missing or damaged.
    """
    folder = find_autoencoder(option) if isinstance(option, str) else None
    config: dict[str, Any] = UNTRAINED | {"in_channels": in_channels, "out_channels": in_channels}
    if folder is not None:
        config = read_config(folder)
    elif isinstance(option, Mapping):
        config = dict(option)
    kind = class_of(config, str(folder or "autoencoder"))
    network = build(kind, config, str(folder or "autoencoder"))
    if folder is not None:
        network = load(network, folder)
    own = own_options(type(network), network.config)
    options = json.loads(json.dumps(own))  # tuples become lists, as in a file
    if options["in_channels"] != in_channels:
        raise ConfigError(
            f"autoencoder: takes images of {options['in_channels']} channels, and in_channels is "
            f"{in_channels}; set data.channels={options['in_channels']}, or give another one"
        )
    channels = options["latent_channels"]
    return Autoencoder(
        LatentEncoder(network, channels),
        LatentDecoder(network),
        {"_class_name": kind} | options,
        options["in_channels"],
        channels,
        2 ** (len(options[BLOCKS.get(kind, "encoder_block_out_channels")]) - 1),
        folder is not None,
    )


def find_autoencoder(name: str) -> Path:
    """Return the folder of an autoencoder; one on the hub is downloaded first.

    Where a folder is that of a pipeline, it is the folder ``vae`` in it.

    Raises:
        CheckpointError: If there is none.
    """
    place, subfolder = name, ""
    owner_and_title, _, last = name.rpartition("/")
    if not os.path.isdir(home(name)) and may_be_hub_id(owner_and_title):
        place, subfolder = owner_and_title, last
    try:
        folder = find_folder(place, {}, subfolder)
    except CheckpointError as error:
        raise CheckpointError(f"autoencoder: {error}{_where_copies_are(place)}") from error
    inside = folder / USUAL_FOLDER
    return inside if not (folder / "config.json").exists() and inside.is_dir() else folder


def class_of(config: Mapping[str, Any], place: str) -> str:
    """Return the name of the class that a config is for.

    Raises:
        ConfigError: If it is none of :data:`KINDS`.
    """
    try:
        kind = saved_class(dict(config), place)
    except CheckpointError as error:
        raise ConfigError(
            f"autoencoder: the config of {place} names no class; give one of {', '.join(KINDS)}"
        ) from error
    if kind not in KINDS:
        raise ConfigError(
            f"autoencoder: {place} holds a {kind[:80]}; give one of {', '.join(KINDS)}"
        )
    return kind


def build(kind: str, config: Mapping[str, Any], place: str) -> Any:
    """Build an autoencoder from its config.

    Raises:
        ConfigError: If the config does not describe one.
    """
    cls = getattr(diffusers, kind)
    options = own_options(cls, config)
    try:
        return cls(**options)
    except CheckpointError:
        raise  # a saved model that asks for more than its weights suggest
    except Exception as error:
        raise ConfigError(
            f"autoencoder: {place} describes no {kind}: {first_line(error)}"
        ) from error


def own_options(cls: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a class takes of a config, which diffusers adds other entries to."""
    known = inspect.signature(cls).parameters
    return {key: value for key, value in config.items() if key in known}


def load(network: Any, folder: Path) -> Any:
    """Return an autoencoder with its weights, in float32.

    Args:
        network: The autoencoder without them; on the meta device they are not read.
        folder: Where they are.

    Raises:
        CheckpointError: If they are missing, damaged, or those of another network.
    """
    read_headers(find_weights(folder))
    if next(network.parameters()).is_meta:
        return network
    try:
        loaded, found = type(network).from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, local_files_only=True
        )
    except Exception as error:
        raise CheckpointError(
            f"autoencoder: cannot load {folder}: {first_line(error)}; copy or save it again"
        ) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if names := [str(name) for name in found.get(problem, [])]:
            raise CheckpointError(
                f"autoencoder: {folder} does not fit its config: {problem.replace('_', ' ')} "
                f"({len(names)}): {', '.join(names[:3])[:300]}"
            )
    check_finite(loaded, str(folder))
    return loaded.float()


def _where_copies_are(name: str) -> str:
    if not may_be_hub_id(name):
        return ""
    from huggingface_hub.constants import HF_HUB_CACHE

    return (
        f"; give the folder of a copy, or fetch it on a machine with a network into {HF_HUB_CACHE}"
    )
