"""spectok: learned image tokenizers, and what models of their tokens stand on.

Here is what its users call, and what the author of a plugin imports; quantizers have a package of
their own, :mod:`spectok.quantizers`.

Use
    :func:`load_tokenizer`, :func:`create_quantizer`, and ``list_…`` of what is installed;
    :class:`TokenSpec` and its :class:`Level` describe a tokenizer's tokens.

Tokenizers
    :class:`ImageTokenizer` and :class:`TokenizerOutput`; :class:`TokenSpace`, with
    :class:`GridTokens` and :class:`ListTokens` ready to use; :data:`QuantizerOption` and
    :func:`build_quantizer` for a quantizer that a recipe chooses; :func:`check_divisible`.

Quantizers
    :class:`Quantizer` and :class:`QuantizerOutput`.

Models of other libraries
    :class:`ForeignModel` says which saved models a plugin loads, :class:`ForeignTokenizer` is the
    base of the classes that do, and :class:`ForeignFolder` is what they are given. A
    :data:`CheckpointFormat` reads another project's checkpoints, by :func:`take_tensors`.

Trained models in a package
    :class:`TrainedModel` is one that a plugin registers.

Data sets and metrics
    :class:`DatasetSource`, with :class:`DatasetCard`, :class:`DataConfig` and :class:`Rows`;
    :class:`SetMetric`.

Errors
    :class:`SpectokError` is the base of all; plugins raise :class:`ConfigError`,
    :class:`CheckpointError`, :class:`InputError`, :class:`TokenError` and :class:`PluginError`.

All names but :func:`hookimpl`, which marks a plugin's hooks, load on first use, so
``import spectok`` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok.lazy import lazy_exports
from spectok.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from spectok.data import DataConfig, DatasetCard, DatasetSource, Rows
    from spectok.errors import (
        CheckpointError,
        ConfigError,
        InputError,
        PluginError,
        SpectokError,
        TokenError,
    )
    from spectok.foreign import (
        CheckpointFormat,
        ForeignFolder,
        ForeignModel,
        ForeignTokenizer,
        take_tensors,
    )
    from spectok.loading import build_quantizer, create_quantizer, load_tokenizer
    from spectok.metrics import SetMetric
    from spectok.nn import GridTokens, ListTokens
    from spectok.outputs import QuantizerOutput, TokenizerOutput
    from spectok.plugins.registry import (
        list_datasets,
        list_models,
        list_priors,
        list_quantizers,
        list_tokenizers,
    )
    from spectok.quantizers import Quantizer
    from spectok.recipes.schema import QuantizerOption
    from spectok.token_spec import Level, TokenSpec
    from spectok.tokenizer import ImageTokenizer, TokenSpace, check_divisible
    from spectok.trained import TrainedModel

__version__ = "0.1.0"

_HOME = {
    "CheckpointError": "spectok.errors",
    "CheckpointFormat": "spectok.foreign",
    "ConfigError": "spectok.errors",
    "DataConfig": "spectok.data",
    "DatasetCard": "spectok.data",
    "DatasetSource": "spectok.data",
    "ForeignFolder": "spectok.foreign",
    "ForeignModel": "spectok.foreign",
    "ForeignTokenizer": "spectok.foreign",
    "GridTokens": "spectok.nn",
    "ImageTokenizer": "spectok.tokenizer",
    "InputError": "spectok.errors",
    "Level": "spectok.token_spec",
    "ListTokens": "spectok.nn",
    "PluginError": "spectok.errors",
    "Quantizer": "spectok.quantizers",
    "QuantizerOption": "spectok.recipes.schema",
    "QuantizerOutput": "spectok.outputs",
    "Rows": "spectok.data",
    "SetMetric": "spectok.metrics",
    "SpectokError": "spectok.errors",
    "TokenError": "spectok.errors",
    "TokenSpace": "spectok.tokenizer",
    "TokenSpec": "spectok.token_spec",
    "TokenizerOutput": "spectok.outputs",
    "TrainedModel": "spectok.trained",
    "build_quantizer": "spectok.loading",
    "check_divisible": "spectok.tokenizer",
    "create_quantizer": "spectok.loading",
    "list_datasets": "spectok.plugins.registry",
    "list_models": "spectok.plugins.registry",
    "list_priors": "spectok.plugins.registry",
    "list_quantizers": "spectok.plugins.registry",
    "list_tokenizers": "spectok.plugins.registry",
    "load_tokenizer": "spectok.loading",
    "take_tensors": "spectok.foreign",
}

__all__ = [
    "CheckpointError",
    "CheckpointFormat",
    "ConfigError",
    "DataConfig",
    "DatasetCard",
    "DatasetSource",
    "ForeignFolder",
    "ForeignModel",
    "ForeignTokenizer",
    "GridTokens",
    "ImageTokenizer",
    "InputError",
    "Level",
    "ListTokens",
    "PluginError",
    "Quantizer",
    "QuantizerOption",
    "QuantizerOutput",
    "Rows",
    "SetMetric",
    "SpectokError",
    "TokenError",
    "TokenSpace",
    "TokenSpec",
    "TokenizerOutput",
    "TrainedModel",
    "__version__",
    "build_quantizer",
    "check_divisible",
    "create_quantizer",
    "hookimpl",
    "list_datasets",
    "list_models",
    "list_priors",
    "list_quantizers",
    "list_tokenizers",
    "load_tokenizer",
    "take_tensors",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOME, also=("__version__", "hookimpl"))
