"""Files are written whole or not at all, and a disk that is full names them."""

from __future__ import annotations

import contextlib
import os
import resource

import numpy as np
import pytest
import torch

from spectok import Level, TokenSpec
from spectok.errors import CheckpointError, SpectokError
from spectok.evaluation.comparison import write_json
from spectok.images import save_grid
from spectok.token_files import read_tokens, write_tokens
from spectok.writing import whole_file, write_text

SPEC = TokenSpec((Level((64,), 1024),))
INDICES = np.random.default_rng(0).integers(0, 1024, (50, 64))
NAMES = [f"{number}.png" for number in range(50)]
WRITERS = {
    "a.npz": lambda path: write_tokens(path, INDICES, NAMES, SPEC),
    "a.json": lambda path: write_tokens(path, INDICES, NAMES, SPEC),
    "b.json": lambda path: write_json({"a": ["x"] * 5_000}, path),
    "a.png": lambda path: save_grid(torch.rand(1, 3, 64, 64) * 2 - 1, path),
    "a.txt": lambda path: write_text(path, "x" * 5_000, CheckpointError),
}


@contextlib.contextmanager
def full_disk(num_bytes=1_000):
    """Let no file grow beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_that_names_the_file_and_leaves_what_was_there(tmp_path, name):
    path = tmp_path / name
    for before in (None, b"earlier"):
        if before is not None:
            path.write_bytes(before)
        with (
            full_disk(),
            pytest.raises(SpectokError, match=f"{name} cannot be written: ") as caught,
        ):
            WRITERS[name](path)
        assert "\n" not in str(caught.value)
        assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else [name])
        assert before is None or path.read_bytes() == before
    WRITERS[name](path)
    assert path.stat().st_size > 1_000
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_link_is_followed_and_folders_are_made(tmp_path):
    (tmp_path / "link.txt").symlink_to(tmp_path / "folder" / "file.txt")
    write_text(tmp_path / "link.txt", "a", CheckpointError)
    assert (tmp_path / "folder" / "file.txt").read_text() == "a"
    assert (tmp_path / "link.txt").is_symlink()


@pytest.mark.parametrize("name", ["nul\0name", "file/inside", "x" * 300, "circle"])
def test_a_place_that_cannot_be_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_text(f"{tmp_path}/{name}", "a", CheckpointError)


def test_an_error_of_our_own_passes_and_leaves_nothing(tmp_path):
    def fail():
        with whole_file(tmp_path / "a", CheckpointError) as unfinished:
            unfinished.touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_tokens_that_are_all_alike_are_read_back(tmp_path):
    indices = np.zeros((40_000, 64), dtype=np.int64)  # 20 MB, of which zip makes 20 kB
    names = [str(number) for number in range(len(indices))]
    write_tokens(tmp_path / "a.npz", indices, names, SPEC)
    found, read = read_tokens(tmp_path / "a.npz", SPEC)
    assert np.array_equal(found, indices)
    assert read == names


def test_a_pipe_in_place_of_tokens_does_not_hang(tmp_path):
    for name in ("a.npz", "a.json"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(SpectokError, match="is a device or pipe, not a file"):
            read_tokens(tmp_path / name, SPEC)
