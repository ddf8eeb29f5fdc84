"""Reports the findings of every snapshot: a message for each new one, a file, an alert, and a summary at the end."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from fg_lightning.atomic_files import replace_file
from fg_lightning.history import Explanation, History
from fg_lightning.loggers import Log
from fg_lightning.recording.explainer import Explainer
from fg_lightning.recording.findings import COLUMNS, Finding, Observations, Result, find
from fg_lightning.recording.messages import Messages
from fg_lightning.recording.methods import FULLGRAD, Method
from fg_lightning.recording.sanity_checks import SanityCheck, check_sanity, explain_with

FINDINGS = "findings.csv"
"""File in the folder of a run. Every snapshot overwrites it with its own findings."""


class FindingsLog:
    """The findings of one run. An error in it becomes a warning.

    During training, a finding about maps counts only if two consecutive snapshots have it: maps change a lot in the first epochs.

    Args:
        messages: informs the user.
        logs: the run's loggers. Default: none.
        alert: whether to send each finding once as an alert, to the loggers that support it. Default: False.

    Attributes:
        findings: the findings of the last snapshot.
        is_outdated: whether a later snapshot failed.
    """

    def __init__(self, messages: Messages, logs: Sequence[Log] = (), *, alert: bool = False) -> None:
        self._messages = messages
        self._logs = [log for log in logs if alert and log.sends_alerts]
        self._known: set[tuple[str, str]] = set()  # that were reported
        self._before: set[tuple[str, str]] = set()  # of the snapshot before
        self._observations: Observations | None = None
        self._result: Result | None = None
        self._is_told = True
        self._is_final = False
        self.findings: list[Finding] = []
        self.is_outdated = False
        if alert and not self._logs:
            messages.inform("alert=True has no effect: there is no logger of Weights & Biases; add a WandbLogger")

    def resume(self, folder: Path | None) -> None:
        """Reads which findings an earlier part of the run has reported, so that they are not reported again."""
        with self._messages.errors_as_warnings():
            path = folder and folder / FINDINGS
            if path and path.is_file():
                rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8", errors="replace")))
                self._known |= {(row.get("finding") or "", row.get("method") or "") for row in rows}

    def inspect(self, history: History, explanation: Explanation, labels: Tensor | None = None) -> None:
        """Checks the last snapshot of the history.

        Args:
            history: of the run.
            explanation: of the snapshot.
            labels: the original labels of the images. Default: None, for unknown.
        """
        with self._messages.errors_as_warnings():
            self.update(observe(history, explanation, labels), history.folder)

    def check_sanity(
        self, history: History, explainer: Explainer, methods: Mapping[str, Method], model: nn.Module
    ) -> Mapping[str, SanityCheck]:
        """Checks the last snapshot again, now with sanity checks and all rules. Repeated calls check a snapshot once.

        Args:
            history: of the run.
            explainer: the explainer of the snapshot.
            methods: the methods other than FullGrad, by key.
            model: the network as it was at the snapshot.

        Returns:
            The checks by method; empty before the first snapshot and after an error.
        """
        if self._observations is not None and not self._is_final:
            with self._messages.errors_as_warnings():
                explanation, explain = self._observations.explanation, explain_with(explainer, methods)
                checks = check_sanity(model, self._observations.maps, explain, explanation.answers.runner_up)
                self.update(replace(self._observations, checks=checks), history.folder, is_last=True)
        return {} if self._observations is None else self._observations.checks

    def update(self, observations: Observations, folder: Path | None, *, is_last: bool = False) -> None:
        """Applies the rules to a snapshot, reports new findings, and writes the file."""
        result = find(observations, is_last=is_last)
        keys = {finding.key for finding in result.findings}
        if not is_last:
            counted = tuple(finding for finding in result.findings if not finding.method or finding.key in self._before)
            result, self._before = replace(result, findings=counted), keys
        self._observations, self._result, self._is_told, self._is_final = observations, result, False, is_last
        self.findings = list(result.findings)
        self._tell([finding for finding in self.findings if finding.key not in self._known], has_summary=is_last)
        if folder is not None and folder.is_dir():
            write_findings(folder / FINDINGS, self.findings)

    def conclude(self) -> None:
        """Prints a summary of the last snapshot. Repeated calls print it once."""
        if self._result is not None and not self._is_told:
            self._is_told = True
            left = {} if self._is_final else LEFT_TO_THE_END
            result = replace(self._result, unchecked={**self._result.unchecked, **left})
            self._messages.inform(summarize(result, is_outdated=self.is_outdated))

    def _tell(self, findings: Sequence[Finding], *, has_summary: bool) -> None:
        self._known |= {finding.key for finding in findings}
        for finding in findings:
            if not has_summary:
                self._messages.inform(f"finding: {describe(finding)}. {finding.advice}")
            for log in self._logs:
                with self._messages.errors_as_warnings():
                    log.alert(f"{finding.name.replace('_', ' ')}{_of_method(finding)}", f"{finding.message}. {finding.advice}.")


LEFT_TO_THE_END = {
    "the untrained network, random weights, the next class": "only the last snapshot of a training is compared with them; "
    "with a recorder, snapshot(..., is_last=True) or conclude(network)"
}
"""What a summary says of the checks that are made when training ends, if they were not made."""


def observe(history: History, explanation: Explanation, labels: Tensor | None = None) -> Observations:
    """The data of the last snapshot of a history to which the rules apply."""
    untrained = {}
    if history.snapshots[0].is_untrained:
        firsts = {FULLGRAD: history.first_maps, **{key: method.first_maps for key, method in history.methods.items()}}
        untrained = {key: maps for key, maps in firsts.items() if maps is not None and not maps.isnan().any()}
    last = history.snapshots[-1]
    drift = last.numbers.get("fullgrad/drift")
    correct = [is_right for is_right in explanation.correct(labels) if is_right is not None]
    accuracy = sum(correct) / len(correct) if correct else None
    return Observations(len(history.snapshots) - 1, explanation, not last.is_untrained, untrained, drift, accuracy=accuracy)


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Writes the table of findings, completely or not at all. Without findings it has only a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(finding.cells() for finding in findings)
    content = text.getvalue().encode()
    if path.is_file() and path.read_bytes() == content:
        return  # most snapshots have no new finding, and a file that is replaced waits for the disk
    with replace_file(path) as file:
        file.write(content)


def describe(finding: Finding) -> str:
    """The message of a finding, with its value and threshold."""
    return f"{finding.message}{_of_method(finding)} [{finding.name}: {finding.value:.3g}, threshold {finding.threshold:.3g}]"


def summarize(result: Result, *, is_outdated: bool = False) -> str:
    """A few lines for the terminal: the findings, and which checks were made."""
    lines = [f"{len(result.findings)} finding{'' if len(result.findings) == 1 else 's'}" if result.findings else "no findings"]
    lines[0] += " in the last snapshot that could be taken; later ones failed" if is_outdated else ""
    for finding in result.findings:
        lines += [f"  - {describe(finding)}", f"    {finding.advice}."]
    lines.append(f"  checked: {', '.join(result.checked) or 'nothing'}")
    if result.unchecked:
        lines.append(f"  not checked: {'; '.join(f'{about} ({why})' for about, why in result.unchecked.items())}")
    return "\n".join(lines)


def _of_method(finding: Finding) -> str:
    return f" ({finding.method})" if finding.method else ""
