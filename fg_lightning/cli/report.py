"""fg-lightning report."""

from __future__ import annotations

from pathlib import Path
from typing import Union


def report(run_dir: Path, output: Union[Path, None] = None) -> None:
    """Write what a monitored run or an experiment (roar, planted) found as one HTML file that works offline.

    Args:
        run_dir: The folder of the run (or any folder above its only fullgrad/), or of the experiment.
        output: The file. Default: report.html in the folder.
    """
    from rich.console import Console
    from rich.progress import Progress

    from fg_lightning.report import write_report

    with Progress(console=Console(stderr=True), transient=True) as progress:
        path = write_report(run_dir, output, track=lambda what, items: progress.track(items, description=what))
    print(f"report  {path} ({path.stat().st_size / 1e6:.1f} MB)")
