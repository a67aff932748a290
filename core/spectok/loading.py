"""``load_tokenizer`` and ``create_quantizer``: from names to models, with options checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectok.errors import CheckpointError, ConfigError
from spectok.plugins import registry

if TYPE_CHECKING:
    from spectok.quantizers import Quantizer
    from spectok.sizes import ImageSize
    from spectok.tokenizer import ImageTokenizer


def load_tokenizer(name_or_path: str | os.PathLike[str], **overrides: Any) -> ImageTokenizer:
    """Build a fresh tokenizer from its key, or load a trained one.

    Args:
        name_or_path: A registered key, a directory, or a hub id (``"user/model"``).
        **overrides: For a key: constructor options. For a trained model: ``torch_dtype``,
            ``subfolder``, ``revision`` and the like, and ``trust`` (see
            :meth:`SpectokModel.from_pretrained`); its architecture cannot be overridden, but
            ``image_size``, one number or (height, width), gives it at another size (see
            :meth:`ImageTokenizer.at_size`).

    Returns:
        A fresh model in training mode, or a trained one in eval mode.

    Raises:
        UnknownNameError: If it is not a key, a directory or a hub id.
        PluginError: If the plugin that provides it is installed but fails to load.
        ConfigError: If an option is unknown, of the wrong type or out of range.
        CheckpointError: If saved weights are unsafe to load or do not fit.
        InputError: If a trained model does not take images of ``image_size``.
    """
    name = os.fspath(name_or_path)
    if name not in registry.list_tokenizers():
        size = overrides.pop("image_size", None)
        if os.path.isdir(name):
            return _at_size(load_folder(Path(name), **overrides), size)
        if _may_be_on_hub(name):
            return _at_size(_load_from_hub(name, **overrides), size)
    _check_key(name)

    from spectok.recipes.options import validate_options

    cls = registry.get_tokenizer(name)
    return cls(**validate_options(cls, overrides, name))


def _may_be_on_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "~", "/"))


def _check_key(name: str) -> None:
    if "/" in name and name not in registry.list_tokenizers():
        raise CheckpointError(f"no directory {name}; give a key, a saved model or a hub id")
    registry.check_name("tokenizer", name, "A directory or hub id also works")


def _at_size(tokenizer: ImageTokenizer, image_size: ImageSize | None) -> ImageTokenizer:
    return tokenizer if image_size is None else tokenizer.at_size(image_size)


def load_trained(path: str | os.PathLike[str], *, trust: bool = False) -> ImageTokenizer:
    """Load a trained tokenizer, in eval mode, from its folder, its run's folder, or the hub.

    Args:
        path: Folder of a model or of a run, or a hub id.
        trust: See :meth:`SpectokModel.from_pretrained`.

    Raises:
        ConfigError: If it is a registered key, which has no weights.
        CheckpointError: If it cannot be loaded.
    """
    name = check_trained(path)
    folder = Path(model_folder(name))
    if os.path.isdir(folder):
        return load_folder(folder, trust=trust)
    return load_tokenizer(name, trust=trust)


def check_trained(path: str | os.PathLike[str]) -> str:
    """Check that a trained tokenizer may be there, without importing what reads it.

    Args:
        path: Folder of a model or of a run, or a hub id; no hub is asked.

    Returns:
        The path as text.

    Raises:
        UnknownNameError: If it is neither a key, a directory nor a hub id.
        ConfigError: If it is a registered key, which has no weights.
        CheckpointError: If it is a path, and no directory.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        return name
    if name in registry.list_tokenizers():
        raise ConfigError(
            f"{name!r} names an untrained tokenizer; give a trained one, such as the folder that "
            f"'spectok train {name}' ends with"
        )
    if not _may_be_on_hub(name):
        _check_key(name)
    return name


def model_folder(path: str) -> str:
    """Return the folder of the model itself if given the folder of a run; otherwise the path."""
    inside = Path(path, "model")
    return str(inside) if os.path.isfile(inside / "config.json") else path


def load_folder(folder: Path, **overrides: Any) -> ImageTokenizer:
    """Load a trained tokenizer of any registered class from a directory."""
    from spectok.modeling import read_config
    from spectok.saving import check_loading_options

    check_loading_options(overrides)
    root = folder / str(overrides.get("subfolder") or "")
    return class_of(read_config(root), str(root)).from_pretrained(folder, **overrides)


def class_of(config: dict[str, Any], place: str) -> type[ImageTokenizer]:
    """Return the registered class that a saved config names.

    Raises:
        CheckpointError: If no installed plugin provides it.
    """
    from spectok.modeling import saved_class

    wanted = saved_class(config, place)
    classes = registry.classes_named("tokenizer", wanted)
    if not classes:
        raise CheckpointError(
            f"{place} holds a {wanted[:80]}, which no installed plugin provides as a tokenizer; "
            f"installed: {', '.join(sorted(registry.class_names('tokenizer').values()))}"
        )
    return classes[-1]


def create_quantizer(
    name: str, *, dim: int, num_tokens: int, codebook_size: int, **options: Any
) -> Quantizer:
    """Build a registered quantizer.

    Args:
        name: A registered name, such as ``"ema"``.
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook.
        **options: The quantizer's own options.

    Raises:
        UnknownNameError: If no quantizer of that name is registered.
        ConfigError: If an option is unknown, of the wrong type or out of range.
    """
    from spectok.recipes.options import SUPPLIED, validate_options

    cls = registry.get_quantizer(name)
    options = validate_options(cls, options, f"quantizer {name!r}", SUPPLIED["quantizer"])
    return cls(dim=dim, num_tokens=num_tokens, codebook_size=codebook_size, **options)


def build_quantizer(
    option: str | dict[str, Any], *, dim: int, num_tokens: int, codebook_size: int
) -> Quantizer:
    """Build the quantizer given by a tokenizer's ``quantizer`` argument.

    Args:
        option: A name, or a mapping with ``name`` and options.
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook.
    """
    options = {"name": option} if isinstance(option, str) else dict(option)
    if "name" not in options:
        raise ConfigError(f"quantizer: needs a name, or a mapping with the key 'name': {option!r}")
    return create_quantizer(dim=dim, num_tokens=num_tokens, codebook_size=codebook_size, **options)


def _load_from_hub(repo_id: str, **overrides: Any) -> ImageTokenizer:
    from huggingface_hub import hf_hub_download

    from spectok.saving import check_loading_options, first_line

    check_loading_options(overrides)
    keys = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
    chosen = {k: overrides[k] for k in keys if k in overrides}
    try:
        path = hf_hub_download(repo_id, "config.json", **chosen)
    except Exception as error:
        raise CheckpointError(
            f"cannot fetch {repo_id!r}: {first_line(error)}. It is neither a "
            f"registered key ({', '.join(registry.list_tokenizers())}) nor a local directory"
        ) from error

    from spectok.modeling import read_config

    cls = class_of(read_config(Path(path).parent), repo_id)
    return cls.from_pretrained(repo_id, **overrides)
