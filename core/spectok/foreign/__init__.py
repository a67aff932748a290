"""Models that spectok did not write: how a plugin claims one, and what makes it a tokenizer.

``model`` is what a plugin registers, ``tokenizer`` the base of the classes that load such models,
``format`` is a plugin's reading of other projects' checkpoints,
``claims`` looks up who loads a saved one, and ``opening`` finds it in a folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok.lazy import lazy_exports

if TYPE_CHECKING:
    from spectok.foreign.folder import ForeignFolder
    from spectok.foreign.format import CheckpointFormat, take_tensors
    from spectok.foreign.model import ForeignModel
    from spectok.foreign.tokenizer import ForeignTokenizer

_HOME = {
    "ForeignFolder": "spectok.foreign.folder",
    "CheckpointFormat": "spectok.foreign.format",
    "ForeignModel": "spectok.foreign.model",
    "ForeignTokenizer": "spectok.foreign.tokenizer",
    "take_tensors": "spectok.foreign.format",
}

__all__ = ["CheckpointFormat", "ForeignFolder", "ForeignModel", "ForeignTokenizer", "take_tensors"]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
