"""The notebooks run, offline, and are kept without what they printed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MOST_SECONDS = 180  # on two quiet cores; its page promises it

nbformat = pytest.importorskip("nbformat", reason="the extra docs is not installed")

pytestmark = pytest.mark.filterwarnings("default")  # of the libraries that run notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_valid_and_kept_without_output(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    for cell in cells:
        compile(cell.source, f"{path.name}:{cell.id}", "exec")


@pytest.mark.slow
def test_the_notebook_of_tokens_shows_what_it_says(monkeypatch: pytest.MonkeyPatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(ROOT / "examples" / "tokens.ipynb", as_version=4)
    checks = "\n".join(
        [
            "assert reach['vqvae'] < reach['qgvae'] / 4, reach",
            "assert coarse_to_fine == sorted(coarse_to_fine), coarse_to_fine",
            "assert photo.shape == whole.shape == tiles.shape",
        ]
    )
    notebook.cells.append(nbformat.v4.new_code_cell(checks))
    began = time.process_time()
    nbclient.NotebookClient(notebook, timeout=600).execute()
    assert time.process_time() - began < MOST_SECONDS
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 4
