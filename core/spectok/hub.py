"""Fetch files of a model from the Hugging Face hub, or find them in its cache."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectok.errors import CheckpointError
from spectok.messages import note
from spectok.saving import first_line


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
        remark_asking(name)
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
def remark_asking(name: str, what: str = "model") -> None:
    """Say, once, that a hub is asked, for that can take long; nothing where it is not allowed.

    Args:
        name: Its id.
        what: Kind of the repository, in words.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        note(f"asking the Hugging Face hub ({constants.ENDPOINT}) for the {what} {name}")
