"""The findings of a run, as its report shows them."""

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
        name: of the finding.
        method: whose maps it is about; empty if it is about none.
        value: what was measured, in words; empty if the message says it.
        message: what was found.
        advice: what to do.
        page: the section of the manual that explains it.
        link: its address; empty if it is not known where the manual is.
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
            raise ValueError("a finding without a message")
        link = manual_link(page) if page else ""
        return cls(row["finding"], row["method"], words, row["message"], row["advice"], page, link)


def read_findings(folder: Path, notes: list[str]) -> list[FindingRow] | None:
    """The findings of a run; None if there is no file of them, which is written when training ends.

    Args:
        folder: of the run.
        notes: gets a sentence about everything that is damaged.
    """
    path = folder / FINDINGS
    return GrowingTable(path, ()).read(FindingRow.from_row, notes) if path.is_file() else None
