"""Load a text encoder from the name of an open_clip model, or from a folder."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from spectok.bounds import bounded_building, check_numbers
from spectok.errors import CheckpointError, ConfigError, SpectokError, did_you_mean, shown
from spectok.places import home
from spectok.reading import read_json
from spectok.weights import (
    StoredTensor,
    check_finite,
    check_fits,
    read_headers,
    reading_reason,
)
from spectok_generation.text.clip_recipe import WITHOUT, check_encoder
from spectok_generation.text.encoder import (
    CONFIG,
    TEXT_HALF,
    TEXT_WEIGHTS,
    VOCABULARY,
    WEIGHTS,
    TextEncoder,
)
from spectok_generation.text.vocabulary import Vocabulary

HALVES = ("CLIP", "CustomTextCLIP", "CoCa")
NO_IMAGES = {"image_size": 1, "patch_size": 1, "width": 1, "head_width": 1, "layers": 0}
"""Sizes of the smallest image half; it is dropped after the model is built."""
TOKENIZER_OPTIONS = {"additional_special_tokens", "clean", "language", "strip_sep_token"}
"""What a folder may pass to its tokenizer; transformers takes options that run code."""


def load_text_encoder(
    name: str, pretrained: str | None = None, *, trust: bool = False
) -> TextEncoder:
    """Load the text half of an open_clip model, in eval mode.

    Args:
        name: Folder of a run of ``spectok train clip``, of a model saved by open_clip, or of an
            encoder saved by :meth:`TextEncoder.save_pretrained`; or the name of an open_clip
            model, such as ``"ViT-L-14-quickgelu"``.
        pretrained: With a name: open_clip's tag for its weights, such as ``"openai"``, or a file.
        trust: Whether a folder may bring a tokenizer that runs its own code, and ask for a larger
            network than its weights suggest.

    Raises:
        ConfigError: If open_clip has no such model or tag.
        CheckpointError: If the weights are not on this machine, or do not load.
    """
    folder = model_folder(name)
    if folder is not None:
        if pretrained is not None:
            raise ConfigError(f"text.pretrained: {name} is a folder with weights; leave it out")
        model, tokenizer, config = _load(f"local-dir:{folder}", None, trust)
        vocabulary = _vocabulary(folder, model)
        encoder = TextEncoder(model, tokenizer, str(folder), None, config, vocabulary)
    else:
        _check_name(name)
        if pretrained is not None and os.path.isfile(home(pretrained)):
            pretrained = str(Path(home(pretrained)).resolve())
        else:
            _check_tag(name, pretrained)
        model, tokenizer, config = _load(name, pretrained, trust)
        encoder = TextEncoder(model, tokenizer, name, pretrained, config)
    check_finite(encoder.model, str(pretrained or encoder.name))
    return encoder


def model_folder(name: str) -> Path | None:
    """Return the folder of a saved CLIP, given that folder or its run; None if it is not a folder.

    Raises:
        CheckpointError: If the folder holds something else.
    """
    given = Path(name).expanduser()
    for folder in (given / "model", given):
        if os.path.isfile(folder / CONFIG):
            return folder.resolve()
    if os.path.isdir(given):
        raise CheckpointError(f"{given} holds no CLIP (no {CONFIG}); {WITHOUT}")
    return None


def _check_name(name: str) -> None:
    check_encoder(name)

    import open_clip

    known = open_clip.list_models()
    if name not in known:
        raise ConfigError(
            f"text.encoder: {name!r} is neither a folder nor a model of open_clip"
            f"{did_you_mean(name, known)}; {WITHOUT}"
        )


def _check_tag(name: str, pretrained: str | None) -> None:
    """Check that the weights exist, and were trained with the activation of the model."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        given = "missing" if pretrained is None else f"{pretrained!r} is neither a file nor a tag"
        raise ConfigError(
            f"text.pretrained: {given}; open_clip has weights of {name} called "
            f"{', '.join(tags) or 'nothing'}; or {WITHOUT}"
        )
    trained: dict[str, Any] = open_clip.get_pretrained_cfg(name, str(pretrained))
    built = open_clip.get_model_config(name) or {}
    other = name.removesuffix("-quickgelu") if "quickgelu" in name else f"{name}-quickgelu"
    differs = trained.get("quick_gelu", False) != built.get("quick_gelu", False)
    if differs and other in open_clip.list_models():
        raise ConfigError(
            f"text.encoder: weights {pretrained!r} of {name} were trained with another "
            f"activation; use {other}"
        )


def _load(name: str, pretrained: str | None, trust: bool) -> tuple[Any, Any, dict[str, Any]]:
    """Return the model, its tokenizer, and the config it is built from."""
    import open_clip

    folder = Path(name.removeprefix("local-dir:"))
    local, options = name.startswith("local-dir:"), {}
    try:
        with _quiet():
            if local:
                options = _check_config(folder, trust)
            config: Any = open_clip.get_model_config(name)
            if local and os.path.exists(folder / TEXT_WEIGHTS):
                model = _build_half(folder, config, trust)
            else:
                if local and not trust:
                    _check_size(folder, config)
                model = open_clip.create_model(name, pretrained, require_pretrained=True)
            return model, open_clip.get_tokenizer(name, **options), config
    except SpectokError:
        raise
    except Exception as error:
        if pretrained is not None and not os.path.isfile(pretrained):
            raise CheckpointError(
                f"the weights {pretrained!r} of {name} are not on this machine and cannot be "
                f"downloaded ({_origin(name, pretrained)}); {WITHOUT}"
            ) from error
        raise CheckpointError(
            f"cannot load the CLIP {pretrained or folder}: {reading_reason(error)}; if files are "
            f"missing or cut short, copy or save it again"
        ) from error


def _check_config(folder: Path, trust: bool) -> dict[str, Any]:
    """Check the config of a folder, before open_clip acts on it.

    Returns:
        Options for ``open_clip.get_tokenizer``.

    Raises:
        CheckpointError: If it is damaged, or asks for code to be run.
    """
    path = folder / CONFIG
    content = read_json(path, CheckpointError)
    config = content.get("model_cfg") if isinstance(content, dict) else None
    config = config if isinstance(config, dict) else {}
    text = config.get("text_cfg")
    if not isinstance(text, dict) or "vision_cfg" not in config:
        raise CheckpointError(f"{path} is not the config of a CLIP; copy or save it again")
    if "hf_model_name" in text:
        raise CheckpointError(
            f"{path} has a text tower of transformers, whose tokens cannot be read; choose a model "
            f"with open_clip's own text transformer"
        )
    given = text.get("tokenizer_kwargs", {})
    odd = sorted(map(str, given.keys() - TOKENIZER_OPTIONS)) if isinstance(given, dict) else ["?"]
    if odd and not trust:
        raise CheckpointError(
            f"{path} asks for a tokenizer with {', '.join(odd)[:200]}, which may run code; if you "
            f"trust its author, load it with trust=True (--trust)"
        )
    return {"trust_remote_code": trust} if text.get("hf_tokenizer_name") else {}


def _build_half(folder: Path, config: dict[str, Any], trust: bool) -> Any:
    """Rebuild the text half that :meth:`TextEncoder.save_pretrained` saved."""
    import open_clip

    content, path = read_json(folder / CONFIG, CheckpointError), folder / TEXT_WEIGHTS
    kind = content.get(TEXT_HALF) if isinstance(content, dict) else None
    if kind not in HALVES:
        raise CheckpointError(f"{CONFIG} names an unknown {TEXT_HALF} {shown(kind)}")
    sizes = {key: value for key, value in config.items() if key != "custom_text"}
    stored = read_headers([path])

    def build() -> Any:
        model = getattr(open_clip, kind)(**sizes | {"vision_cfg": NO_IMAGES})
        del model.visual
        return model

    with _bounds(folder, config, stored, trust), torch.device("meta"):
        check_fits(build().state_dict(), stored, str(folder), kind)
    model = build()
    model.load_state_dict(load_file(path))
    return model


def _vocabulary(folder: Path, model: Any) -> Vocabulary | None:
    """Return which tokens a saved encoder keeps; None if all."""
    content = read_json(folder / CONFIG, CheckpointError)
    rows = len(getattr(model, "text", model).token_embedding.weight)
    return Vocabulary.from_config(content.get(VOCABULARY), rows, str(folder / CONFIG))


def _check_size(folder: Path, config: dict[str, Any]) -> None:
    """Check that a model which open_clip saved is not far larger than its weights."""
    import open_clip

    path = folder / WEIGHTS
    if os.path.exists(path):
        with _bounds(folder, config, read_headers([path]), trust=False), torch.device("meta"):
            open_clip.create_model(f"local-dir:{folder}", load_weights=False, device="meta")


@contextlib.contextmanager
def _bounds(
    folder: Path, config: dict[str, Any], stored: dict[str, StoredTensor], trust: bool
) -> Iterator[None]:
    place, numbers = f"{folder / CONFIG}", sum(tensor.numel for tensor in stored.values())
    if trust:
        yield
        return
    check_numbers(config, numbers, place)
    with bounded_building(len(stored), numbers, place):
        yield


def _origin(name: str, pretrained: str) -> str:
    import open_clip

    known: dict[str, Any] = open_clip.get_pretrained_cfg(name, pretrained)
    return str(known.get("hf_hub") or known.get("url"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log of open_clip, which repeats the errors it raises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
