"""A whole experiment: the explained networks, the maps, every training, the table and the curves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Union

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from rich.console import Console
from torchmetrics.functional.image import total_variation

from fg_lightning.atomic_files import write_atomically, write_json
from fg_lightning.errors import CannotRun
from fg_lightning.roar.accuracy_curves import accuracy_curves
from fg_lightning.roar.cell_training import determinism, fit, test
from fg_lightning.roar.cells import ALL, Cell, CellResult, list_cells, read_result, write_result
from fg_lightning.roar.compute_ranks import make_predictor
from fg_lightning.roar.config import NETWORK_SEED, ROARConfig, cell_seed
from fg_lightning.roar.datamodule import ROARDataModule, check_removal
from fg_lightning.roar.dataset_views import SplitView, load_views, write_examples
from fg_lightning.roar.engines import Engine, ProgressLine, choose_engine
from fg_lightning.roar.experiment_folder import (
    EXPERIMENT_FILE,
    check_disk_space,
    compare_identity,
    explain_disk_faults,
    lock_folder,
)
from fg_lightning.roar.explained_networks import check_networks, load_network, make_networks, select_accuracy
from fg_lightning.roar.latex_table import latex_table
from fg_lightning.roar.results import SUMMARY_COLUMNS, TABLE_COLUMNS, ROARResults
from fg_lightning.roar.saliency_store import SaliencyStore
from fg_lightning.visualization import save_figure

NUM_MASKS = 500
"""Number of test images over whose masks the total variation is averaged."""


class ROARExperiment:
    """Trains from scratch, for every method, fraction, fill and seed, on images without the pixels that the method ranks first.

    For every method and fraction, a control is trained on the masks alone. Its accuracy shows how much the masks reveal.

    All results are in one folder, and each part is written as soon as it is done. If the experiment is stopped and run again, it
    continues and ends with the same table. `networks/` holds the explained networks, `stores/` the ranks, `cells/` a result for
    each training, `results.csv` all results, `summary.csv` and `summary.tex` the scores, `curves.png`, `curves.pdf` and
    `curves.svg` the curves. More methods, fractions, fills, networks or seeds can be added later.

    Args:
        output: folder of all results.
        data: class of the datamodule, or a function without arguments that makes one.
        model: class of the LightningModule, or a function without arguments that makes an untrained one.
        engine: engine that runs the trainings, such as a `RayEngine`. Default: `LocalEngine()`, in this process.
        console: console of rich that progress is printed to. Default: standard error.
        options: the other settings of `ROARConfig`, by name. `ROARExperiment(**vars(config))` runs a configuration.

    Raises:
        TypeError: if a setting or the engine is of the wrong type.
        ValueError: if a setting is invalid.
    """

    def __init__(
        self,
        output: Union[str, Path],
        data: Callable[[], LightningDataModule],
        model: Callable[[], LightningModule],
        *,
        engine: Engine | None = None,
        console: Console | None = None,
        **options: Any,
    ) -> None:
        self.config = config = ROARConfig(output, data, model, **options)
        self.output = config.folder
        intact = (0.0, 1.0) if config.mode == "kar" else (0.0,)
        is_trained = config.mode != "road"
        self.cells = list_cells(
            list(config.factories),
            [*intact, *config.fractions],
            list(config.fill_values),
            num_networks=config.num_networks,
            num_seeds=config.num_seeds if is_trained else 1,
            controls=config.controls and is_trained,
        )
        self.engine = choose_engine(engine)
        self.console = console or Console(stderr=True)

    def run(self, retry_failed: bool = False) -> ROARResults:
        """Runs everything that has not been run yet.

        Args:
            retry_failed: whether to run failed cells again. Default: False.

        Returns:
            The results of all cells that have been run.

        Raises:
            CannotRun: if another process uses the folder, the folder holds another experiment or cannot be written to, there is not
                enough space, a fraction, fill or the target does not fit the data, or an explained network cannot be trained or
                read.
            UnfitData, RandomImages: if the data cannot be used, see `ROARDataModule`.
        """
        config = self.config
        with lock_folder(self.output), explain_disk_faults(self.output):
            about = compare_identity(self.output, config.identity(), any((self.output / "networks").glob("*.pt")))
            pending = [cell for cell in self.cells if self._needs_run(cell, retry_failed)]
            if pending:
                views = load_views(config)
                last = list(views.values())[-1]
                check_removal(config, views, {cell.fraction for cell in self.cells})
                check_disk_space(self.output, self._store_bytes(views, pending))
                check_networks(config, self.engine, self._methods_without_maps(pending), last.plane.place)
                write_json(self.output / EXPERIMENT_FILE, about)  # not earlier: the user may correct a refused method
                write_examples(self.output, last)
                make_networks(config, self.engine, self.console)
                self._run_cells(self._make_stores(pending), len(self.cells) - len(pending))
            results = self.results()
            self._write(results)
        return results

    def results(self) -> ROARResults:
        """The results of the cells that have been run."""
        found = [read_result(self.output, cell) for cell in self.cells]
        results = [result for result in found if result is not None]
        return ROARResults(results, self.config.mode, self.config.order, self.config.target)

    def _make_stores(self, pending: Sequence[Cell]) -> list[Cell]:
        """Makes the stores of the methods and networks that have cells to run, and returns the cells that can be run with them."""
        stores = list(dict.fromkeys(self._store_of(cell) for cell in pending))
        failures: dict[tuple[str, int], str] = {}
        with ProgressLine(self.console, "maps", 0, len(stores), self.engine.num_parallel) as progress:
            for outcome in self.engine.run(partial(make_store, self.config), stores):
                method, network = outcome.item
                progress.advance(method if self.config.num_networks == 1 else f"{method} of network {network}", outcome.reason)
                if outcome.reason:
                    failures[outcome.item] = f"no maps: {outcome.reason}"
        for cell in pending:
            if self._store_of(cell) in failures:
                write_result(self.output, CellResult(cell, reason=failures[self._store_of(cell)]))
        for (method, _), reason in failures.items():
            if method == self._first_method:
                raise CannotRun(f"pixels cannot be removed from the data: {reason}")
        return [cell for cell in pending if self._store_of(cell) not in failures]

    def _run_cells(self, cells: Sequence[Cell], num_done: int) -> None:
        with ProgressLine(self.console, "trainings", num_done, num_done + len(cells), self.engine.num_parallel) as progress:
            for outcome in self.engine.run(partial(run_cell, self.config), cells):
                failure = CellResult(outcome.item, reason=outcome.reason)
                write_result(self.output, failure if outcome.reason else outcome.value)
                progress.advance(outcome.item.name, outcome.reason)

    @property
    def _first_method(self) -> str:
        """The method whose stores are used for the cells of intact images."""
        return next(iter(self.config.factories))

    def _methods_without_maps(self, pending: Sequence[Cell]) -> list[str]:
        stores = dict.fromkeys(self._store_of(cell) for cell in pending)
        return list(dict.fromkeys(method for method, network in stores if not self.config.store_path(method, network).exists()))

    def _store_of(self, cell: Cell) -> tuple[str, int]:
        return self._first_method if cell.method == ALL else cell.method, cell.network

    def _needs_run(self, cell: Cell, retry_failed: bool) -> bool:
        result = read_result(self.output, cell)
        return result is None or (retry_failed and bool(result.reason))

    def _write(self, results: ROARResults) -> None:
        results.write_table(self.output / "results.csv")
        results.write_summary(self.output / "summary.csv")
        write_atomically(self.output / "summary.tex", latex_table(results))
        save_figure(accuracy_curves(results), self.output / "curves")
        if self.config.wandb is not None:
            log_summary(self.config, results)

    def _store_bytes(self, views: Mapping[str, SplitView], pending: Sequence[Cell]) -> int:
        """Size in bytes of the stores that do not exist yet."""
        num_pixels = sum(len(view.plane) * math.prod(view.shape) for view in views.values())
        rank_bytes = 2 if math.prod(next(iter(views.values())).shape) <= 2**16 else 4
        missing = [one for one in {self._store_of(cell) for cell in pending} if not self.config.store_path(*one).exists()]
        return num_pixels * rank_bytes * len(missing)


def make_store(config: ROARConfig, which: tuple[str, int]) -> None:
    """Explains every image with a method (by name) and a network (by number)."""
    method, network = which
    with explain_disk_faults(config.folder), determinism(NETWORK_SEED + network, config.num_threads):
        SaliencyStore.make(
            config.store_path(method, network),
            load_network(config, network),
            config.data(),
            config.factories[method],
            target=config.target,
            batch_size=config.batch_size,
            seed=network,
            prepare=config.prepare,
            transform=config.transform,
            trainer=make_predictor({name: config.trainer[name] for name in ("accelerator", "devices") if name in config.trainer}),
        )


def run_cell(config: ROARConfig, cell: Cell) -> CellResult:
    """Trains on images without a method's pixels, and tests on such images. Mode "road" tests the explained network."""
    start = time.monotonic()
    method = next(iter(config.factories)) if cell.method == ALL else cell.method
    store = SaliencyStore(config.store_path(method, cell.network))
    with determinism(cell_seed(cell), config.num_threads):
        model = load_network(config, cell.network) if config.mode == "road" else config.model()
        data = ROARDataModule(
            config.data(),
            store,
            cell.fraction,
            config.order,
            config.fill_values.get(cell.fill, 0.0),  # for intact images and masks alone it does not matter
            config.mode == "kar",
            prepare=config.prepare,
            transform=config.transform,
            seed=cell_seed(cell),
            control=cell.control or None,
            redraw=config.redraw_random and method == "random",
        )
        logger = _wandb_logger(config, cell)
        try:
            if config.mode != "road":
                fit(model, data, config.max_epochs, config.trainer, logger)
            metrics = test(model, data, config.trainer, logger)
        finally:
            if logger is not None:
                logger.experiment.finish()
    masks = torch.from_numpy(data.masks(store.splits[-1], NUM_MASKS)).unsqueeze(1).float()
    variation = float(total_variation(masks, reduction="mean")) / store.manifest.num_pixels if masks.ndim == 4 else None
    return CellResult(cell, select_accuracy(metrics, config.metric), metrics, variation, round(time.monotonic() - start, 3))


def log_summary(config: ROARConfig, results: ROARResults) -> None:
    """Logs the scores, the table and the curves to Weights & Biases."""
    import wandb

    with wandb.init(name="summary", dir=config.folder, **_wandb_group(config)) as run:
        run.log(
            {
                "roar/curves": wandb.Image(str(config.folder / "curves.png")),
                "roar/summary": wandb.Table(columns=[*SUMMARY_COLUMNS], data=results.summary_rows()),
                "roar/results": wandb.Table(columns=[*TABLE_COLUMNS], data=results.table_rows()),
            }
        )


def _wandb_group(config: ROARConfig) -> dict[str, Any]:
    return {"project": config.wandb, "group": config.folder.name}


def _wandb_logger(config: ROARConfig, cell: Cell) -> Any:
    if config.wandb is None:
        return None
    from lightning.pytorch.loggers import WandbLogger

    settings = {"mode": config.mode, "order": config.order, "max_epochs": config.max_epochs, "target": config.target}
    return WandbLogger(name=cell.name, save_dir=config.folder, config={**vars(cell), **settings}, **_wandb_group(config))
