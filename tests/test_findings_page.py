"""docs/findings.md: its sections are those of the rules, and its table says what docs/findings.csv does."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from fg_lightning.recording.findings import RULES

DOCS = Path(__file__).parents[1] / "docs"

Row = dict[str, str]


def lives_on_mark(row: Row) -> bool:
    return row["kind"] == "shortcut" and float(row["accuracy"]) - float(row["shuffled_accuracy"]) >= 1 / 3


GROUPS: dict[str, Callable[[Row], bool]] = {
    "healthy": lambda row: row["kind"] in ("healthy", "random_marks"),
    "corner": lives_on_mark,
    "frame": lambda row: row["kind"] == "frame",
    "barely trained": lambda row: row["kind"] == "barely_trained",
    "diverged": lambda row: row["kind"] == "diverged",
}


def rows() -> list[Row]:
    with (DOCS / "findings.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["method"] == "fullgrad" and row["num_images"] == "8"]


def fires(row: Row, name: str, threshold: float) -> bool:
    """At the end, or in two snapshots in a row; a corner is not told as border, too."""
    corner = next(rule.threshold for rule in RULES if rule.name == "corner")
    for suffix in ("", "_twice"):
        is_in_corner = bool(row[f"corner{suffix}"]) and float(row[f"corner{suffix}"]) >= corner
        if row.get(name + suffix) and float(row[name + suffix]) >= threshold and not (name == "border" and is_in_corner):
            return True
    return False


def expected_row(name: str, threshold: float) -> str:
    cells = []
    for is_in_group in GROUPS.values():
        measured = [row for row in rows() if is_in_group(row) and row[name]]
        cells.append(f"{sum(fires(row, name, threshold) for row in measured)} of {len(measured)}" if measured else "not measured")
    return f"| [{name.replace('_', ' ')}](#{name.replace('_', '-')}) | {threshold:g} | {' | '.join(cells)} |"


@pytest.mark.parametrize("name", [rule.name for rule in RULES])
def test_the_table_says_what_was_measured(name: str) -> None:
    (threshold,) = (rule.threshold for rule in RULES if rule.name == name)
    page = (DOCS / "findings.md").read_text(encoding="utf-8")
    assert expected_row(name, threshold) in page
    assert f"{{#{name.replace('_', '-')}}}" in page
    section = page.split(f"{{#{name.replace('_', '-')}}}")[1].split("###")[0]
    assert f"*Threshold:* {threshold:g}" in " ".join(section.split())


def test_the_demos_shortcut_is_found_in_each_of_ten_seeds_and_in_no_healthy_run() -> None:
    threshold = next(rule.threshold for rule in RULES if rule.name == "corner")
    for kind, expected in (("shortcut", True), ("healthy", False)):
        of_demo = [row for row in rows() if row["network"] == "demo" and row["kind"] == kind]
        assert [fires(row, "corner", threshold) for row in of_demo] == [expected] * 10


def test_no_finding_fires_on_a_twentieth_of_the_healthy_runs() -> None:
    healthy = [row for row in rows() if GROUPS["healthy"](row)]
    for rule in RULES:
        assert sum(fires(row, rule.name, rule.threshold) for row in healthy) <= 0.05 * len(healthy), rule.name
