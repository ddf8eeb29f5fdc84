"""Tells the user what was found: a line when a finding first fires, a file, an alert, and a summary at the end."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from fg_lightning.atomic_files import replace_file
from fg_lightning.recording.findings import COLUMNS, Finding, Observations, Result, find
from fg_lightning.recording.messages import Messages

FINDINGS = "findings.csv"
"""In the folder of a run. It is written anew at every snapshot, and holds what that snapshot finds."""

Alert = Callable[[str, str], None]
"""(title, text) -> nothing. It reaches the user elsewhere."""


class FindingsLog:
    """The findings of one run.

    Args:
        messages: informs the user.
        alert: is called once for each finding; None not to.

    Attributes:
        findings: of the last snapshot.
    """

    def __init__(self, messages: Messages, alert: Alert | None = None) -> None:
        self._messages = messages
        self._alert = alert
        self._known: set[tuple[str, str]] = set()
        self._result: Result | None = None
        self._is_told = True
        self.findings: list[Finding] = []

    def resume(self, folder: Path | None) -> None:
        """Remembers what an earlier part of the run has told."""
        with self._messages.errors_as_warnings():
            path = folder and folder / FINDINGS
            if path and path.is_file():
                rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8", errors="replace")))
                self._known |= {(row.get("finding") or "", row.get("method") or "") for row in rows}

    def update(self, observations: Observations, folder: Path | None, *, is_last: bool = False) -> None:
        """Finds what a snapshot shows, and tells what is new."""
        result = find(observations, is_last=is_last)
        self._result, self._is_told, self.findings = result, False, list(result.findings)
        new = [finding for finding in result.findings if finding.key not in self._known]
        self._known |= {finding.key for finding in new}
        if not is_last:
            for finding in new:
                self._messages.inform(f"finding: {describe(finding)}. {finding.advice}")
        for finding in new if self._alert is not None else ():
            with self._messages.errors_as_warnings():
                self._alert(f"{finding.name.replace('_', ' ')}{_of_method(finding)}", f"{finding.message}. {finding.advice}")
        if folder is not None:
            with self._messages.errors_as_warnings():
                write_findings(folder / FINDINGS, self.findings)

    def conclude(self) -> None:
        """Sums up the last snapshot; repeated calls do it once."""
        if self._result is not None and not self._is_told:
            self._is_told = True
            self._messages.inform(summarize(self._result))


def write_findings(path: Path, findings: list[Finding]) -> None:
    """Writes the table of findings, whole or not at all. Without findings it has a header alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(finding.cells() for finding in findings)
    with replace_file(path) as file:
        file.write(text.getvalue().encode())


def describe(finding: Finding) -> str:
    """What was measured, with the number and the threshold."""
    return f"{finding.message}{_of_method(finding)} [{finding.name}: {finding.value:.3g}, threshold {finding.threshold:.3g}]"


def summarize(result: Result) -> str:
    """A few lines for the terminal: findings, and what was checked."""
    lines = [f"{len(result.findings)} finding{'' if len(result.findings) == 1 else 's'}" if result.findings else "no findings"]
    for finding in result.findings:
        lines += [f"  - {describe(finding)}", f"    {finding.advice}"]
    lines.append(f"  checked: {', '.join(result.checked) or 'nothing'}")
    if result.unchecked:
        lines.append(f"  not checked: {'; '.join(f'{about} ({why})' for about, why in result.unchecked.items())}")
    return "\n".join(lines)


def _of_method(finding: Finding) -> str:
    return f" ({finding.method})" if finding.method else ""
