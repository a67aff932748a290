"""Results that are kept: the numbers of another command do not take their place unasked."""

from __future__ import annotations

from pathlib import Path

from spectok.errors import ConfigError
from spectok.reading import read_json


def check_free(path: Path, command: str, option: str = "--result") -> None:
    """Refuse to write over a result of another command, before anything is measured.

    Args:
        path: JSON file that is to be written.
        command: What measures, as it is written down.
        option: That names another file.

    Raises:
        ConfigError: If the file is of another command, or its folder is not there.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: {path.parent} is no folder")
    if not path.is_file():
        return
    recorded = read_json(path, ConfigError).get("command")
    if recorded is not None and recorded != command:
        raise ConfigError(f"{path} is of {recorded!r}; give another file with {option}")
