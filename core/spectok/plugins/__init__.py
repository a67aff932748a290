"""Plugins: the hooks they implement, how they are found, and what they register.

``hookspecs`` is the whole extension surface on one screen, ``loading`` finds entry points and calls
hooks, ``registry`` looks names up, and ``builtin`` is core's own plugin.
"""

from spectok.plugins.hookspecs import hookimpl
from spectok.plugins.loading import Plugin, Plugins, installed, load_plugins

__all__ = ["Plugin", "Plugins", "hookimpl", "installed", "load_plugins"]
