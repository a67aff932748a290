"""What a library says: nothing to a caller who wants silence, and without the command line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spectok import messages

TRAIN = """
import sys
from pathlib import Path

from spectok import messages
from spectok.training import load_tokenizer_recipe, train_tokenizer

SETTINGS = ["train.steps=2", "train.log_every=1", "data.limit=50"]
recipe = load_tokenizer_recipe("smoke/vqvae", SETTINGS)
with messages.silenced():
    train_tokenizer(recipe, Path("run"))
cli = [name for name in sys.modules if name.split(".")[0] == "typer" or "cli" in name.split(".")]
ours = [name for name in cli if name.startswith(("typer", "spectok"))]
Path("loaded.txt").write_text(" ".join(ours))
"""


def test_training_from_python_can_be_silent_and_loads_no_command_line(tmp_path):
    command = [sys.executable, "-c", TRAIN]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert (tmp_path / "loaded.txt").read_text() == ""


def test_silence_ends_where_it_was_asked_to(capsys):
    with messages.silenced():
        with messages.silenced():
            messages.say("inside")
        messages.note("still inside")
    messages.say("outside")
    messages.note("outside too")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("outside\n", "note: outside too\n")


def test_low_codebook_usage_is_a_message_too(capsys):
    from spectok.training.progress import Reporter

    record = {"step": 2, "seconds": 1.0, "images_per_second": 9.0, "codebook_usage": 0.01}
    for silent in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(messages, "_silent", silent)
            with Reporter(steps=4, step=0, enabled=True) as reporter:
                reporter.show(record)
                reporter.show(record)
        printed = capsys.readouterr()
        assert ("warning: only 1.0 % of the codebook" in printed.out) is not silent
        assert bool(printed.out) is not silent
        assert printed.err == ""
