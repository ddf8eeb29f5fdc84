"""benchmarks/cost.py, run as a user would."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

OPERATIONS = {"resnet18": 1.7, "mobilenet_v2": 1.7, "vit_b_32": 1.9, "efficientnet_b0": 1.85}
"""At most so many operations of a map for each one of an input gradient, on the path that a GPU takes."""


@pytest.mark.slow
def test_a_map_takes_few_operations(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/cost.py", "--only", "operations", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "cost.csv").read_text().splitlines()))
    ratios = {(row["network"], row["method"]): float(row["median"]) for row in rows}
    assert len(ratios) == 2 * len(OPERATIONS)  # of FullGrad, and graphed
    assert all(1 < ratio <= OPERATIONS[network] for (network, _), ratio in ratios.items()), ratios


@pytest.mark.slow
def test_the_cost_benchmark_writes_its_table_and_plot(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/cost.py", "--networks", "resnet18", "--batch", "1", "--repetitions", "2"]
    options = ["--only", "networks", "samples", "--output", str(tmp_path)]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "300"})
    assert done.returncode == 0, done.stderr
    assert "fails on" not in done.stderr
    rows = list(csv.DictReader((tmp_path / "cost.csv").read_text().splitlines()))
    assert [row["measurement"] for row in rows] == ["networks", *["samples"] * 4]
    assert all(0 < float(row["minimum"]) <= float(row["median"]) <= float(row["maximum"]) for row in rows)
    assert float(rows[0]["memory"]) > 0
    assert (tmp_path / "images" / "cost.png").stat().st_size > 0
    assert "| resnet18 |" in (tmp_path / "cost.md").read_text()
