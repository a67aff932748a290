"""Fetch files of a model from the Hugging Face hub, or find them in its cache."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectok.errors import CheckpointError
from spectok.messages import note
from spectok.saving import first_line

PATIENCE = 4.0
"""Seconds to connect to a hub, and as many for it to answer."""


def download(name: str, files: list[str], options: Mapping[str, Any]) -> Path:
    """Fetch files of a hub repository; return the folder they are in.

    Args:
        name: Its id.
        files: Patterns of names.
        options: About the hub, such as ``revision``.

    Raises:
        CheckpointError: If they can neither be fetched nor found in the cache.
    """
    import huggingface_hub
    from huggingface_hub.file_download import repo_folder_name

    if not options.get("local_files_only"):
        ask(name)
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=files, **options))
    except Exception as error:
        cache = Path(options.get("cache_dir") or huggingface_hub.constants.HF_HUB_CACHE)
        copy = cache / repo_folder_name(repo_id=name, repo_type="model")
        raise CheckpointError(
            f"cannot fetch {name!r}: {first_line(error)}; it is no local directory either; a copy "
            f"that was fetched before would be in {copy}"
        ) from error


@functools.cache
def ask(name: str, what: str = "model") -> None:
    """Say, once, that a hub is asked, for that can take long; nothing where it is not allowed.

    A hub that does not answer within seconds is not asked again: libraries would wait for each
    file and retry, for minutes, before they look at what was fetched before.

    Args:
        name: Its id.
        what: Kind of the repository, in words.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    note(f"asking the Hugging Face hub ({constants.ENDPOINT}) for the {what} {name}")
    if not answers():
        note("the hub does not answer; what was fetched before is looked at alone")
        go_offline()


def answers() -> bool:
    """Return whether the hub answers anything within :data:`PATIENCE` seconds."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # of sockets, proxies and certificates: they share no base
        return False
    return True


def go_offline() -> None:
    """Let no library ask a hub any more in this process and those that it starts."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if (datasets := sys.modules.get("datasets")) is not None:  # has read the variable already
        datasets.config.HF_HUB_OFFLINE = True
