"""What the programs of benchmarks share: refusals in one line."""

import argparse
import importlib
from pathlib import Path

import pytest

from spectok.errors import ConfigError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROGRAMS = sorted(
    path.name for path in BENCHMARKS.glob("*.py") if '"__main__"' in path.read_text("utf-8")
)


@pytest.fixture
def one_line(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("one_line")


@pytest.mark.parametrize("error", [ConfigError("a", "b"), OSError("a; b")])
def test_a_refusal_is_one_line(one_line, error):
    def main():
        raise error

    with pytest.raises(SystemExit, match=r"^error: a; b$"):
        one_line.run_program(main)


def test_an_error_of_our_own_keeps_its_traceback(one_line):
    with pytest.raises(ZeroDivisionError):
        one_line.run_program(lambda: 1 / 0)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_numbers_from_one_on(one_line, text):
    assert one_line.positive("12") == 12
    with pytest.raises(argparse.ArgumentTypeError):
        one_line.positive(text)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_refuses_in_one_line(name):
    assert (BENCHMARKS / name).read_text("utf-8").endswith("\n    run_program(main)\n")
