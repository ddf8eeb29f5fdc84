"""fg-lightning planted."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union

from lightning.pytorch import LightningDataModule, LightningModule
from rich.console import Console
from rich.table import Table

from fg_lightning.errors import CannotRun
from fg_lightning.planted import PlantedExperiment, PlantedResults


def planted(
    output: Path = Path("fg_planted"),
    methods: Union[str, list[str]] = "all",
    data: Union[Callable[[], LightningDataModule], None] = None,
    model: Union[Callable[[], LightningModule], None] = None,
    **options: Any,
) -> None:
    """Train networks on a mark that gives the class away, and measure how much of each method's maps lies on the mark.

    Writes results.csv, summary.csv and a figure. If it is stopped at any moment, the same command goes on. By default it uses
    5,000 real MNIST digits and the demo's network.

    Args:
        output: The folder that everything is kept in.
        methods: Names with commas between them, or all.
        data: Class path of your LightningDataModule. Its arguments: --data.NAME.
        model: Class path of your LightningModule, which takes images, gives logits and logs its test accuracy. Its arguments:
            --model.NAME.
        options: The settings of the experiment.

    Raises:
        CannotRun: if a setting makes no sense, the folder cannot be used, or a method failed.
    """
    from fg_lightning.demo import DigitClassifier, DigitsDataModule

    console = Console()
    try:
        try:
            experiment = PlantedExperiment(
                output, data or DigitsDataModule, model or DigitClassifier, methods=methods, console=console, **options
            )
        except (TypeError, ValueError) as error:  # of the settings; the user's own code has not run yet
            raise CannotRun(str(error)) from error
        results = experiment.run()
    except KeyboardInterrupt:
        print("fg-lightning: stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
    if results.scores():
        console.print(_score_table(results))
    print(results.verdict)
    for name in ("results.csv", "summary.csv", *(("planted.png",) if results.scores() else ())):
        print(f"{name:12} {experiment.output / name}")
    print(f"{'a page':12} fg-lightning report {shlex.quote(str(experiment.output))}", flush=True)
    if results.failures:
        failed = sorted({failure.method for failure in results.failures})
        raise CannotRun(
            f"{', '.join(failed)} failed, see {experiment.output / 'results.csv'}; the same command tries again. The first: "
            f"{results.failures[0].reason}"
        )


def _score_table(results: PlantedResults) -> Table:
    """The methods for a terminal, the best first."""
    count = len(results.seeds)
    table = Table(
        title="share of images whose most salient pixel lies on the mark, and share of the map that does",
        title_justify="left",
        caption=f"{count} network{'s' * (count > 1)}; the mark's share of the pixels is {results.area:.4f}"
        + ": intervals say little" * (count < 5),
        caption_justify="left",
    )
    headings = ("pointing game", "± 95 %", "random marks", "relevance mass", "± 95 %", "random marks")
    table.add_column("method")
    for heading in headings:
        table.add_column(heading, justify="right")
    masses = {score.method: score for score in results.scores("relevance_mass")}
    for score in results.scores():
        both = (score, masses[score.method])
        numbers = ["" if value != value else f"{value:.3f}" for s in both for value in (s.planted, s.planted_interval, s.control)]
        table.add_row(score.method, *numbers)
    return table
