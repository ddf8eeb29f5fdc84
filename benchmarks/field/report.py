"""Writes the results of a field run as lines and as a table."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from comparison import Comparison

BEGIN, END = "<!-- field: begin -->", "<!-- field: end -->"
USUAL = (
    "FullGradMonitor: CSVLogger takes no images",
    "snapshots, see run",
    "FullGradMonitor: no findings",
    "FullGradMonitor: finding:",
)
"""Messages that the table leaves out: paths of pictures, and findings during training, which the summary repeats."""
HEAD = ("project", "version", "training", "same weights", "moved", "explained", "snapshots", "error", "seconds", "said")


def as_row(comparison: Comparison) -> str:
    """A comparison as lines for a terminal."""
    if comparison.error is not None:
        return f"{comparison.name}: not run: {comparison.error}"
    seconds = "{:.1f} s, {:.1f} s with it".format(*comparison.seconds)
    facts = f"{_same(comparison)}; {comparison.num_snapshots} snapshots; {comparison.explained}; {seconds}"
    return "\n    ".join([f"{comparison.name} {comparison.version}: {facts}", *comparison.said])


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """The table in Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    for comparison in comparisons:
        project, _, training = comparison.name.partition(":")
        if comparison.error is not None:
            cells = (project, comparison.version, training, "not run", "", _first(comparison.error), "", "", "", "")
        else:
            cells = (
                *(project, comparison.version, training, _same(comparison), f"{comparison.num_moved}; {comparison.num_trainable}"),
                *(comparison.explained, str(comparison.num_snapshots), _rounded(comparison.completeness)),
                f"{comparison.seconds[0]:.1f} → {comparison.seconds[1]:.1f}",
                "<br>".join(_without_checks(text) for text in comparison.said if not any(usual in text for usual in USUAL)),
            )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |")
    return "\n".join(lines)


def write_page(page: Path, comparisons: Sequence[Comparison]) -> None:
    """Puts the table and the versions of the libraries between the markers of a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "lightning", "fg-lightning"))
    made = f"Python {platform.python_version()}, {libraries}; one thread of a CPU."
    page.write_text(f"{before}{BEGIN}\n{made}\n\n{as_markdown(comparisons)}\n{END}{after}")


def _same(comparison: Comparison) -> str:
    if not comparison.differences:
        return "yes"
    return "**no**: " + "; ".join(f"{key} {what}" for key, what in comparison.differences.items())


def _without_checks(text: str) -> str:
    """A summary of findings as lines of a cell, without the list of checks."""
    return "<br>".join(text.partition("\n  checked:")[0].splitlines())


def _first(text: str) -> str:
    return text.strip().splitlines()[-1][:200]


def _rounded(value: str) -> str:
    return f"{float(value):.0e}" if value else ""
