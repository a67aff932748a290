"""The first hour: its commands do what its page says, in order, from pictures to a pipeline."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from spectok.images import to_pil

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PICTOGRAMS = "emoji/train.parquet"


@pytest.fixture
def program() -> Any:
    """Import ``docs/first_hour.py``."""
    found = importlib.util.spec_from_file_location("first_hour", DOCS / "first_hour.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def write_pictures(folder: Path, pictures: list[tuple[Any, str]]) -> Path:
    """Write images and captions as people have them."""
    folder.mkdir()
    lines = []
    for i, (image, caption) in enumerate(pictures):
        image.save(folder / f"{i:04d}.png")
        lines.append(json.dumps({"file_name": f"{i:04d}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def drawn_shapes() -> list[tuple[Any, str]]:
    from spectok.data import DataConfig, build_dataset

    dataset = build_dataset(DataConfig(name="shapes", limit=40), train=False)
    return [(to_pil(dataset[i]["images"]), dataset[i]["caption"]) for i in range(40)]


def pictograms() -> list[tuple[Any, str]]:
    import io

    import pyarrow.parquet as parquet

    path = Path(os.environ.get("SPECTOK_TEST_DATA", "")) / PICTOGRAMS
    if not path.is_file():
        pytest.skip(f"needs {PICTOGRAMS} in the folder that SPECTOK_TEST_DATA names")
    rows = parquet.read_table(path).slice(0, 60).to_pylist()
    return [(Image.open(io.BytesIO(row["image"]["bytes"])), row["caption"]) for row in rows]


def test_the_transcript_is_that_of_the_page(program: Any):
    transcript = (DOCS / "first-hour.txt").read_text(encoding="utf-8")
    shown = [line[2:] for line in transcript.splitlines() if line.startswith("$ ")]
    assert shown == program.commands(), "run docs/first_hour.py again"


def test_the_first_commands_are_those_of_people_without_a_model(program: Any):
    assert program.commands()[0] == "spectok info vqvae/cifar10"
    assert program.commands()[-1] == "python draw.py"


def test_it_goes_on_behind_what_the_transcript_has(program: Any):
    first, second, *_ = program.commands()
    assert program.finished("") == 0
    assert program.finished(f"$ {first}\nclass  VQVAE\n\n$ {second}\n") == 2
    with pytest.raises(SystemExit, match="the page has other commands than the transcript"):
        program.finished(f"$ {second}\n")


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [drawn_shapes, pictograms])
def test_its_commands_run(program: Any, tmp_path: Path, pictures: Any):
    folder, work = write_pictures(tmp_path / "pictures", pictures()), tmp_path / "work"
    work.mkdir()
    told = list(program.transcript(folder, work, quick=True))
    assert len(told) == len(program.commands())
    assert told[-1].endswith("\n4 (32, 32)\n\n")
    for name in ("before.png", "after.png", "hearts.png", "heart.png"):
        with Image.open(work / name) as image:
            assert image.size >= (32, 32)


@pytest.mark.slow
def test_a_command_that_fails_ends_it(program: Any, tmp_path: Path):
    import subprocess

    (tmp_path / "empty").mkdir()
    (tmp_path / "work").mkdir()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        list(program.transcript(tmp_path / "empty", tmp_path / "work", quick=True))
    assert "error: " in failed.value.output
