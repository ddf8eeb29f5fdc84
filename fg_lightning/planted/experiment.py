"""Trains networks with a mark and with random marks, and explains them with every method."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Union, get_args

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from rich.console import Console

from fg_lightning.atomic_files import replace_file
from fg_lightning.checkpoints import read_checkpoint
from fg_lightning.errors import CannotRun
from fg_lightning.planted.config import PlantedConfig
from fg_lightning.planted.datamodule import Mark, PlantedShortcut
from fg_lightning.planted.experiment_files import (
    Facts,
    Maps,
    Training,
    read_facts,
    read_maps,
    read_results,
    read_training,
    weights_path,
    write_cell,
    write_facts,
    write_shown_maps,
)
from fg_lightning.planted.explain_marks import Explained, explain_marks
from fg_lightning.planted.figures import map_grid, score_figure
from fg_lightning.planted.results import METRICS, NETWORKS, Explanation, Network, PlantedResults, TrainedNetwork
from fg_lightning.roar.cell_training import determinism, fit, test
from fg_lightning.roar.engines import Engine, ProgressLine, choose_engine
from fg_lightning.roar.experiment_folder import check_identity, explain_disk_faults, hash_file, lock_folder
from fg_lightning.roar.explained_networks import load_weights, select_accuracy
from fg_lightning.visualization import save_figure

TRAINING_MARKS: dict[Network, Mark] = {"planted": "label", "control": "random"}

NUM_SHOWN = 4
"""Number of test images whose maps are drawn."""


class PlantedExperiment:
    """Measures how much of every method's maps lies on a mark on which networks demonstrably rely.

    For every seed it trains a network on images with the mark of their label, and a control on images with marks of random
    classes. Both are explained on the same test images, with the mark of the label. A network relies on the mark if its accuracy
    falls by 1/3 or more with the mark of another class. Only such networks count for the scores.

    All results are in one folder, and each part is written as soon as it is done. If the experiment is stopped and run again, it
    continues and trains no network twice. Methods and seeds can be added later. `results.csv` holds every number, `summary.csv` the
    methods' scores; `planted.png`, `.pdf` and `.svg` draw them, `maps.png` shows some maps.

    Args:
        output: folder of all results.
        data: class of the datamodule, or a function without arguments that makes one.
        model: class of the LightningModule, or a function without arguments that makes an untrained one.
        engine: Engine that runs the trainings, such as a `fg_lightning.roar.RayEngine`. Default: a `LocalEngine`, in this process.
        console: console of rich that progress is printed to. Default: standard error.
        options: the other settings of `PlantedConfig`, by name.

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
        self.config = PlantedConfig(output, data, model, **options)
        self.output = self.config.folder
        self.engine = choose_engine(engine)
        self.console = console or Console(stderr=True)
        seeds = range(self.config.num_seeds)
        self.trainings = [Training(network, seed) for network, seed in product(NETWORKS, seeds)]

    def run(self) -> PlantedResults:
        """Runs everything that has not been run yet or has failed.

        Returns:
            The results of everything that has been run.

        Raises:
            CannotRun: if another process uses the folder, the folder holds another experiment or cannot be written to, marks cannot
                be added to the data, or a network cannot be trained.
            UnfitData, RandomImages: if the data cannot be used, see `PlantedShortcut`.
        """
        with lock_folder(self.output), explain_disk_faults(self.output):
            is_begun = any((self.output / "networks").glob("*.pt"))
            check_identity(self.output, self.config.identity(), is_begun)
            for name in ("networks", "maps"):
                (self.output / name).mkdir(exist_ok=True)
            facts = read_facts(self.output) if is_begun else None
            if facts is None:
                facts = check_data(self.config)
                write_facts(self.output, facts)
            self._train(facts)
            self._explain(facts)
            results = self.results()
            self._write(results, facts)
        return results

    def results(self) -> PlantedResults:
        """The results of everything that has been run.

        Raises:
            CannotRun: if nothing has been run, or a file is damaged.
        """
        return read_results(self.output, self.trainings, self.config.factories)

    def _train(self, facts: Facts) -> None:
        pending = [training for training in self.trainings if read_training(self.output, training) is None]
        work: Any = partial(train_network, self.config, facts)
        with self._progress("networks", len(pending), len(self.trainings)) as progress:
            for outcome in self.engine.run(work, pending):
                progress.advance(outcome.item.name, outcome.reason)
                if outcome.reason:
                    raise CannotRun(f"the network {outcome.item.name} could not be trained: {outcome.reason}")

    def _explain(self, facts: Facts) -> None:
        cells = [Maps(*training, method) for training in self.trainings for method in self.config.factories]
        done = [read_maps(self.output, cell) for cell in cells]
        pending = [cell for cell, known in zip(cells, done, strict=True) if known is None or known.reason]
        work: Any = partial(explain_network, self.config, facts)
        with self._progress("maps", len(pending), len(cells)) as progress:
            for outcome in self.engine.run(work, pending):
                if outcome.reason:
                    write_cell(self.output, outcome.item, Explanation(*outcome.item, reason=outcome.reason))
                progress.advance(outcome.item.name, outcome.reason)

    def _progress(self, title: str, num_pending: int, total: int) -> ProgressLine:
        return ProgressLine(self.console, title, total - num_pending, total, self.engine.num_parallel)

    def _write(self, results: PlantedResults, facts: Facts) -> None:
        results.write_table(self.output / "results.csv")
        results.write_summary(self.output / "summary.csv")
        scores = results.scores()
        if scores:
            save_figure(score_figure(results), self.output / "planted")
        grid = map_grid(self.output, [score.method for score in scores], facts.area) if scores else None
        if grid is not None:
            with replace_file(self.output / "maps.png") as file:
                grid.save(file, "PNG")


def check_data(config: PlantedConfig) -> Facts:
    """Adds marks to the data and tests an untrained network on one batch. Errors are then reported before anything is trained.

    Raises:
        CannotRun: if marks cannot be added to the data, there is no test data, the test does not log the accuracy, or the network
            gives no logits.
    """
    with determinism(0, config.num_threads):
        data = _set_up(config.plant("label", 0, None, None))
        if not data.splits[-1].startswith("test"):
            raise CannotRun("the datamodule has no test data, but the maps are compared on it: give it a test_dataloader")
        rows, columns = data.area(data.margin if config.margin is None else config.margin)
        assert data.value_range is not None
        area = (rows.start, rows.stop, columns.start, columns.stop)
        facts = Facts(data.num_classes, data.value_range, data.shape, area)
        if facts.share == 1:
            raise CannotRun("the mark and its margin cover the whole image, so that every map lies on it; give a smaller margin")
        model = config.model()
        metrics = test(model, _plant(config, facts, "label", 0), {**config.trainer, "limit_test_batches": 1}, None)
        accuracy = select_accuracy(metrics, config.metric)
        if not 0 <= accuracy <= 1:
            raise CannotRun(f"the accuracy must be 0 to 1, but the test logged {accuracy:g}; choose another metric, or log a share")
        explain_marks(model, None, data, num_images=2, batch_size=2, margin=0, trainer=config.trainer)
    return facts


def train_network(config: PlantedConfig, facts: Facts, training: Training) -> None:
    """Trains a network, if its weights are not there yet, and tests it with every kind of mark."""
    path = weights_path(config.folder, training)
    with determinism(training.seed, config.num_threads):
        model = config.model()
        if path.exists():  # an earlier process was stopped between training and test
            load_weights(model, read_checkpoint(path), path)
        else:
            options = {"enable_progress_bar": sys.stdout.isatty(), **config.trainer}
            fit(model, _plant(config, facts, TRAINING_MARKS[training.network], training.seed), config.max_epochs, options, None)
            with replace_file(path) as file:
                torch.save(model.state_dict(), file)
        accuracies, predictions = {}, {}
        for mark in get_args(Mark):
            metrics = test(model, _plant(config, facts, mark, training.seed), config.trainer, None)
            accuracies[mark] = select_accuracy(metrics, config.metric)
            predictions[mark] = _run(config, model, None, _set_up(_plant(config, facts, mark, training.seed))).predictions
    follows = (predictions["label"] != predictions["shuffled"]).tolist()
    write_cell(config.folder, training, TrainedNetwork(*training, accuracies, follows, hash_file(path)))


def explain_network(config: PlantedConfig, facts: Facts, cell: Maps) -> None:
    """Explains test images, with the mark of the label, with a method."""
    path, trained = weights_path(config.folder, cell.training), read_training(config.folder, cell.training)
    if trained is None or hash_file(path) != trained.weights:
        raise CannotRun(f"{path} was changed after it was tested; remove it and cells/{cell.training.name}.json to train it again")
    with determinism(cell.seed, config.num_threads):
        model = config.model()
        load_weights(model, read_checkpoint(path), path)
        explained = _run(config, model, config.factories[cell.method], _set_up(_plant(config, facts, "label", cell.seed)))
    if cell.seed == 0:
        write_shown_maps(config.folder, cell, explained.images.numpy(), explained.maps.numpy())
    values = {metric: [round(value, 6) for value in getattr(explained, metric).tolist()] for metric in METRICS}
    write_cell(config.folder, cell, Explanation(*cell, values))


def _run(config: PlantedConfig, model: LightningModule, factory: Any, data: PlantedShortcut) -> Explained:
    return explain_marks(
        model,
        factory,
        data,
        num_images=config.num_images,
        batch_size=config.batch_size,
        margin=config.margin,
        num_shown=NUM_SHOWN,
        trainer=config.trainer,
    )


def _plant(config: PlantedConfig, facts: Facts, mark: Mark, seed: int) -> PlantedShortcut:
    return config.plant(mark, seed, facts.num_classes, facts.value_range)


def _set_up(data: PlantedShortcut) -> PlantedShortcut:
    data.prepare_data()
    data.setup("test")
    return data
