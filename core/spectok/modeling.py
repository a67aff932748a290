"""Saving and loading with the checks that diffusers leaves out.

``from_pretrained`` of diffusers only warns when weights are missing or belong to another class,
and falls back to pickles. Everything spectok saves goes through :class:`SpectokModel` instead:
only safetensors are read, the class named in the config must match, and no weight may be missing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from spectok.bounds import bounded_building, check_layout, check_numbers
from spectok.buffers import recompute_buffers
from spectok.errors import CheckpointError, ConfigError, SpectokError
from spectok.hub import download
from spectok.places import may_be_hub_id, missing
from spectok.recipes.schema import section_model, validate_section
from spectok.saved_config import CONFIG_NAME, check_config, forget_origin, read_config
from spectok.saving import (
    HUB_OPTIONS,
    LOADING_OPTIONS,
    check_loading_options,
    first_line,
    resolve,
    saving,
)
from spectok.token_spec import TokenSpec
from spectok.weights import (
    ENDING,
    FLOATS,
    STEM,
    StoredTensor,
    check_finite,
    check_fits,
    find_weights,
    fingerprint,
    index_names,
    main_dtype,
    read_headers,
    weight_names,
)

PROCESSOR_FILE = "preprocessor_config.json"
DTYPE_NAMES = ("torch_dtype", "dtype")
DIFFUSERS_OPTIONS = (
    "disable_mmap",
    "max_memory",
    "offload_folder",
    "offload_state_dict",
    "output_loading_info",
    "use_safetensors",
)
"""Further options with which pipelines of diffusers load their models."""

TYPES = {
    name: dtype for dtype in FLOATS for name in (str(dtype).removeprefix("torch."), str(dtype))
}
"""Names of the types that weights may have, with and without ``torch.``."""


class SpectokModel(ModelMixin, ConfigMixin):
    """A diffusers model whose loading fails loudly and whose saving is all or nothing.

    A class whose options differ from those of an earlier version lists the changes in the two
    attributes below; models saved by that version then still load unchanged.

    Attributes:
        renamed_options: Earlier name of an option -> its present name.
        added_options: Option that earlier versions lacked -> the value for which the class builds
            the same model as they did.
    """

    config_name = CONFIG_NAME
    renamed_options: ClassVar[Mapping[str, str]] = {}
    added_options: ClassVar[Mapping[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        """Find modules before config keys, because a config key may share a submodule's name."""
        return nn.Module.__getattr__(self, name)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Read a saved config, translated to the options of this version."""
        found: Any = super().load_config(*args, **kwargs)
        if isinstance(found, tuple):
            return (cls.upgraded(found[0]), *found[1:])
        return cls.upgraded(found)

    @classmethod
    def upgraded(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Translate a config, perhaps of an earlier version, to this version's options.

        Raises:
            CheckpointError: If it has an option under both its names.
        """
        for before, now in cls.renamed_options.items():
            if before in config and now in config:
                raise CheckpointError(
                    f"a {cls.__name__} is saved with {before} and with {now}, which are one "
                    f"option; remove either from {CONFIG_NAME}"
                )
        renamed = {cls.renamed_options.get(key, key): value for key, value in config.items()}
        return {**cls.added_options, **renamed}

    def first_config(self) -> dict[str, Any]:
        """Return this model's options as the earliest version that could build it saved them.

        A model's identity is computed from these, so that renaming or adding an option does not
        change the identity of older models.
        """
        earlier = {now: before for before, now in self.renamed_options.items()}
        return {
            earlier.get(key, key): value
            for key, value in dict(self.config).items()
            if not key.startswith("_")
            and not (key in self.added_options and value == self.added_options[key])
        }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a saved model, in eval mode.

        Config and weights are checked before the model is built: the options by the constructor's
        signature, names, shapes and types by the header of the weights.

        Args:
            pretrained_model_name_or_path: A directory or a hub id.
            **kwargs: Options of diffusers (``torch_dtype``, ``subfolder``, ``revision``, …), and
                ``trust``: whether a config may ask for more than the weights beside it suggest.

        Raises:
            CheckpointError: If the directory, its class, or its weights do not fit this class.
            ConfigError: If an option is unknown or of the wrong type.
        """
        check_loading_options(kwargs, (*LOADING_OPTIONS, *DIFFUSERS_OPTIONS))
        find_device(kwargs.get("device_map"))
        want_info, trust = kwargs.pop("output_loading_info", False), kwargs.pop("trust", False)
        subfolder = str(kwargs.pop("subfolder", None) or "")
        name = pretrained_model_name_or_path
        place = f"{name}/{subfolder}" if subfolder else str(name)
        folder = find_folder(name, kwargs, subfolder)
        stored = read_headers(find_weights(folder, kwargs.get("variant")))
        cls._check(read_config(folder), stored, place, trust)
        auto = main_dtype(stored, cls._keep_in_fp32_modules or ())
        if any(key in kwargs for key in DTYPE_NAMES):
            kwargs["torch_dtype"] = take_dtype(kwargs, auto)
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        try:
            loaded: Any = super().from_pretrained(folder, **kwargs)
            model, info = loaded
        except (ConfigError, CheckpointError):
            raise
        except Exception as error:
            raise CheckpointError(
                f"cannot load {place}: {first_line(error)}; if files are missing or cut short, "
                "copy or save it again"
            ) from error
        for name, module in model.named_modules():
            # diffusers keeps what it loads here in float32, but not the buffers it does not load
            if name.rpartition(".")[-1] in (cls._keep_in_fp32_modules or ()):
                module.float()
        if kwargs.get("torch_dtype") not in (None, torch.float32):
            recompute_buffers(model)
        check_fits(model.state_dict(), stored, place, cls.__name__)
        check_finite(model, place)
        model.load_more(folder)
        return (model, info) if want_info else model

    @classmethod
    def _check(
        cls, saved: dict[str, Any], stored: dict[str, StoredTensor], place: str, trust: bool
    ) -> None:
        """Check a config, and that the weights beside it are those of the network it describes.

        Raises:
            CheckpointError: If not.
        """
        config = cls.upgraded(saved)
        check_config(config, cls, place)
        options = {key: value for key, value in config.items() if not key.startswith("_")}
        where, numbers = f"{place}/{CONFIG_NAME}", sum(tensor.numel for tensor in stored.values())
        bounds = contextlib.ExitStack()
        if not trust:
            check_numbers(options, numbers, where)
            bounds.enter_context(bounded_building(len(stored), numbers, where))
        try:
            with bounds, torch.device("meta"):
                validate_section(section_model(cls), options, "")
                if "token_spec" in options and not trust:
                    layout = TokenSpec.from_dict(options["token_spec"])
                    check_layout(layout.num_tokens, numbers, where)
                network: Any = cls(**options)
                getattr(network, "token_spec", None)  # layouts are computed, and bounded, when read
        except CheckpointError:
            raise
        except SpectokError as error:
            reason = "; ".join(str(error).splitlines())[:500]
            raise CheckpointError(f"{where} is not valid: {reason}") from error
        except Exception as error:
            values = isinstance(error, RuntimeError | TypeError)  # which the meta device lacks
            if values and re.search("meta (tensor|device)", str(error)):
                return  # the constructor looks at some; the weights are checked when loaded
            raise CheckpointError(
                f"{where} describes no network: {first_line(error)}; copy or save it again"
            ) from error
        check_fits(network.state_dict(), stored, place, cls.__name__)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: Any,
        *,
        is_main_process: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        safe_serialization: bool = True,
        push_to_hub: bool = False,
    ) -> None:
        """Save config and safetensors weights, all or nothing.

        They are written beside their target and then renamed, so that a full disk leaves an earlier
        model there untouched. Weights of the same variant that are not written again are removed,
        and nothing else.

        Args:
            save_directory: The folder.
            is_main_process: Whether this process writes; the others do nothing.
            variant: Part of the weights' names, such as ``"fp16"``.
            max_shard_size: Largest size of a file of weights.
            safe_serialization: Always True.
            push_to_hub: Always False; see ``push_to_hub()``.

        Raises:
            CheckpointError: If writing fails.
            ConfigError: If an option is not one that can be saved with.
        """
        if not safe_serialization or push_to_hub:
            raise ConfigError(
                "models are saved as safetensors, and uploaded with push_to_hub(repo_id); leave "
                "safe_serialization and push_to_hub out"
            )
        if variant is not None and not re.fullmatch(r"[A-Za-z0-9]\w*", variant, re.ASCII):
            raise ConfigError(f"variant {variant!r} is not letters and digits, such as 'fp16'")
        if not is_main_process:
            return
        with saving(save_directory, CONFIG_NAME, weight_names(variant)) as temporary:
            super().save_pretrained(temporary, variant=variant, max_shard_size=max_shard_size)
            forget_origin(temporary / CONFIG_NAME)
            self.save_more(temporary, resolve(save_directory))

    def save_more(self, folder: Path, target: Path) -> None:
        """Write further files of the model, beside its config and weights.

        Args:
            folder: Where to write.
            target: Where the files come from there; a file that it has already is not needed again.
        """

    def load_more(self, folder: Path) -> None:
        """Read what :meth:`save_more` wrote, from the folder of a model that was just loaded.

        Raises:
            CheckpointError: If it does not fit the model.
        """

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or cast, like any module.

        What has to stay in float32 does so by itself; diffusers would warn that it might not.
        A type may be given by its name, as when loading: ``model.to("bfloat16")``.
        """
        args = tuple(TYPES.get(given, given) if isinstance(given, str) else given for given in args)
        if isinstance(kwargs.get("dtype"), str):
            kwargs["dtype"] = read_dtype(kwargs["dtype"], self.dtype)
        logger = logging.getLogger(ModelMixin.__module__)
        logger.addFilter(_keeps_float32)
        try:
            return super().to(*args, **kwargs)
        finally:
            logger.removeFilter(_keeps_float32)


def _keeps_float32(record: logging.LogRecord) -> bool:
    return "should be kept in float32" not in record.getMessage()


def model_fingerprint(model: SpectokModel) -> str:
    """Return the SHA-256 of a model's class, options and every weight, wherever it is."""
    return fingerprint(type(model).__name__, model.first_config(), model.state_dict())


def find_device(given: Any) -> torch.device | None:
    """Return the device of a ``device_map``; a model is not split, for its parts are called alone.

    Args:
        given: A device, ``{"": device}`` or None.

    Raises:
        ConfigError: If it is anything else, such as ``"auto"``, or not on this machine.
    """
    place: Any = given[""] if isinstance(given, dict) and set(given) == {""} else given
    try:
        device = None if place is None else torch.device(place)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device_map {given!r} is no device: a model stays on one, for its parts are called "
            "one by one; give e.g. 'cuda:0', or call .to(device) on what is loaded"
        ) from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device_map {given!r} is not a device of this machine ({first_line(error)}); leave it "
            "out, or give one that is"
        ) from error
    return device


def take_dtype(options: dict[str, Any], auto: torch.dtype) -> torch.dtype | None:
    """Take the type that a model is loaded in out of the options, under either of its names.

    Args:
        options: Of loading.
        auto: What ``"auto"`` stands for.

    Raises:
        ConfigError: If it is no type, or there are two.
    """
    given = {key: options.pop(key) for key in DTYPE_NAMES if key in options}
    found = {read_dtype(value, auto, key) for key, value in given.items()}
    if len(found) > 1:
        raise ConfigError(f"{' and '.join(DTYPE_NAMES)} are two names of one option; give one")
    return found.pop() if found else None


def read_dtype(given: Any, auto: torch.dtype, key: str = "dtype") -> torch.dtype | None:
    """Return the type that a model is loaded in.

    Args:
        given: A float type, its name with or without ``torch.``, ``"auto"`` or None.
        auto: What ``"auto"`` stands for.
        key: What the option was called, for the message.

    Raises:
        ConfigError: If it is none of these.
    """
    if given is None or given in FLOATS:
        return given
    if given == "auto":
        return auto
    if isinstance(given, str) and given in TYPES:
        return TYPES[given]
    names = [name for name in TYPES if "." not in name]
    raise ConfigError(f"{key} {given!r} is none of {', '.join([*names, 'auto'])}")


def find_folder(name: Any, options: dict[str, Any], subfolder: str = "") -> Path:
    """Return the folder of a saved model; one on the hub is downloaded first.

    Args:
        name: A directory or a hub id.
        options: Of loading; those about the hub are taken out.
        subfolder: Folder inside it.

    Raises:
        CheckpointError: If there is none.
    """
    hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
    place, inside = resolve(name), PurePath(subfolder)
    if inside.is_absolute() or ".." in inside.parts:
        raise CheckpointError(f"subfolder {subfolder!r} is not inside {name}")
    if not os.path.isdir(place):
        if not may_be_hub_id(os.fspath(name)):
            what = f"{name} is a file" if os.path.exists(place) else missing(name)
            raise CheckpointError(f"{what}; give the directory of a saved model, or a hub id")
        files = [CONFIG_NAME, *_patterns(options)]
        wanted = [f"{subfolder}/{file}" if subfolder else file for file in files]
        place = download(os.fspath(name), wanted, hub)
    if not os.path.isdir(place / inside):
        raise CheckpointError(f"{name} has no folder {subfolder}; give a saved model")
    return place / inside


def _patterns(options: dict[str, Any]) -> list[str]:
    """Return patterns of the weight files to download."""
    middle = f".{options['variant']}" if options.get("variant") else ""
    files = [PROCESSOR_FILE, f"{STEM}{middle}.{ENDING}", f"{STEM}{middle}-*-of-*.{ENDING}"]
    return [*files, *index_names(options.get("variant"))]
