"""Trained models that travel inside the packages of plugins, and are loaded by a name.

``model`` is what a plugin registers, ``names`` finds the folder that a name stands for.
"""

from spectok.trained.model import KINDS, TrainedModel

__all__ = ["KINDS", "TrainedModel"]
