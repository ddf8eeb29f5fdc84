"""fg-lightning report."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Union


def report(run_dirs: list[str], output: Union[Path, None] = None, title: Union[str, None] = None) -> None:
    """Write the report of a run or an experiment, or a comparison of several runs, as one HTML file that works offline.

    For example: fg-lightning report lightning_logs/version_0 lightning_logs/version_1

    Args:
        run_dirs: The folder of a monitored run (or any folder above it, if it holds no other run) or of an experiment (roar,
            planted). Several folders of runs are compared.
        output: The file to write. Default: report.html in the folder; for several runs, comparison.html in the current folder.
        title: The title of the page. Default: the name of the run.

    Raises:
        CannotRun: if there is nothing to report, the runs cannot be compared, or the file cannot be written.
    """
    from rich.console import Console
    from rich.progress import Progress

    from fg_lightning.report import write_comparison, write_report

    told: list[str] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:

        def track(what, items):  # type: ignore[no-untyped-def]
            return progress.track(items, description=what)

        if len(run_dirs) == 1:
            path = write_report(run_dirs[0], output, track, title=title)
        else:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                path = write_comparison(run_dirs, "comparison.html" if output is None else output, track, title=title)
            told = [str(warning.message) for warning in caught]
    for message in told:
        print(f"warning: {message}", file=sys.stderr)
    print(f"{'report' if len(run_dirs) == 1 else 'comparison'}  {path} ({path.stat().st_size / 1e6:.1f} MB)")
