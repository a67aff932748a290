"""``load_tokenizer`` and ``create_quantizer``: from names to models, with options checked."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectok.errors import CheckpointError, ConfigError
from spectok.places import (
    home,
    is_path,
    may_be_hub_id,
    missing,
    names_a_place,
    remark_taken,
)
from spectok.plugins import registry
from spectok.recipes.files import command_of_recipe, find_recipe
from spectok.saving import HUB_OPTIONS, LOADING_OPTIONS, check_loading_options
from spectok.trained.names import find_model, similar_model

if TYPE_CHECKING:
    from spectok.foreign import ForeignFolder, ForeignModel, ForeignTokenizer
    from spectok.quantizers import Quantizer
    from spectok.sizes import ImageSize
    from spectok.tokenizer import ImageTokenizer

TOKENIZERS = ("tokenizer", "pipeline")
"""Kinds of trained models that a tokenizer is loaded from; a pipeline has one in it."""
UNTRAINED = "the key of an untrained tokenizer"
FOREIGN_OPTIONS = (*LOADING_OPTIONS, "image_size")
"""What loading a model takes if another library saved it."""
IGNORED_OPTIONS = (*HUB_OPTIONS, "low_cpu_mem_usage")
CONFIGS = ("*config.json", "model_index.json", "*.index.json", "*.index.*.json")
"""Patterns of what tells, on the hub, which model it is and which files hold its weights."""


def load_tokenizer(name_or_path: str | os.PathLike[str], **overrides: Any) -> ImageTokenizer:
    """Build a fresh tokenizer from its key, or load a trained one.

    Args:
        name_or_path: A registered key, the name of a trained model that is installed
            (``"hrvqvae/cifar10"``), a directory, or a hub id (``"user/model"``); the first that
            fits, so that ``"./vqvae"`` is a directory where ``"vqvae"`` is a key. What is written
            as a path is never sent to a hub; see :func:`spectok.places.may_be_hub_id`.
        **overrides: For a key: constructor options. For a trained model: ``torch_dtype``,
            ``subfolder``, ``variant``, ``revision`` and the like, and ``trust`` (see
            :meth:`SpectokModel.from_pretrained`); its architecture cannot be overridden, but
            ``image_size``, one number or (height, width), gives it at another size (see
            :meth:`ImageTokenizer.at_size`). The subfolder of a pipeline of diffusers is found in
            its ``model_index.json``.

    Returns:
        A fresh model in training mode, or a trained one in eval mode.

    Raises:
        UnknownNameError: If it is not a key, a directory, a name or a hub id.
        PluginError: If the plugin that provides it is installed but fails to load.
        ConfigError: If an option is unknown, of the wrong type or out of range.
        CheckpointError: If a path does not exist, or saved weights are unsafe to load or do not
            fit.
        InputError: If a trained model does not take images of ``image_size``.
    """
    name = os.fspath(name_or_path)
    if name not in registry.list_tokenizers():
        find_model(name, TOKENIZERS)
        folder = root_folder(name, overrides.get("subfolder"))
        if os.path.isdir(folder):
            return load_folder(folder, **overrides)
        if may_be_hub_id(name) and find_recipe(name) is None:
            return _load_from_hub(name, **overrides)
    _check_key(name)
    remark_taken(name, UNTRAINED)

    from spectok.recipes.options import validate_options

    cls = registry.get_tokenizer(name)
    return cls(**validate_options(cls, overrides, name))


def _check_key(name: str) -> None:
    if name not in registry.list_tokenizers() and names_a_place(name):
        raise CheckpointError(
            f"{not_there(name)}; give a key, the folder of a saved model, or a hub id"
        )
    trained = registry.names("model")
    also = f", or a trained model: {', '.join(trained)}" if trained else ""
    registry.check_name("tokenizer", name, f"A directory or hub id also works{also}")


def not_there(name: str) -> str:
    """Return what a message says of a model that is not on this machine."""
    if os.path.exists(home(name)):
        return f"{name} is a file, and no directory"
    if recipe := find_recipe(name):
        command = shlex.join(["spectok", "train", *command_of_recipe(recipe), name])
        return f"{name} is a recipe, not a trained model: {command} trains it"
    similar = "" if is_path(name) else similar_model(name)
    return f"{name} does not exist{similar}" if similar else missing(name)


def _at_size(tokenizer: ImageTokenizer, image_size: ImageSize | None) -> ImageTokenizer:
    return tokenizer if image_size is None else tokenizer.at_size(image_size)


def load_trained(
    path: str | os.PathLike[str], *, subfolder: str | None = None, trust: bool = False
) -> ImageTokenizer:
    """Load a trained tokenizer, in eval mode, from its folder, its run's folder, or the hub.

    Args:
        path: Folder of a model or of a run, the name of a trained model that is installed, or a
            hub id.
        subfolder: Folder inside it that holds the tokenizer. None: the one that its
            ``model_index.json`` says, if it is a pipeline.
        trust: See :meth:`SpectokModel.from_pretrained`.

    Raises:
        ConfigError: If it is a registered key, which has no weights.
        CheckpointError: If it cannot be loaded.
    """
    name = check_trained(path)
    folder = root_folder(name, subfolder)
    if os.path.isdir(folder):
        return load_folder(folder, subfolder=subfolder, trust=trust)
    return load_tokenizer(name, subfolder=subfolder, trust=trust)


def check_trained(path: str | os.PathLike[str], kinds: Sequence[str] = TOKENIZERS) -> str:
    """Check that a trained model may be there, without importing what reads it.

    Args:
        path: Folder of a model or of a run, the name of a trained model that is installed, or a
            hub id; no hub is asked.
        kinds: What it may be; see :data:`spectok.trained.KINDS`.

    Returns:
        The path as text.

    Raises:
        UnknownNameError: If it is neither a key, a directory, a name nor a hub id.
        ConfigError: If it is a registered key, which has no weights, or the name of a trained model
            of another kind.
        CheckpointError: If it is a path, and no directory.
    """
    name = os.fspath(path)
    if name in registry.list_tokenizers():
        here = f"; the folder here is ./{name}" if os.path.isdir(name) else ""
        raise ConfigError(
            f"{name!r} names an untrained tokenizer; give a trained one, such as the folder that "
            f"'spectok train {name}' ends with{here}"
        )
    if find_model(name, kinds) or os.path.isdir(home(name)):
        return name
    if may_be_hub_id(name) and find_recipe(name) is None:
        return name
    if names_a_place(name):
        raise CheckpointError(
            f"{not_there(name)}; give the folder of a trained model or of its run, or a hub id"
        )
    _check_key(name)
    return name


def model_folder(path: str) -> str:
    """Return the folder of a model: inside that of its run, or by its name; otherwise the path."""
    path = str(find_model(path) or home(path))
    inside = Path(path, "model")
    return str(inside) if os.path.isfile(inside / "config.json") else path


def root_folder(path: str, subfolder: str | None) -> Path:
    """Return the folder that a subfolder is meant to be inside; without one, the model's."""
    return Path(model_folder(path) if subfolder is None else find_model(path) or path)


def find_saved(path: str | os.PathLike[str], subfolder: str | None = None) -> ForeignFolder:
    """Return the folder and the config of a trained tokenizer; those on the hub are fetched first.

    Args:
        path: As for :func:`load_trained`.
        subfolder: As there.

    Raises:
        CheckpointError: If it is not there.
    """
    from spectok.foreign.opening import open_folder
    from spectok.hub import download

    name = os.fspath(path)
    root = root_folder(name, subfolder)
    return open_folder(
        root if os.path.isdir(root) else download(name, list(CONFIGS), {}), subfolder, name
    )


def load_folder(folder: Path, **overrides: Any) -> ImageTokenizer:
    """Load a trained tokenizer of any registered class, or of another library, from a directory."""
    from spectok.foreign import ForeignModel
    from spectok.foreign.claims import load_class
    from spectok.foreign.opening import open_folder

    check_loading_options(overrides, FOREIGN_OPTIONS)
    saved = open_folder(folder, overrides.pop("subfolder", None), str(folder))
    kind = identify(saved)
    if isinstance(kind, ForeignModel):
        return _load_foreign(load_class(kind), saved, overrides)
    size = overrides.pop("image_size", None)
    check_loading_options(overrides)
    return _at_size(kind.from_pretrained(saved.folder, **overrides), size)


def identify(saved: ForeignFolder) -> type[ImageTokenizer] | ForeignModel:
    """Return the class that saved a model, or the kind of foreign model it is.

    Raises:
        CheckpointError: If no installed plugin provides, or loads, it, or it is only a part of a
            tokenizer.
        PluginError: If several plugins claim it.
    """
    from spectok.foreign import ForeignModel
    from spectok.foreign.claims import claimed
    from spectok.foreign.opening import unclaimed

    name = saved.config.get("_class_name")
    own = _provided(name) if isinstance(name, str) else None
    kind = own or claimed(saved.config, saved.files, saved.place)
    if kind is None:
        raise unclaimed(saved)
    if isinstance(kind, ForeignModel) and kind.instead:
        raise CheckpointError(kind.refusal(saved.place))
    return kind


def _provided(class_name: str) -> type[ImageTokenizer] | None:
    """Return the class whose models are saved under a name; None if no plugin provides it."""
    from spectok.foreign.claims import load_class, saved_by

    classes = registry.classes_named("tokenizer", class_name)
    if classes:
        return classes[-1]
    kind = saved_by(class_name)
    return None if kind is None else load_class(kind)


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
    from spectok.foreign import ForeignModel
    from spectok.foreign.claims import foreign_models, load_class
    from spectok.foreign.opening import check_inside, open_folder
    from spectok.hub import download
    from spectok.saved_config import CONFIG_NAME

    check_loading_options(overrides, FOREIGN_OPTIONS)
    hub = {key: overrides[key] for key in HUB_OPTIONS if key in overrides}
    subfolder = overrides.pop("subfolder", None)
    check_inside(subfolder or "", repo_id)
    try:
        root = download(repo_id, list(CONFIGS), hub)
        if not any(root.rglob(CONFIG_NAME)):
            root = download(
                repo_id, [n for k in foreign_models().values() for n in k.file_names], hub
            )
    except CheckpointError as error:
        keys = ", ".join(registry.list_tokenizers())
        raise CheckpointError(
            f"{repo_id!r} is no trained model that is installed{similar_model(repo_id)}, no "
            f"registered key ({keys}), and {error}"
        ) from error
    saved = open_folder(root, subfolder, repo_id)
    kind = identify(saved)
    inside = saved.folder.relative_to(root).as_posix()
    if not isinstance(kind, ForeignModel):
        size = overrides.pop("image_size", None)
        check_loading_options(overrides)
        within = "" if inside == "." else inside
        return _at_size(kind.from_pretrained(repo_id, subfolder=within, **overrides), size)
    cls = load_class(kind)
    files = cls.weight_files(saved, overrides.get("variant"), exist=False)
    download(repo_id, [file.relative_to(root).as_posix() for file in files], hub)
    return _load_foreign(cls, saved, overrides)


def _load_foreign(
    cls: type[ForeignTokenizer], saved: ForeignFolder, options: dict[str, Any]
) -> ImageTokenizer:
    """Load a model of another library with the options of ``load_tokenizer``.

    Raises:
        ConfigError: If an option is one that such models do not take.
    """
    import torch

    from spectok.modeling import find_device, take_dtype

    options = {key: value for key, value in options.items() if key not in IGNORED_OPTIONS}
    take_dtype(dict(options), torch.float32)  # refuses what is none
    if "dtype" in options:
        options["torch_dtype"] = options.pop("dtype")
    device = find_device(options.pop("device_map", None))
    size = options.get("image_size")
    if isinstance(size, tuple | list):  # of a square the network is laid out, of others a copy
        options["image_size"] = None
    tokenizer = cls.from_foreign(saved, **options)
    tokenizer = tokenizer if device is None else tokenizer.to(device)
    return tokenizer.at_size(tuple(size)) if isinstance(size, tuple | list) else tokenizer
