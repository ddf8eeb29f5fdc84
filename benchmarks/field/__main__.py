"""Trains public code with and without FG_LIGHTNING=1, and compares bit by bit: .field-env/bin/python benchmarks/field

`make field` sets up the environment. Every training runs in two processes, seeded, on made data. The exit status is 1 if anything
that belongs to a training differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from comparison import Comparison
from report import as_markdown, as_row, write_page
from training import trainings

HERE = Path(__file__).parent
LIMIT = 900
"""Seconds that one training may take."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="field", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="a project, or a project and a training: timm, timm:coat")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Markdown page whose table is replaced, such as docs/field.md")
    parser.add_argument("--folder", type=Path, default=Path("field_runs"), help="where the trainings are kept. Default: field_runs")
    options = parser.parse_args()
    names = [name for name in trainings() if options.only in (None, name, name.split(":")[0])]
    if not names:
        parser.error(f"there is no {options.only}, only {', '.join(trainings())}")
    comparisons = []
    for name in names:
        comparisons.append(compare(name, options.folder / name.replace(":", "_")))
        print(as_row(comparisons[-1]), flush=True)
    print("\n" + as_markdown(comparisons))
    if options.write is not None:
        write_page(options.write, comparisons)
    sys.exit(any(comparison.is_harmed for comparison in comparisons))


def compare(name: str, folder: Path) -> Comparison:
    """Trains without the monitor and with it; once more without it if they differ, since a training may not be repeatable."""
    shutil.rmtree(folder, ignore_errors=True)
    without, watched = train(name, folder / "without", ""), train(name, folder / "with", "1")
    comparison = Comparison.of(name, without, watched, folder / "with")
    if comparison.is_harmed and "error" not in without:
        again = train(name, folder / "again", "")
        comparison = comparison.judged_by(again, without)
    return comparison


def train(name: str, folder: Path, attach: str) -> dict[str, Any]:
    """What a training left behind, from a process of its own; `error` holds the reason if it failed."""
    folder.mkdir(parents=True)
    environment = {**os.environ, "FG_LIGHTNING": attach, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    command = [sys.executable, str((HERE / "training.py").resolve()), name]
    with (folder / "output.txt").open("w") as output:
        try:
            subprocess.run(
                command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            return {"error": f"took longer than {LIMIT} s"}
    result = folder / "result.json"
    if not result.exists():
        return {"error": "\n".join((folder / "output.txt").read_text().strip().splitlines()[-3:]) or "died without a word"}
    return dict(json.loads(result.read_text()))


if __name__ == "__main__":
    main()
