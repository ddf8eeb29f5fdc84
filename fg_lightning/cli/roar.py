"""fg-lightning roar."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt
from lightning.pytorch import LightningDataModule, LightningModule

from fg_lightning.errors import CannotRun

if TYPE_CHECKING:
    from rich.table import Table

    from fg_lightning.roar.results import Results


def roar(
    output: Path = Path("fg_roar"),
    methods: Union[str, list[str]] = "random,blurred_random,edges,gradient,fullgrad,blurred_fullgrad",
    fractions: tuple[ClosedUnitInterval, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
    seeds: PositiveInt = 3,
    max_epochs: PositiveInt = 5,
    order: Literal["morf", "lerf"] = "morf",
    mode: Literal["roar", "kar", "road"] = "roar",
    imputation: Union[float, list[float], str, None] = None,
    data: Union[Callable[[], LightningDataModule], None] = None,
    model: Union[Callable[[], LightningModule], None] = None,
    checkpoint: Union[Path, None] = None,
    target: Literal["predicted", "label"] = "predicted",
    metric: Union[str, None] = None,
    engine: Literal["local", "ray"] = "local",
    address: Union[str, None] = None,
    cpus: PositiveFloat = 1.0,
    gpus: NonNegativeFloat = 0.0,
    threads: PositiveInt = 1,
    chunk: PositiveInt = 50,
    trainer: Union[dict[str, Any], None] = None,
    wandb: Union[str, None] = None,
    retry_failed: bool = False,
) -> None:
    """Remove what each method calls relevant from every image, train again from scratch, and compare accuracies.

    Leaves results.csv, summary.csv and curves.png; stopped at any moment, the same command goes on where it was. By default on
    5,000 real MNIST digits with the demo's network.

    Args:
        output: the folder that everything is kept in.
        methods: names with commas between them, or all; random is always in.
        fractions: of the pixels that are removed (mode kar: kept), each 0 to 1; 0 is always in.
        seeds: so many trainings for each method and fraction; mode road, which trains none, tests once.
        max_epochs: of every training.
        order: morf, the most relevant pixels first, or lerf, the least relevant first.
        mode: roar; kar keeps the fraction and removes the rest; road removes it and does not retrain.
        imputation: what replaces pixels: dataset_mean, noisy_linear, or a number, or one for every channel, in the units
            of the images before their transform. By default dataset_mean, and noisy_linear for road.
        data: the class path of your LightningDataModule; its arguments with --data.NAME.
        model: the class path of your LightningModule, which takes images and logs its test accuracy; arguments with --model.NAME.
        checkpoint: of the network that is explained; by default one is trained on intact images.
        target: the class that is explained; with label the masks may leak it.
        metric: the test metric that counts, higher for a better network; by default the one with acc in its name.
        engine: local, one training after the other, or ray.
        address: of a running Ray cluster, or auto; by default Ray is started on this machine.
        cpus: that a training takes of the Ray cluster.
        gpus: that a training takes of the Ray cluster; 0.25 puts four on one.
        threads: of a training on a CPU; numbers depend on it.
        chunk: so many images are explained at once.
        trainer: further arguments of Lightning's Trainer, as a dict; a training takes one device.
        wandb: a Weights & Biases project, for a run a training and one of the whole; by default none.
        retry_failed: also run again what failed.

    Raises:
        CannotRun: if an argument makes no sense, the folder cannot be used, or trainings failed.
    """
    from rich.console import Console

    from fg_lightning.attribution import METHODS
    from fg_lightning.demo import DigitClassifier, DigitsDataModule
    from fg_lightning.roar.engines import LocalEngine, RayEngine
    from fg_lightning.roar.experiment import ROARExperiment

    names = methods.split(",") if isinstance(methods, str) else methods
    console = Console()
    chosen = RayEngine(address, cpus, gpus) if engine == "ray" else LocalEngine()
    try:
        try:
            experiment = ROARExperiment(
                output,
                data or DigitsDataModule,
                model or DigitClassifier,
                methods=list(METHODS) if names == ["all"] else [name.strip() for name in names],
                fractions=fractions,
                seeds=seeds,
                max_epochs=max_epochs,
                order=order,
                mode=mode,
                imputation=imputation,
                checkpoint=checkpoint,
                target=target,
                metric=metric,
                engine=chosen,
                threads=threads,
                chunk=chunk,
                trainer=trainer,
                wandb=wandb,
                console=console,
            )
        except (TypeError, ValueError) as error:  # of what was given; the user's own code has not run yet
            raise CannotRun(str(error)) from error
        results = experiment.run(retry_failed)
    except KeyboardInterrupt:
        print("fg-lightning: stopped; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
    finally:
        chosen.close()
    if results.scores():
        console.print(_summary_table(results))
    for name in ("results.csv", "summary.csv", "curves.png"):
        print(f"{name:12} {experiment.output / name}")
    print(f"{'a page':12} fg-lightning report {shlex.quote(str(experiment.output))}", flush=True)
    if results.failed:
        raise CannotRun(
            f"{len(results.failed)} of {len(results.results)} trainings failed, see {experiment.output / 'results.csv'}; to try "
            f"them again: --retry_failed true. The first: {results.failed[0].reason}"
        )


def _summary_table(results: Results) -> Table:
    """The methods' scores for a terminal, the best first."""
    from rich.table import Table

    count = len(results.seeds)
    table = Table(
        title="area between each method's curve and random's: more than 0 is better than random",
        title_justify="left",
        caption=f"{count} seed{'s' * (count > 1)}" + ": intervals and p-values say little" * (count < 5),
        caption_justify="left",
    )
    for column in ("method", "area", "± 95 %", "p", "p (Holm)", "total variation"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for s in results.scores():
        numbers = (f"{s.area:+.4f}", f"{s.interval:.4f}", f"{s.p:.3g}", f"{s.p_holm:.3g}", f"{s.total_variation:.3f}")
        table.add_row(s.method, *numbers)
    return table
