"""Trains public code with and without FG_LIGHTNING=1, and compares bit by bit: .field-env/bin/python benchmarks/field

`make field` sets up the environment. The trainings of a project run in one process without the monitor and in another process with
it, from the same seed, on synthetic data. The exit status is 1 if any state of a training differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from comparison import Comparison
from report import as_markdown, as_row, write_page
from training import trainings

HERE = Path(__file__).parent
LIMIT = 1800
"""Time limit for the trainings of one project, in seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="field", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", nargs="*", help="projects, or single trainings: timm torchgeo:byol. Default: all")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page whose table is replaced, such as docs/field.md")
    parser.add_argument("--folder", type=Path, default=Path("field_runs"), help="folder of the trainings. Default: field_runs")
    options = parser.parse_args()
    if options.write is not None and not options.write.is_file():
        parser.error(f"there is no page {options.write}; --write replaces the table of a page such as docs/field.md")
    chosen = {project: _chosen(project, names, options.only) for project, names in trainings().items()}
    if not any(chosen.values()):
        parser.error(f"there is no project or training {', '.join(options.only)}; projects are {', '.join(trainings())}")
    comparisons = []
    for project, names in chosen.items():
        if names:
            comparisons += compare(project, names, options.folder / project)
    print("\n" + as_markdown(comparisons))
    if options.write is not None:
        write_page(options.write, comparisons)
    sys.exit(any(comparison.is_harmed for comparison in comparisons))


def compare(project: str, names: list[str], folder: Path) -> list[Comparison]:
    """Trains without and with the monitor. If they differ, trains again without it, since a training may not be reproducible."""
    shutil.rmtree(folder, ignore_errors=True)
    without, watched = train(project, names, folder / "without", ""), train(project, names, folder / "with", "1")
    results = [(f"{project}:{name}", without[name], watched[name], folder / "with" / name) for name in names]
    comparisons = [Comparison.of(*result) for result in results]
    if any(comparison.is_harmed for comparison in comparisons):
        again = train(project, names, folder / "again", "")
        comparisons = [c.judged_by(again[c.training], without[c.training]) if c.is_harmed else c for c in comparisons]
    for comparison in comparisons:
        print(as_row(comparison), flush=True)
    return comparisons


def train(project: str, names: list[str], folder: Path, attach: str) -> dict[str, dict[str, Any]]:
    """Runs the trainings of a project in one process, and returns their results. `error` is the reason if one failed."""
    folder.mkdir(parents=True)
    environment = {**os.environ, "FG_LIGHTNING": attach, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    command = [sys.executable, str((HERE / "training.py").resolve()), project, *names]
    with (folder / "output.txt").open("w") as output:
        streams = {"stdout": output, "stderr": subprocess.STDOUT}
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, cwd=folder, env=environment, **streams, timeout=LIMIT, check=False)
    last = (folder / "output.txt").read_text().strip().splitlines()[-1:]
    lost = {"error": f"the process ended without a result, or ran longer than {LIMIT} s: {' '.join(last)}"}
    files = {name: folder / name / "result.json" for name in names}
    return {name: dict(json.loads(file.read_text())) if file.exists() else lost for name, file in files.items()}


def _chosen(project: str, names: list[str], only: list[str] | None) -> list[str]:
    """The names of a project's trainings that the user chose."""
    if not only or project in only:
        return names
    return [name for name in names if f"{project}:{name}" in only]


if __name__ == "__main__":
    main()
