"""A tokenizer whose weights another library saved: read under the rules for all saved models."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import init_empty_weights
from safetensors.torch import safe_open
from torch import Tensor

from spectok.errors import CheckpointError, ConfigError, SpectokError
from spectok.foreign.folder import ForeignFolder
from spectok.messages import note
from spectok.modeling import read_dtype
from spectok.saved_config import CONFIG_NAME
from spectok.saving import first_line
from spectok.tokenizer import ImageTokenizer
from spectok.weights import (
    ENDING,
    StoredTensor,
    check_finite,
    check_fits,
    find_weights,
    index_names,
    main_dtype,
    read_headers,
    variants,
)


class ForeignTokenizer(ImageTokenizer):
    """Base class of tokenizers that load what another library has saved.

    A subclass builds its boxes from the library's networks, and says by :meth:`options_of` and
    :meth:`own_name` how a model of that library becomes one of its own. Everything else is the same
    for all: only safetensors are read, names, shapes and types are compared with the header before
    any memory is taken, and no weight may be missing or left over. Saved, it is a model like any
    other of spectok's.

    Attributes:
        weights_stem: Name of the weight file, without variant and ending.
    """

    weights_stem: ClassVar[str] = "model"

    @property
    def data_filter(self) -> str | None:
        """The filter of the model's own processor, as for files of images."""
        return self.resize_filter

    @classmethod
    @abstractmethod
    def options_of(cls, saved: ForeignFolder, image_size: int | None) -> dict[str, Any]:
        """Return the constructor options for a model of the library.

        Args:
            saved: Its folder and its config, which nobody has checked.
            image_size: Height and width asked for, in pixels. None: what the model was made for.

        Raises:
            CheckpointError: If the config does not describe a model that can be loaded.
            ConfigError: If the model does not take that size.
        """

    @classmethod
    def own_name(cls, name: str, saved: ForeignFolder) -> str | None:
        """Return what a tensor is called in this class; None if it is no part of it.

        Args:
            name: What the library calls it.
            saved: The model's folder and config.
        """
        return name

    @classmethod
    def from_foreign(
        cls,
        saved: ForeignFolder,
        *,
        image_size: int | None = None,
        variant: str | None = None,
        torch_dtype: Any = None,
        trust: bool = False,
    ) -> Any:
        """Load a model of the library, in eval mode.

        Args:
            saved: Its folder and its config.
            image_size: Height and width, in pixels. None: what the model was made for.
            variant: Part of the weights' names, such as ``"fp16"``. None: none, or the one that
                there is.
            torch_dtype: Type of the weights, but the quantizer's; ``"auto"``: as saved.
            trust: See :meth:`SpectokModel.from_pretrained`.

        Raises:
            CheckpointError: If config or weights do not fit this class.
            ConfigError: If an option does not.
        """
        if image_size is not None and type(image_size) is not int:
            raise ConfigError(f"image_size {image_size!r} is no whole number of pixels")
        if variant is None and (there := cls.only_variant(saved)) is not None:
            note(f"{saved.place}: there are no other weights than of the variant {there}")
            variant = there
        files = cls.weight_files(saved, variant)
        headers = read_headers(files)
        names = {name: own for name in headers if (own := cls.own_name(name, saved)) is not None}
        stored = _renamed(headers, names, saved.place)
        options = cls._read_options(saved, image_size)
        cls._check({"_class_name": cls.__name__, **options}, stored, saved.place, trust)
        kept = cls._keep_in_fp32_modules or ()
        dtype = read_dtype(torch_dtype, main_dtype(stored, kept)) or torch.float32
        with init_empty_weights():
            model: Any = cls(**options)
        check_fits(model.state_dict(), stored, saved.place, cls.__name__)
        state = {}
        for name, tensor in _read_tensors(files, names):
            wanted = torch.float32 if name.split(".")[0] in kept else dtype
            state[name] = tensor.to(wanted) if tensor.is_floating_point() else tensor
        model.load_state_dict(state, assign=True)
        model.to(dtype)  # what is not saved, such as the scale of pixels
        check_finite(model, saved.place)
        return model.eval()

    @classmethod
    def _read_options(cls, saved: ForeignFolder, image_size: int | None) -> dict[str, Any]:
        try:
            return cls.options_of(saved, image_size)
        except SpectokError:
            raise
        except Exception as error:  # a config that nobody has checked can hold anything
            raise CheckpointError(
                f"{saved.place}/{CONFIG_NAME} describes no model: {first_line(error)}; copy or "
                f"save it again"
            ) from error

    @classmethod
    def only_variant(cls, saved: ForeignFolder) -> str | None:
        """Return the variant of a folder's weights if it is the only one that it has."""
        plain = (f"{cls.weights_stem}.{ENDING}", *index_names(None, cls.weights_stem))
        found = variants(saved.folder, cls.weights_stem)
        is_alone = len(found) == 1 and not any((saved.folder / name).exists() for name in plain)
        return found[0] if is_alone else None

    @classmethod
    def weight_files(cls, saved: ForeignFolder, variant: str | None, exist: bool = True) -> Any:
        """Return the files that hold this class's weights, of which a larger model may have more.

        Args:
            saved: Folder and config.
            variant: Part of the weights' names.
            exist: Whether a missing file is an error; before a download it is not.
        """
        return find_weights(
            saved.folder,
            variant,
            cls.weights_stem,
            lambda name: cls.own_name(name, saved) is not None,
            exist=exist,
        )


def _renamed(
    headers: dict[str, StoredTensor], names: dict[str, str], place: str
) -> dict[str, StoredTensor]:
    """Return what files hold under the names of this class.

    Raises:
        CheckpointError: If two tensors become one.
    """
    found: dict[str, StoredTensor] = {}
    for name, own in names.items():
        if own in found:
            raise CheckpointError(f"{place} holds {name} twice, under two names; save it again")
        found[own] = headers[name]
    return found


def _read_tensors(files: list[Path], names: dict[str, str]) -> Any:
    """Yield (own name, tensor) of the named tensors in safetensors files.

    Raises:
        CheckpointError: If a file is cut short.
    """
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for name in sorted(set(file.keys()) & set(names)):
                    tensor: Tensor = file.get_tensor(name)
                    yield names[name], tensor
        except Exception as error:
            raise CheckpointError(
                f"cannot load {path}: {first_line(error)}; copy it again"
            ) from error
