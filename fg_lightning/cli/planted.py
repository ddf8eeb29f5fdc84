"""fg-lightning planted."""

from __future__ import annotations

import math
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

    Writes results.csv, summary.csv and a figure. If it is stopped, run the same command again to continue. Default:
    5,000 real MNIST digits and the demo's network.

    Args:
        output: Folder of all results.
        methods: Names of methods, separated by commas, or all.
        data: Class path of your LightningDataModule. Its arguments: --data.NAME.
        model: Class path of your LightningModule, which takes images, gives logits and logs its test accuracy. Its arguments:
            --model.NAME.
        options: The settings of the experiment.

    Raises:
        CannotRun: if a setting is invalid, the folder cannot be used, or a method failed.
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
        print("fg-lightning: stopped; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    if results.scores():
        console.print(_score_table(results))
    print(results.verdict)
    for name in ("results.csv", "summary.csv", *(("planted.png",) if results.scores() else ())):
        print(f"{name:12} {experiment.output / name}")
    print(f"{'report':12} fg-lightning report {shlex.quote(str(experiment.output))}", flush=True)
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
        title="pointing game and relevance mass on the mark, mean ± 95 %",
        title_justify="left",
        caption=f"{count} network{'s' * (count > 1)}; the mark's share of the pixels is {results.area:.4f}"
        + "; intervals are rough" * (count < 5),
        caption_justify="left",
    )
    table.add_column("method", no_wrap=True)
    for heading in ("pointing game", "random marks", "relevance mass", "random marks"):
        table.add_column(heading, justify="right", no_wrap=not heading.startswith("random"))
    masses = {score.method: score for score in results.scores("relevance_mass")}
    for score in results.scores():
        mass = masses[score.method]
        row = [number for s in (score, mass) for number in (_spread(s.planted, s.planted_interval), f"{s.control:.3f}")]
        table.add_row(score.method, *row)
    return table


def _spread(mean: float, half: float) -> str:
    return f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}"
