"""Plugins: the hooks they answer, how they are found, and what they registered.

``hookspecs`` is the whole extension surface on one screen, ``loading`` finds entry points and calls
hooks, ``registry`` looks names up, and ``builtin`` is what core registers through the same door.
"""

from spectok.plugins.hookspecs import hookimpl
from spectok.plugins.loading import Plugin, Plugins, installed, load_plugins

__all__ = ["Plugin", "Plugins", "hookimpl", "installed", "load_plugins"]
