"""Reads the findings of a run for its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fg_lightning.history.growing_files import GrowingTable, parse_number
from fg_lightning.report.manual import manual_link

FINDINGS = "findings.csv"


@dataclass(frozen=True)
class FindingRow:
    """A measured fact about a run.

    Attributes:
        name: name of the finding.
        method: method whose maps it concerns. Empty if it concerns none.
        value: the measured value and the threshold, in words. Empty if the message contains them.
        message: the finding, in a sentence.
        advice: what to do.
        page: section of the manual that explains it.
        link: address of that section. Empty if the manual's address is unknown.
    """

    name: str
    method: str
    value: str
    message: str
    advice: str
    page: str
    link: str

    @classmethod
    def from_row(cls, row: dict[str, str]) -> FindingRow:
        """Raises KeyError or ValueError if the row is damaged."""
        value, threshold = parse_number(row["value"]), parse_number(row["threshold"])
        words = "" if value is None else f"{value:.3g}" + ("" if threshold is None else f", threshold {threshold:.3g}")
        page = row["page"].strip()
        if not row["message"].strip():
            raise ValueError("a finding needs a message")
        link = manual_link(page) if page else ""
        advice = row["advice"].strip()
        return cls(row["finding"], row["method"], words, row["message"], advice and f"{advice.rstrip('.')}.", page, link)


def read_findings(folder: Path, notes: list[str]) -> list[FindingRow] | None:
    """The findings of a run. None if they are unknown: their file is written when training ends, or all its rows are damaged.

    Args:
        folder: folder of the run.
        notes: a sentence on everything that is damaged is appended here.
    """
    path = folder / FINDINGS
    if not path.is_file():
        return None
    damage: list[str] = []
    findings = GrowingTable(path, ()).read(FindingRow.from_row, damage)
    notes += damage
    return None if damage and not findings else findings
