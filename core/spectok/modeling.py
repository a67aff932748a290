"""Saving and loading with the checks that diffusers leaves out.

``from_pretrained`` of diffusers only warns when weights are missing or belong to another class,
and falls back to pickles. Everything spectok saves goes through :class:`SpectokModel` instead:
only safetensors are read, the class named in the config must match, and no weight may be missing.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.constants import CONFIG_NAME
from torch import nn

from spectok.errors import CheckpointError, ConfigError

TEMPORARY_SUFFIX = ".partial"


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

        Args:
            pretrained_model_name_or_path: A directory or a hub id.
            **kwargs: Options of diffusers (``torch_dtype``, ``subfolder``, ``revision``, …).

        Raises:
            CheckpointError: If the directory, its class, or its weights do not fit this class.
        """
        place = _describe(pretrained_model_name_or_path, kwargs.get("subfolder"))
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if folder.is_dir():
            check_config(cls.upgraded(read_config(folder)), cls, place)
        elif _looks_like_path(pretrained_model_name_or_path):
            raise CheckpointError(f"{place} is not a directory; give a saved model or a hub id")
        want_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        try:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
            model, info = loaded
        except (ConfigError, CheckpointError):
            raise
        except Exception as error:
            raise CheckpointError(
                f"cannot load {place}: {_first_line(error)}; if files are missing or cut short, "
                "copy or save it again"
            ) from error
        check_config(dict(model.config), cls, place)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            if names := info.get(problem):
                shown = ", ".join(map(str, list(names)[:3])) + (" …" if len(names) > 3 else "")
                raise CheckpointError(
                    f"{place} does not fit {cls.__name__}: {problem.replace('_', ' ')} "
                    f"({len(names)}): {shown}"
                )
        for name, module in model.named_modules():
            # diffusers keeps what it loads here in float32, but not the buffers it does not load
            if name.rpartition(".")[-1] in (cls._keep_in_fp32_modules or ()):
                module.float()
        return (model, info) if want_info else model

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save config and safetensors weights, all or nothing.

        They are written beside the target and then renamed, so that a full disk leaves an earlier
        model there untouched.

        Raises:
            CheckpointError: If writing fails.
        """
        target = Path(save_directory)
        if target.is_file():
            raise CheckpointError(f"{target} is a file; give a directory to save into")
        push = kwargs.pop("push_to_hub", False)
        with saving(target) as temporary:
            super().save_pretrained(temporary, **kwargs, safe_serialization=True)
            forget_origin(temporary / CONFIG_NAME)
        if push:
            raise CheckpointError("save first, then call push_to_hub(repo_id)")


@contextlib.contextmanager
def saving(target: Path) -> Iterator[Path]:
    """Provide a new folder to write into; its files then move into the target, all or none.

    Args:
        target: Folder for the files; other files in it stay.

    Raises:
        CheckpointError: If anything fails before the files are moved.
    """
    temporary = target.with_name(target.name + TEMPORARY_SUFFIX)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        install(temporary, target)
    except Exception as error:
        raise CheckpointError(f"cannot save to {target}: {_first_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def forget_origin(config: Path) -> None:
    """Remove from a config the place that its model was loaded from, which diffusers records."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def install(temporary: Path, target: Path) -> None:
    """Move finished files into a directory by one atomic rename each, weights before config."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(temporary.iterdir(), key=lambda p: p.suffix == ".json"):
        os.replace(path, target / path.name)


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model's ``config.json``.

    Raises:
        CheckpointError: If it is missing or is not JSON.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_NAME}; is it a saved model?")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return config


def check_config(config: dict[str, Any], cls: type, place: str) -> None:
    """Refuse a config that another class saved, or that has options this class does not take.

    Raises:
        CheckpointError: Names both classes, or the options.
    """
    found = config.get("_class_name")
    if found != cls.__name__:
        raise CheckpointError(
            f"{place} holds a {found or 'model of no known class'}, not {cls.__name__}"
        )
    options = inspect.signature(cls).parameters
    unknown = sorted(key for key in config if not key.startswith("_") and key not in options)
    if unknown:
        raise CheckpointError(
            f"{place} has options in {CONFIG_NAME} that {cls.__name__} does not take: "
            f"{', '.join(unknown)}; it may have been saved by another version of spectok"
        )


def _describe(path: Any, subfolder: str | None) -> str:
    return f"{path}/{subfolder}" if subfolder else str(path)


def _looks_like_path(name: Any) -> bool:
    text = os.fspath(name)
    return text.startswith((".", "/", "~")) or text.count("/") > 1


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
