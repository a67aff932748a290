"""What may be wrong with a tokenizer, in words, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Severity = Literal["note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From the worst on."""


OR = "; or "
"""Between the alternatives of a remedy."""
SETTING = re.compile(r"\btokenizer\.[\w.]*\w")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        check: Which check found it, such as ``"dead codes"``.
        severity: ``"error"``: the model is damaged or wastes most of what it spends;
            ``"warning"``: it would do better with another recipe; ``"note"``: worth knowing.
        place: Where: a level of the tokens, or a tensor.
        message: What was found, in words.
        remedy: What to do about it, naming settings of the recipe; alternatives are separated by
            :data:`OR`, and at least one names no setting of a tokenizer.
        numbers: The numbers behind it.
    """

    check: str
    severity: Severity
    place: str
    message: str
    remedy: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass
class Diagnosis:
    """All that was found, and all that could not be looked at.

    Args:
        findings: What is wrong.
        checked: Names of the checks that were made.
        not_checked: Check -> why it was not made.
    """

    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    not_checked: dict[str, str] = field(default_factory=dict)

    @property
    def is_damaged(self) -> bool:
        """Whether a finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)

    def ran(self, check: str, findings: list[Finding]) -> None:
        """Add what a check found."""
        self.checked.append(check)
        self.findings += findings

    def leave_out(self, settings: Set[str]) -> None:
        """Leave out of all remedies what names settings of the tokenizer other than these."""
        for number, finding in enumerate(self.findings):
            parts = finding.remedy.split(OR)
            possible = [part for part in parts if set(SETTING.findall(part)) <= settings]
            self.findings[number] = replace(finding, remedy=OR.join(possible))

    def sorted(self) -> list[Finding]:
        """Return the findings, the worst first."""
        return sorted(self.findings, key=lambda finding: SEVERITIES.index(finding.severity))

    def to_dict(self) -> dict[str, Any]:
        """Return everything in plain JSON types."""
        return {
            "findings": [vars(finding) for finding in self.sorted()],
            "checked": self.checked,
            "not_checked": self.not_checked,
        }


def graded(share: float, warning: float, error: float) -> Severity | None:
    """Return how bad a share is; None if it is below both bounds."""
    if share >= error:
        return "error"
    return "warning" if share >= warning else None
