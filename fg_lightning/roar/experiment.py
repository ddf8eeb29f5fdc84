"""An experiment as a whole: the explained network, the maps, every training, the table and the curves."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Union

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from rich.console import Console
from torchmetrics.functional.image import total_variation

from fg_lightning.atomic_files import replace_file
from fg_lightning.checkpoints import one_line, read_checkpoint
from fg_lightning.errors import CannotRun
from fg_lightning.roar.cell_training import determinism, fit, test
from fg_lightning.roar.compute_ranks import make_predictor
from fg_lightning.roar.config import ROARConfig
from fg_lightning.roar.datamodule import ROARDataModule, check_removal
from fg_lightning.roar.dataset_views import SplitView, load_views, write_examples
from fg_lightning.roar.engines import Engine, LocalEngine, ProgressLine
from fg_lightning.roar.experiment_folder import (
    check_base,
    check_disk_space,
    check_identity,
    explain_disk_faults,
    hash_file,
    lock_folder,
)
from fg_lightning.roar.results import (
    ALL,
    SUMMARY_COLUMNS,
    Cell,
    CellResult,
    ROARResults,
    accuracy_curves,
    list_cells,
    read_result,
    write_result,
)
from fg_lightning.roar.saliency_store import SaliencyStore

BASE_SEED = 0
"""Of the network that is explained."""

NUM_MASKS = 500
"""Number of test images whose masks' total variation is averaged."""


class ROARExperiment:
    """Trains from scratch for every method, fraction and seed on the images without the method's pixels, and compares accuracies.

    Everything is kept in one folder, each part as soon as it is done. If the experiment is stopped at any moment and run again, it
    goes on and ends with the same table. `base.pt` is the network that is explained; `stores/` holds the ranks, `cells/` a result
    for each training, `results.csv` all of them, `summary.csv` the methods' scores, `curves.png` the picture. More methods,
    fractions or seeds may be added later.

    Args:
        output: the folder.
        data: makes the datamodule.
        model: makes an untrained network.
        engine: where the trainings run. Default: in this process; see `RayEngine`.
        console: where progress is printed. Default: standard error.
        options: the other settings of `ROARConfig`, by name. `ROARExperiment(**vars(config))` runs a configuration.

    Raises:
        TypeError: if a setting or the engine is of the wrong type.
        ValueError: if a setting makes no sense.
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
        if engine is not None and not isinstance(engine, Engine):
            raise TypeError(f"engine must be a LocalEngine() or a RayEngine(), not {engine!r}")
        intact = (0.0, 1.0) if config.mode == "kar" else (0.0,)
        num_seeds = 1 if config.mode == "road" else config.num_seeds
        self.cells = list_cells(list(config.factories), [*intact, *config.fractions], num_seeds)
        self.engine = engine or LocalEngine()
        self.console = console or Console(stderr=True)

    def run(self, retry_failed: bool = False) -> ROARResults:
        """Runs everything that has not been run yet.

        Args:
            retry_failed: also run again what failed.

        Returns:
            What is in the table.

        Raises:
            CannotRun: if another process works in the folder, it holds another experiment, it cannot be written to, there is not
                enough space, a fraction or the fill does not fit the images, or the explained network cannot be trained or read.
        """
        config = self.config
        with lock_folder(self.output), explain_disk_faults(self.output):
            checkpoint = None if config.checkpoint is None else hash_file(Path(config.checkpoint))
            check_identity(self.output, config.identity(checkpoint), config.base_path.exists())
            pending = [cell for cell in self.cells if self._needs_run(cell, retry_failed)]
            if pending:
                views = load_views(config)
                check_removal(config, views, {cell.fraction for cell in self.cells})
                check_disk_space(self.output, self._store_bytes(views, pending))
                write_examples(self.output, list(views.values())[-1])
                self._make_base()
                self._run_cells(self._make_stores(pending), len(self.cells) - len(pending))
            results = self.results()
            self._write(results)
        return results

    def results(self) -> ROARResults:
        """Of the cells that have been run."""
        results = [read_result(self.output, cell) for cell in self.cells]
        return ROARResults([result for result in results if result is not None], self.config.mode, self.config.order)

    def _make_base(self) -> None:
        config = self.config
        if not config.base_path.exists():
            for outcome in self.engine.run(partial(check_test, config), [BASE_SEED]):
                if outcome.reason:
                    raise CannotRun(f"a network cannot be tested on the data: {outcome.reason}")
            if config.checkpoint is not None:
                weights = read_weights(Path(config.checkpoint))
                load_weights(config.model(), weights, Path(config.checkpoint))
                write_weights(config.base_path, weights)
            else:
                self.console.print(f"training the network that is explained: {config.max_epochs} epochs", highlight=False)
                for outcome in self.engine.run(partial(train_base, config), [BASE_SEED]):
                    if outcome.reason:
                        raise CannotRun(f"the network that is explained could not be trained: {outcome.reason}")
        check_base(self.output, config.base_path)

    def _make_stores(self, pending: Sequence[Cell]) -> list[Cell]:
        """Makes the stores of the methods that have cells to run, and returns the cells that can be run with them."""
        first = next(iter(self.config.factories))  # its store serves the cells of intact images
        methods = list(dict.fromkeys(first if cell.method == ALL else cell.method for cell in pending))
        failures: dict[str, str] = {}
        with ProgressLine(self.console, "maps", 0, len(methods), self.engine.num_parallel) as progress:
            for outcome in self.engine.run(partial(make_store, self.config), methods):
                progress.advance(outcome.item, outcome.reason)
                if outcome.reason:
                    failures[outcome.item] = f"no maps: {outcome.reason}"
        for cell in pending:
            if cell.method in failures:
                write_result(self.output, CellResult(cell, reason=failures[cell.method]))
        if first in failures:
            raise CannotRun(f"the data cannot be masked: {failures[first]}")
        return [cell for cell in pending if cell.method not in failures]

    def _run_cells(self, cells: Sequence[Cell], num_done: int) -> None:
        with ProgressLine(self.console, "trainings", num_done, num_done + len(cells), self.engine.num_parallel) as progress:
            for outcome in self.engine.run(partial(run_cell, self.config), cells):
                failure = CellResult(outcome.item, reason=outcome.reason)
                write_result(self.output, failure if outcome.reason else outcome.value)
                progress.advance(outcome.item.name, outcome.reason)

    def _needs_run(self, cell: Cell, retry_failed: bool) -> bool:
        result = read_result(self.output, cell)
        return result is None or (retry_failed and bool(result.reason))

    def _write(self, results: ROARResults) -> None:
        results.write_table(self.output / "results.csv")
        results.write_summary(self.output / "summary.csv")
        with replace_file(self.output / "curves.png") as file:
            accuracy_curves(results).savefig(file, format="png")
        if self.config.wandb is not None:
            log_summary(self.config, results)

    def _store_bytes(self, views: Mapping[str, SplitView], pending: Sequence[Cell]) -> int:
        """Of the stores that do not exist yet."""
        num_pixels = sum(len(view.plane) * math.prod(view.shape) for view in views.values())
        rank_bytes = 2 if math.prod(next(iter(views.values())).shape) <= 2**16 else 4
        missing = {cell.method for cell in pending if not self.config.store_path(cell.method).exists()} - {ALL}
        return num_pixels * rank_bytes * len(missing)


def check_test(config: ROARConfig, seed: int) -> None:
    """Tests an untrained network on one batch, so that faults of a test are reported before anything is trained.

    Raises:
        CannotRun: if there is no test data, or the test does not log the metric that counts.
    """
    with determinism(seed, config.num_threads):
        metrics = test(config.model(), config.data(), {**config.trainer, "limit_test_batches": 1}, None)
    select_accuracy(metrics, config.metric)


def train_base(config: ROARConfig, seed: int) -> None:
    """Trains the network that is explained, and writes its weights."""
    with determinism(seed, config.num_threads):
        model = config.model()
        options = {"enable_progress_bar": sys.stdout.isatty(), **config.trainer}
        fit(model, config.data(), config.max_epochs, options, None)
    with explain_disk_faults(config.folder):
        write_weights(config.base_path, model.state_dict())


def make_store(config: ROARConfig, method: str) -> None:
    """Explains every image with a method."""
    with explain_disk_faults(config.folder), determinism(BASE_SEED, config.num_threads):
        SaliencyStore.make(
            config.store_path(method),
            _base_model(config),
            config.data(),
            config.factories[method],
            target=config.target,
            batch_size=config.batch_size,
            prepare=config.prepare,
            transform=config.transform,
            trainer=make_predictor({name: config.trainer[name] for name in ("accelerator", "devices") if name in config.trainer}),
        )


def run_cell(config: ROARConfig, cell: Cell) -> CellResult:
    """Trains on images without a method's pixels, and tests on such images. Mode "road" tests the explained network."""
    start = time.monotonic()
    store = SaliencyStore(config.store_path(next(iter(config.factories)) if cell.method == ALL else cell.method))
    with determinism(cell.seed, config.num_threads):
        model = _base_model(config) if config.mode == "road" else config.model()
        assert config.fill is not None
        data = ROARDataModule(
            config.data(),
            store,
            cell.fraction,
            config.order,
            config.fill,
            config.mode == "kar",
            prepare=config.prepare,
            transform=config.transform,
            seed=cell.seed,
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
        rows = [[r.cell.method, r.cell.fraction, r.cell.seed, r.accuracy, r.total_variation] for r in results.results]
        columns: list[Any] = [*SUMMARY_COLUMNS]
        run.log(
            {
                "roar/curves": wandb.Image(str(config.folder / "curves.png")),
                "roar/summary": wandb.Table(columns=columns, data=[list(vars(score).values()) for score in results.scores()]),
                "roar/results": wandb.Table(columns=[*"method fraction seed accuracy total_variation".split()], data=rows),
            }
        )


def select_accuracy(metrics: Mapping[str, float], name: str | None) -> float:
    """The test metric that counts.

    Args:
        metrics: what the test logged.
        name: of the metric. None: the one with "acc" in its name.

    Raises:
        CannotRun: if it was not logged, or not exactly one has "acc" in its name.
    """
    if name is not None:
        if name not in metrics:
            raise CannotRun(
                f"the test logged no metric {name!r}, but {', '.join(metrics) or 'nothing'}; name one of these with metric"
            )
        return metrics[name]
    names = [key for key in metrics if "acc" in key.lower()]
    if len(names) != 1:
        raise CannotRun(
            f"the test logged {', '.join(metrics) or 'nothing'}, of which {len(names)} have 'acc' in their names; choose with "
            "metric which one counts (a LightningModule logs it in its test_step)"
        )
    return metrics[names[0]]


def write_weights(path: Path, weights: Mapping[str, Any]) -> None:
    """Raises what `replace_file` does."""
    with replace_file(path) as file:
        torch.save(weights, file)


def read_weights(path: Path) -> Mapping[str, Any]:
    """The weights in a checkpoint of Lightning's, or in a saved `state_dict`.

    Raises:
        CannotRun: if the file cannot be read, or holds something else.
    """
    content = read_checkpoint(path)
    weights = content.get("state_dict", content)
    if not isinstance(weights, Mapping):
        raise CannotRun(f"{path} holds {type(weights).__name__}, but a checkpoint of Lightning's or a state_dict is needed")
    return weights


def load_weights(model: LightningModule, weights: Mapping[str, Any], path: Path) -> None:
    """Loads weights into a model. Layers that Lightning makes in `configure_model` are made first.

    Args:
        model: the model.
        weights: by name.
        path: of their file.

    Raises:
        CannotRun: if they are not of this model.
    """
    model.configure_model()
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CannotRun(f"the checkpoint {path} is not of this model: {one_line(error)}") from error


def _base_model(config: ROARConfig) -> LightningModule:
    model = config.model()
    load_weights(model, read_weights(config.base_path), config.base_path)
    return model


def _wandb_group(config: ROARConfig) -> dict[str, Any]:
    return {"project": config.wandb, "group": config.folder.name}


def _wandb_logger(config: ROARConfig, cell: Cell) -> Any:
    if config.wandb is None:
        return None
    from lightning.pytorch.loggers import WandbLogger

    settings = {"mode": config.mode, "order": config.order, "max_epochs": config.max_epochs, "fill": str(config.fill)}
    return WandbLogger(name=cell.name, save_dir=config.folder, config={**vars(cell), **settings}, **_wandb_group(config))
