"""What a plugin registers of models that spectok did not write."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class ForeignModel:
    """A kind of saved model of another library, and the class that makes it a tokenizer.

    It claims a folder if one of ``class_names``, ``model_types`` and ``file_names`` fits. Nothing
    is imported until such a model is loaded.

    Args:
        tokenizer: ``"module:Class"`` of a :class:`~spectok.ForeignTokenizer`.
        summary: What it is, on one line, such as ``"VQModel of diffusers"``.
        class_names: Values of ``_class_name`` in its ``config.json``, which diffusers writes.
        model_types: Values of ``model_type`` in its ``config.json``, which transformers writes.
        file_names: Patterns of file names, such as ``"vq_ds16_*.safetensors"``, for models whose
            folder has no ``config.json`` or one that names neither.
        instead: What to do with such a model where it is no tokenizer, but a part of one: it is
            refused with these words. ``PLACE`` in them becomes its folder or hub id; ``tokenizer``
            is empty.
    """

    tokenizer: str
    summary: str
    class_names: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    file_names: tuple[str, ...] = ()
    instead: str = ""

    @property
    def class_name(self) -> str:
        """Name of the tokenizer's class, which stands in the config of a model it has saved."""
        return self.tokenizer.rpartition(":")[2].rpartition(".")[2]

    def refusal(self, place: str) -> str:
        """Return why such a model is no tokenizer, and what to do with it.

        Args:
            place: Its folder or hub id.
        """
        return f"{place} is no tokenizer: {self.instead.replace('PLACE', shlex.quote(place))}"

    def claims(self, config: Mapping[str, Any], files: Iterable[str]) -> bool:
        """Return whether a model is of this kind.

        Args:
            config: Its ``config.json``; empty if it has none.
            files: Names of the files beside it.
        """
        name, kind = config.get("_class_name"), config.get("model_type")
        if isinstance(name, str) or isinstance(kind, str):
            return name in self.class_names or kind in self.model_types
        return any(fnmatchcase(file, pattern) for file in files for pattern in self.file_names)
