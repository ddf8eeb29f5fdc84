"""fg-lightning roar."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Union

from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from lightning.pytorch import LightningDataModule, LightningModule
from rich.console import Console
from rich.table import Table

from fg_lightning.errors import CannotRun
from fg_lightning.roar import LocalEngine, RayEngine, ROARExperiment, ROARResults
from fg_lightning.roar.config import DEFAULT_METHODS, parse_fill

METHODS = ",".join(DEFAULT_METHODS)


def roar(
    output: Path = Path("fg_roar"),
    methods: Union[str, list[str]] = METHODS,
    fills: Union[float, str, list[Union[float, str, list[float]]], None] = None,
    checkpoint: Union[Path, list[Path], None] = None,
    data: Union[Callable[[], LightningDataModule], None] = None,
    model: Union[Callable[[], LightningModule], None] = None,
    engine: Literal["local", "ray"] = "local",
    address: Union[str, None] = None,
    num_cpus: PositiveFloat = 1.0,
    num_gpus: NonNegativeFloat = 0.0,
    retry_failed: bool = False,
    **options: Any,
) -> None:
    """Remove the pixels that each method ranks first from every image, train again, and compare accuracies.

    Writes results.csv, summary.csv (and .tex) and curves.png (and .pdf, .svg). If it is stopped, run the same command again to
    continue. Default: 5,000 real MNIST digits and the demo's network.

    Args:
        output: Folder of all results.
        methods: Names of methods, separated by commas, or all. Random is always added.
        fills: What replaces removed pixels: dataset_mean (of the training images), black, noisy_linear, image_mean, a number in the
            units of the images before their transform, or the import path of a function. Separate several fills by commas. A fill
            with a
            number for each channel is a list in a list: [[124,116,104]]. Default: dataset_mean; noisy_linear for mode road.
        checkpoint: Lightning checkpoint of the explained network, or a list with one for each network. Default: networks are
            trained on intact images.
        data: Class path of your LightningDataModule. Its arguments: --data.NAME.
        model: Class path of your LightningModule, which takes images and logs its test accuracy. Its arguments: --model.NAME.
        engine: local (one training after the other) or ray.
        address: Address of a running Ray cluster, or auto. Default: Ray is started on this machine.
        num_cpus: Number of CPUs of the Ray cluster for each training.
        num_gpus: Number of GPUs of the Ray cluster for each training; 0.25 puts four trainings on one GPU.
        retry_failed: Whether to run failed trainings again.
        options: The settings of the experiment.

    Raises:
        CannotRun: if a setting is invalid, the folder cannot be used, or trainings failed.
    """
    from fg_lightning.demo import DigitClassifier, DigitsDataModule

    console = Console()
    chosen = RayEngine(address, num_cpus, num_gpus) if engine == "ray" else LocalEngine()
    try:
        try:
            experiment = ROARExperiment(
                output,
                data or DigitsDataModule,
                model or DigitClassifier,
                methods=methods,
                fills=_import_fills(fills),
                checkpoint=checkpoint,
                engine=chosen,
                console=console,
                **options,
            )
        except (TypeError, ValueError) as error:  # of the settings; the user's own code has not run yet
            raise CannotRun(str(error)) from error
        results = experiment.run(retry_failed)
    except KeyboardInterrupt:
        print("fg-lightning: stopped; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    finally:
        chosen.close()
    if results.scores():
        console.print(_summary_table(results))
    for name in ("results.csv", "summary.csv", "summary.tex", "curves.png", "curves.pdf", "curves.svg"):
        print(f"{name:12} {experiment.output / name}")
    print(f"{'report':12} fg-lightning report {shlex.quote(str(experiment.output))}", flush=True)
    if results.failures:
        raise CannotRun(
            f"{len(results.failures)} of {len(results.results)} trainings failed, see {experiment.output / 'results.csv'}; to try "
            f"them again: --retry_failed true. The first: {results.failures[0].reason}"
        )


def _import_fills(fills: Any) -> Any:
    """Fills with the functions that import paths among them name.

    Raises:
        CannotRun: if there is no function.
    """
    from fg_lightning.explain.load_network import import_object, is_import_path

    if isinstance(fills, str):
        names = [name.strip() for name in fills.split(",")]
        if not any(map(is_import_path, names)):
            return fills
        fills = [parse_fill(name) for name in names]
    if not isinstance(fills, list):
        return fills
    return [import_object(fill) if isinstance(fill, str) and is_import_path(fill) else fill for fill in fills]


def _summary_table(results: ROARResults) -> Table:
    """The methods' scores for a terminal, the best of each fill first."""
    table = Table(
        title="area between each method's curve and random's: more than 0 is better than random",
        title_justify="left",
        caption=f"{_say_coverage(results)}\n{_say_leak(results)}",
        caption_justify="left",
    )
    for name in ("method", "fill"):
        table.add_column(name, overflow="fold")
    for number in ("area", "± 95 %", "p (Holm)", "total\nvariation", "masks\nalone"):
        table.add_column(number, justify="right", no_wrap=True)  # half a number would be another one
    for s in results.scores():
        numbers = (
            (s.area, "+.3f"),
            (s.interval, ".3f"),
            (s.p_holm, ".3g"),
            (s.total_variation, ".3f"),
            (s.masks_accuracy_largest, ".3f"),
        )
        table.add_row(s.method, s.fill, *("" if math.isnan(number) else format(number, form) for number, form in numbers))
    return table


def _say_coverage(results: ROARResults) -> str:
    """A sentence on what the intervals cover."""
    num_networks, num_seeds = len(results.networks), len(results.seeds)
    seeds = f"{num_seeds} seed{'s' * (num_seeds > 1)}"
    if num_networks > 1:
        covered = f"Over {num_networks} explained networks, {seeds} each: intervals cover the network and retraining"
    elif num_seeds == 1:
        return "One seed of one explained network: there is no interval and no p-value"
    else:
        covered = f"Over {seeds} of one explained network: intervals cover retraining alone"
    num_samples = num_networks if num_networks > 1 else num_seeds
    return covered + "; with fewer than 5, they are rough estimates" * (num_samples < 5)


def _say_leak(results: ROARResults) -> str:
    """A sentence on what the masks alone give away."""
    if not results.has_controls:
        return "No controls were run, so the accuracy on the masks alone is unknown"
    known = [float(value) for value in results.masks_accuracies("random")[:, -1] if not math.isnan(value)]
    return (
        "Masks alone: accuracy, at the largest fraction, of a network that sees only which pixels were removed, not the image. "
        f"With random masks it is {f'{sum(known) / len(known):.3f}' if known else 'unknown'}"
    )
