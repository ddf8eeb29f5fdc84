"""Remove-and-retrain as a whole: the network, the maps, every training, the table and the curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from lightning.pytorch import LightningDataModule, LightningModule
from rich.console import Console

from fg_lightning.atomic_files import replacing
from fg_lightning.attribution import Factory, find_method
from fg_lightning.errors import CannotRun
from fg_lightning.removal import Fill, Order
from fg_lightning.removal.pixel_ranking import check_order
from fg_lightning.roar.cell_training import ALL, Cell, Result, cells_of, read_result, write_result
from fg_lightning.roar.compute_ranks import Explained
from fg_lightning.roar.config import (
    check_counts,
    check_fractions,
    check_identity,
    check_kinds,
    check_makers,
    check_metric,
    check_mode,
    check_names,
    identity_of,
    on_one_device,
)
from fg_lightning.roar.data_checks import check_removal, checked_views, write_examples
from fg_lightning.roar.dataset_views import View
from fg_lightning.roar.engines import Engine, LocalEngine, Watch
from fg_lightning.roar.experiment_folder import NAME, check_room, held, room
from fg_lightning.roar.results import Results, accuracy_curves
from fg_lightning.roar.steps import BASE_SEED, Mode, Plan, check_base, hash_of, load_weights, read_weights, write_weights

FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)

FEW = ("random", "blurred_random", "edges", "gradient", "fullgrad", "blurred_fullgrad")
"""The methods that are compared by default: FullGrad, the gradient, and what a score has to be seen beside."""


class ROARExperiment:
    """Trains from scratch for every method, fraction and seed on what the method has left of the images, and compares accuracies.

    Everything is kept in one folder, a part as soon as it is done: stopped at any moment and run again, the experiment goes on and
    ends with the same table. `base.pt` is the network that is explained; `stores/` holds the ranks, `cells/` a result a training,
    `results.csv` all of them, `summary.csv` the methods' scores, `curves.png` the picture. More methods, fractions or seeds may be
    asked for later; they add to what is there.

    Args:
        output: the folder.
        data: makes the datamodule: its class, or a function without arguments. Every cell has one of its own.
        model: makes an untrained LightningModule that takes images alone and logs its accuracy in `test_step`.
        methods: names in `fg_lightning.attribution.METHODS`, or factories by name; random is always in.
        fractions: of the pixels, each 0 to 1. In modes "roar" and "road" 0, intact images, is always in; in "kar" 0 and 1 are.
        seeds: so many trainings for each method and fraction, from seeds 0, 1, ...; "road" trains none, and tests once.
        max_epochs: of every training.
        order: "morf", the most relevant pixels first, or "lerf", the least relevant first.
        mode: "roar" removes a fraction of pixels; "kar" keeps it and removes the rest; "road" removes it and does not retrain.
        imputation: what replaces pixels, see `ROARDataModule`; by default "dataset_mean", and "noisy_linear" for "road".
        checkpoint: Lightning's, of the network that is explained; by default one is trained, like the cells, on intact images.
        target: "predicted" or "label": the class that is explained.
        metric: the test metric that counts, higher for a better network; by default the one with "acc" in its name.
        engine: where the trainings run, in this process by default; see `RayEngine`.
        threads: torch's threads of a training on the CPU, the same for every engine, since numbers depend on it.
        chunk: so many images are explained at once.
        prepare: see `ROARDataModule`.
        transform: see `ROARDataModule`.
        trainer: further arguments of every Trainer, such as {"precision": "bf16-mixed"}. A training has one device, and copies of
            the callbacks that are given.
        wandb: a Weights & Biases project: a run a training in one group, and one of the whole; by default none.
        console: to say on how far it is.

    Raises:
        TypeError: if data or model is an instance, a number is none, or engine or imputation are of no known kind.
        ValueError: if methods, fractions, seeds, epochs, order, mode, target, imputation, metric or devices make no sense.
    """

    def __init__(
        self,
        output: Union[str, Path],
        data: Callable[[], LightningDataModule],
        model: Callable[[], LightningModule],
        *,
        methods: Union[Sequence[str], Mapping[str, Factory]] = FEW,
        fractions: Sequence[float] = FRACTIONS,
        seeds: int = 3,
        max_epochs: int = 5,
        order: Order = "morf",
        mode: Mode = "roar",
        imputation: Fill | None = None,
        checkpoint: Union[str, Path, None] = None,
        target: Explained = "predicted",
        metric: str | None = None,
        engine: Engine | None = None,
        threads: int = 1,
        chunk: int = 50,
        prepare: Any = None,
        transform: Any = None,
        trainer: Mapping[str, Any] | None = None,
        wandb: str | None = None,
        console: Console | None = None,
    ) -> None:
        check_makers(data, model)
        check_mode(mode)
        check_counts(seeds=seeds, max_epochs=max_epochs, threads=threads, chunk=chunk)
        check_metric(metric)
        check_names(methods)
        check_order(order)
        check_fractions(fractions)
        imputation = imputation if imputation is not None else "noisy_linear" if mode == "road" else "dataset_mean"
        check_kinds(target, engine, imputation)
        self.output = Path(output).resolve()
        intact = (0.0, 1.0) if mode == "kar" else (0.0,)
        named = methods if isinstance(methods, Mapping) else {name: find_method(name) for name in methods}
        named = {"random": find_method("random"), **named}
        self.cells = cells_of(list(named), [*intact, *fractions], 1 if mode == "road" else seeds)
        self.plan = Plan(
            output=self.output,
            data=data,
            model=model,
            methods=named,
            mode=mode,
            order=order,
            imputation=imputation,
            max_epochs=max_epochs,
            target=target,
            metric=metric,
            chunk=chunk,
            threads=threads,
            prepare=prepare,
            transform=transform,
            trainer=on_one_device(trainer or {}),
            wandb=None if wandb is None else {"project": wandb, "group": self.output.name},
        )
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.engine = engine or LocalEngine()
        self.console = console or Console(stderr=True)

    def run(self, retry_failed: bool = False) -> Results:
        """Does what has not been done yet.

        Args:
            retry_failed: also what was tried and failed.

        Returns:
            What is in the table.

        Raises:
            CannotRun: if another process works in the folder, it holds another experiment, it cannot be written to, there is not
                enough room, a fraction or the imputation does not fit the images, or the base network cannot be had.
        """
        with held(self.output), room(self.output):
            checkpoint = None if self.checkpoint is None else hash_of(self.checkpoint)
            check_identity(self.output, identity_of(self.plan, checkpoint), self.plan.base_path.exists())
            pending = [cell for cell in self.cells if self._is_pending(cell, retry_failed)]
            if pending:
                views = checked_views(self.plan)
                check_removal(self.plan, views, {cell.fraction for cell in self.cells})
                check_room(self.output, self._bytes_of_stores(views, pending))
                write_examples(self.output, list(views.values())[-1])
                self._make_base()
                self._run_cells(self._with_maps(pending), len(self.cells) - len(pending))
            results = self.results()
            self._write(results)
        return results

    def results(self) -> Results:
        """Of the cells that have been run."""
        found = (read_result(self.output, cell) for cell in self.cells)
        return Results([result for result in found if result is not None], self.plan.mode, self.plan.order)

    def _make_base(self) -> None:
        if self.plan.base_path.exists():
            check_base(self.output / NAME, self.plan.base_path)
            return
        for done in self.engine.run(self.plan.rehearse, [BASE_SEED]):
            if done.reason:
                raise CannotRun(f"a network cannot be tested on the data: {done.reason}")
        if self.checkpoint is not None:
            weights = read_weights(self.checkpoint)
            load_weights(self.plan.model(), weights, self.checkpoint)
            write_weights(self.plan.base_path, weights)
            check_base(self.output / NAME, self.plan.base_path)
            return
        self.console.print(f"the network that is explained is trained: {self.plan.max_epochs} epochs", highlight=False)
        for done in self.engine.run(self.plan.train_base, [BASE_SEED]):
            if done.reason:
                raise CannotRun(f"the network that is to be explained could not be trained: {done.reason}")
        check_base(self.output / NAME, self.plan.base_path)

    def _with_maps(self, pending: Sequence[Cell]) -> list[Cell]:
        """Makes the stores of the methods that have cells to run, and returns those that can be."""
        first = next(iter(self.plan.methods))  # whose store serves the cells of intact images
        methods = list(dict.fromkeys(first if cell.method == ALL else cell.method for cell in pending))
        failed: dict[str, str] = {}
        with Watch(self.console, "maps", 0, len(methods), self.engine.at_once) as watch:
            for done in self.engine.run(self.plan.make_store, methods):
                watch.one_done(done.item, done.reason)
                if done.reason:
                    failed[done.item] = f"no maps: {done.reason}"
        for cell in pending:
            if cell.method in failed:
                write_result(self.output, Result(cell, reason=failed[cell.method]))
        if first in failed:
            raise CannotRun(f"the data cannot be masked: {failed[first]}")
        return [cell for cell in pending if cell.method not in failed]

    def _run_cells(self, cells: Sequence[Cell], before: int) -> None:
        with Watch(self.console, "trainings", before, before + len(cells), self.engine.at_once) as watch:
            for done in self.engine.run(self.plan.run_cell, cells):
                write_result(self.output, Result(done.item, reason=done.reason) if done.reason else done.value)
                watch.one_done(done.item.name, done.reason)

    def _is_pending(self, cell: Cell, retry_failed: bool) -> bool:
        result = read_result(self.output, cell)
        return result is None or (retry_failed and bool(result.reason))

    def _write(self, results: Results) -> None:
        results.write_table(self.output / "results.csv")
        results.write_summary(self.output / "summary.csv")
        with replacing(self.output / "curves.png") as file:
            accuracy_curves(results).savefig(file, format="png")
        self.plan.log_summary(results)

    def _bytes_of_stores(self, views: Mapping[str, View], pending: Sequence[Cell]) -> int:
        pixels = sum(len(view.plane) * math.prod(view.shape) for view in views.values())
        wide = 2 if math.prod(next(iter(views.values())).shape) <= 2**16 else 4
        missing = {cell.method for cell in pending if not self.plan.store_path(cell.method).exists()} - {ALL}
        return pixels * wide * len(missing)
