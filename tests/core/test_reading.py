"""Files that somebody else wrote are read through one door, within bounds."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from spectok.errors import CheckpointError, DataError
from spectok.reading import parse_json, read_json, read_npz, read_text


def test_json_and_text_are_read_without_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": [1, "é"]}).encode())
    assert read_json(tmp_path / "a.json", DataError) == {"a": [1, "é"]}
    assert read_text(tmp_path / "a.json", DataError).startswith("{")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nests too deeply"),
        ("[" * 150 + "]" * 150, "nests deeper than 100 levels"),
        ('{"a": ' * 150 + "1" + "}" * 150, "nests deeper than 100 levels"),
        ("1" * 10_000, "digits"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_json_that_no_parser_should_take_is_one_line(text, reason):
    with pytest.raises(CheckpointError, match=reason) as caught:
        parse_json(text, "config.json", CheckpointError)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_json_as_deep_as_any_of_ours_is_read():
    assert parse_json("[" * 100 + "]" * 100, "here", DataError)


@pytest.mark.parametrize("name", ["missing.json", "folder", "pipe", "nul\0name", "surrogate\ud800"])
def test_what_is_no_file_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for read in (read_text, read_json, read_npz):
        with pytest.raises(DataError) as caught:
            read(f"{tmp_path}/{name}", DataError)
        assert "\n" not in str(caught.value)


def test_a_text_larger_than_its_kind_is_refused_unread(tmp_path):
    (tmp_path / "a.json").write_text(" " * 2000)
    with pytest.raises(DataError, match="has 2,000 bytes; such a file has at most 1,000"):
        read_text(tmp_path / "a.json", DataError, max_bytes=1000)


def test_npz_is_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(6), y=np.array(["a", "b"]))
    found = read_npz(tmp_path / "a.npz", DataError)
    assert found["x"].tolist() == list(range(6))
    assert found["y"].tolist() == ["a", "b"]


def test_npz_that_claims_far_more_than_it_holds_takes_no_memory(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, indices=np.zeros(40_000_000, dtype=np.int64))  # 320 MB of zeros
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(DataError, match="claim 320,000,1"):
        read_npz(path, DataError)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_damaged_npz_is_one_line_whatever_breaks(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.arange(100), names=np.array(["a"]))
    good, path = buffer.getvalue(), tmp_path / "a.npz"
    generator = np.random.default_rng(0)
    messages = []
    for _ in range(300):
        bad = bytearray(good)
        for place in generator.integers(0, len(bad), 4):
            bad[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bad[: generator.integers(1, len(bad))])
        try:
            read_npz(path, DataError)
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 200
    assert not any("\n" in message for message in messages)


def test_npz_with_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([object()], dtype=object))
    with pytest.raises(DataError, match="cannot be read as npz"):
        read_npz(tmp_path / "a.npz", DataError)


def test_an_encrypted_member_is_one_line(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(3))
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert archive.infolist()[0].flag_bits & 1
    with pytest.raises(DataError, match="encrypted"):
        read_npz(path, DataError)
