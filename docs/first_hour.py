"""Run the commands of ``first-hour.md`` on a folder of pictures, and write what they print.

    python docs/first_hour.py PICTURES [--work FOLDER] [--out docs/first-hour.txt] [--quick]

Runs every block that follows ``<!-- run -->``, in order, in an empty folder where ``my-pictures``
leads to PICTURES, and stops at the first command that fails. Repeated with the same ``--work`` and
``--out``, it goes on behind the commands that the transcript has. ``--quick`` trains for a few
steps only: for tests.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).with_name("first-hour.md")
QUICK = ["train.steps=2", "train.log_every=1", "train.batch_size=8", "train.warmup_steps=0"]
FINDINGS = 1
"""Exit status of the doctor who finds errors, as after a few steps there may well be."""

_RUN = re.compile(r"^<!-- run -->\n```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Return the commands of the page, in order."""
    blocks = _RUN.findall(PAGE.read_text(encoding="utf-8"))
    return [line for block in blocks for line in block.splitlines()]


def transcript(pictures: Path, work: Path, *, quick: bool = False, skip: int = 0) -> Iterator[str]:
    """Run the commands; yield each with what it printed.

    Args:
        pictures: A folder of pictures with captions.
        work: A folder where the commands are run; empty, unless some are skipped.
        quick: Train for a few steps only.
        skip: How many commands to leave out, because they were run in this folder before.

    Raises:
        CalledProcessError: If a command fails; its ``output`` is what it printed.
    """
    if not skip:
        (work / "my-pictures").symlink_to(pictures.absolute(), target_is_directory=True)
    for name, text in _FILE.findall(PAGE.read_text(encoding="utf-8")):
        (work / name).write_text(text, encoding="utf-8")
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": scripts, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    for command in commands()[skip:]:
        words = shlex.split(command)
        if quick and words[:2] == ["spectok", "train"]:
            words += QUICK
        done = subprocess.run(
            words,
            cwd=work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if not (quick and words[:2] == ["spectok", "doctor"] and done.returncode == FINDINGS):
            done.check_returncode()
        printed = done.stdout.replace(f"{work.resolve()}/", "")  # where it ran says nothing
        yield f"$ {command}\n{_without_trailing_space(printed)}\n"


def _without_trailing_space(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def finished(told: str) -> int:
    """Return how many of the page's first commands a transcript has.

    Raises:
        SystemExit: If it has others, so that the page has changed since.
    """
    shown = [line[2:] for line in told.splitlines() if line.startswith("$ ")]
    if shown != commands()[: len(shown)]:
        sys.exit("error: the page has other commands than the transcript; use another --work")
    return len(shown)


def main() -> None:
    """Run all, and write the transcript after each command, so that none is lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--work", type=Path, help="folder to run in and keep")
    parser.add_argument("--out", type=Path, default=PAGE.with_suffix(".txt"))
    parser.add_argument("--quick", action="store_true", help="train for a few steps only")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    goes_on = any(work.iterdir()) and given.out.exists()
    told = given.out.read_text(encoding="utf-8") + "\n" if goes_on else ""
    skip = finished(told)
    try:
        for part in transcript(given.pictures, work, quick=given.quick, skip=skip):
            told += part
            print(part, end="", flush=True)
            given.out.write_text(told.rstrip("\n") + "\n", encoding="utf-8")
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {shlex.join(error.cmd)} failed:\n{error.output}")


if __name__ == "__main__":
    main()
