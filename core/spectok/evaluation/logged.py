"""What the log of a run tells about the model that it trained."""

from __future__ import annotations

from pathlib import Path

from spectok.evaluation.diagnosis import Diagnosis, Finding
from spectok.training.checks import DIFFERING, PROCESSES
from spectok.training.log import LOG, read_log

RANKS = "ranks"
REMEDY = (
    "edit codes only in after_step, with the functions of spectok.distributed, the same on every "
    "rank; then resume: the last checkpoint is of before"
)


def examine_log(found: Diagnosis, place: Path) -> None:
    """Add whether the processes of a run held the same codebooks, at each line of its log.

    Args:
        found: Where to add it.
        place: Folder of the run, or of the model in it.
    """
    log = next((folder / LOG for folder in (place, place.parent) if (folder / LOG).is_file()), None)
    if log is None:
        found.not_checked[RANKS] = "there is no log of a run beside the model"
        return
    records = read_log(log)
    told = [record for record in records if isinstance(record.get(PROCESSES), int)]
    if not told:
        found.not_checked[RANKS] = "the log tells of no more than one process"
        return
    found.ran(
        RANKS,
        [
            Finding(
                RANKS,
                "error",
                str(record[DIFFERING]),
                f"differed between {record[PROCESSES]} processes at step {record['step']:,}",
                REMEDY,
                {"step": record["step"], "processes": record[PROCESSES]},
            )
            for record in told
            if DIFFERING in record
        ],
    )
