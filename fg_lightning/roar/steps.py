"""The weights of the network that is explained, on disk.

What is done in the parts of an experiment, wherever they run.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torchmetrics.functional.image import total_variation

from fg_lightning.atomic_files import replace_file, write_json
from fg_lightning.attribution import Factory
from fg_lightning.checkpoints import one_line, read_checkpoint
from fg_lightning.errors import CannotRun
from fg_lightning.removal import Fill, Order
from fg_lightning.roar.cell_training import ALL, Cell, Result, deterministic, fitted, tested
from fg_lightning.roar.compute_ranks import Explained, predictor
from fg_lightning.roar.datamodule import ROARDataModule
from fg_lightning.roar.experiment_folder import room
from fg_lightning.roar.results import SUMMARY, Results
from fg_lightning.roar.store import SaliencyStore

Weights = Mapping[str, Any]


def write_weights(path: Path, weights: Weights) -> None:
    """Raises what `replace_file` does."""
    with replace_file(path) as file:
        torch.save(weights, file)


def read_weights(path: Path) -> Weights:
    """Those of a checkpoint of Lightning's, or of a saved `state_dict`.

    Raises:
        CannotRun: if the file cannot be read, or holds something else.
    """
    found = read_checkpoint(path)
    weights = found.get("state_dict", found)
    if not isinstance(weights, Mapping):
        raise CannotRun(f"{path} holds {type(weights).__name__}, but a checkpoint of Lightning's or a state_dict is needed")
    return weights


def load_weights(model: LightningModule, weights: Weights, path: Path) -> None:
    """
    Args:
        model: whose weights they become; one that Lightning makes whole in `configure_model` is made whole first.
        weights: by name.
        path: that they came from.

    Raises:
        CannotRun: if they are not of this model.
    """
    model.configure_model()
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CannotRun(f"the checkpoint {path} is not of this model: {one_line(error)}") from error


def check_base(about: Path, path: Path) -> None:
    """Compares the network that is explained with its hash in the experiment's file, and writes it there if there is none.

    Args:
        about: the file that says what the experiment is.
        path: of the weights.

    Raises:
        CannotRun: if the weights are not those that the experiment began with.
    """
    there, found = json.loads(about.read_text()), hash_of(path)
    if "base" not in there:
        write_json(about, {**there, "base": found})
    elif there["base"] != found:
        raise CannotRun(
            f"{path} was changed: it is not the network that this experiment explains. Bring it back from a copy, or take another "
            "folder with --output"
        )


def hash_of(path: Path) -> str:
    """
    Raises:
        CannotRun: if the file cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise CannotRun(_unreadable(path, error)) from error


def _unreadable(path: Path, error: OSError) -> str:
    return f"the checkpoint {path} cannot be read: {error.strerror}"


Mode = Literal["roar", "kar", "road"]

BASE_SEED = 0
"""Of the network that is explained."""

MASKS = 500
"""So many test images' masks the total variation is the mean of."""


@dataclass(frozen=True)
class Plan:
    """What a cell is run with; goes to other machines whole.

    Attributes:
        output: the experiment's folder, which they share.
        data: makes the user's datamodule.
        model: makes an untrained network.
        methods: factories by name.
        mode: "roar", "kar" or "road".
        order: "morf" or "lerf".
        imputation: see `ROARDataModule`.
        max_epochs: of every training.
        target: see `SaliencyStore.make`.
        metric: the logged test metric that counts as accuracy; None for the one with "acc" in its name.
        chunk: see `SaliencyStore.make`.
        threads: of torch, the same wherever a cell runs, since sums change with them.
        prepare: see `ROARDataModule`.
        transform: see `ROARDataModule`.
        trainer: further arguments of every Trainer.
        wandb: project and group of a run a cell; None for none.
    """

    output: Path
    data: Callable[[], LightningDataModule]
    model: Callable[[], LightningModule]
    methods: Mapping[str, Factory]
    mode: Mode
    order: Order
    imputation: Fill
    max_epochs: int
    target: Explained
    metric: str | None
    chunk: int
    threads: int
    prepare: Any = None
    transform: Any = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    wandb: Mapping[str, Any] | None = None

    @property
    def base_path(self) -> Path:
        return self.output / "base.pt"

    def store_path(self, method: str) -> Path:
        return self.output / "stores" / method

    def rehearse(self, seed: int) -> None:
        """Tests an untrained network on one batch: what is wrong with a test is said before anything is trained for it.

        Raises:
            CannotRun: if there is no test data, or the test does not log the metric that counts.
        """
        with deterministic(seed, self.threads):
            metrics = tested(self.model(), self.data(), {**self.trainer, "limit_test_batches": 1}, None)
        accuracy_of(metrics, self.metric)

    def train_base(self, seed: int) -> None:
        """Trains the network that is explained, and writes its weights."""
        with deterministic(seed, self.threads):
            model = self.model()
            fitted(model, self.data(), self.max_epochs, {"enable_progress_bar": sys.stdout.isatty(), **self.trainer}, None)
        with room(self.output):
            write_weights(self.base_path, model.state_dict())

    def make_store(self, method: str) -> None:
        """Explains every image by a method."""
        with room(self.output), deterministic(BASE_SEED, self.threads):
            SaliencyStore.make(
                self.store_path(method),
                self._base_model(),
                self.data(),
                self.methods[method],
                target=self.target,
                chunk=self.chunk,
                prepare=self.prepare,
                transform=self.transform,
                trainer=predictor({name: self.trainer[name] for name in ("accelerator", "devices") if name in self.trainer}),
            )

    def run_cell(self, cell: Cell) -> Result:
        """Trains on what a method has left of the images, and tests on it; in mode "road" tests the base model."""
        start = time.monotonic()
        method = next(iter(self.methods)) if cell.method == ALL else cell.method
        store = SaliencyStore(self.store_path(method))
        with deterministic(cell.seed, self.threads):
            model = self._base_model() if self.mode == "road" else self.model()
            data = ROARDataModule(
                self.data(),
                store,
                cell.fraction,
                self.order,
                self.imputation,
                self.mode == "kar",
                prepare=self.prepare,
                transform=self.transform,
                seed=cell.seed,
            )
            logger = self._logger(cell)
            try:
                if self.mode != "road":
                    fitted(model, data, self.max_epochs, self.trainer, logger)
                metrics = tested(model, data, self.trainer, logger)
            finally:
                if logger is not None:
                    logger.experiment.finish()
        masks = torch.from_numpy(data.masks(store.splits[-1], MASKS)).unsqueeze(1).float()
        variation = float(total_variation(masks, reduction="mean")) / store.manifest.pixels if masks.ndim == 4 else None
        return Result(cell, accuracy_of(metrics, self.metric), metrics, variation, round(time.monotonic() - start, 3))

    def _base_model(self) -> LightningModule:
        model = self.model()
        load_weights(model, read_weights(self.base_path), self.base_path)
        return model

    def _logger(self, cell: Cell) -> Any:
        if self.wandb is None:
            return None
        from lightning.pytorch.loggers import WandbLogger

        settings = {"mode": self.mode, "order": self.order, "max_epochs": self.max_epochs, "imputation": str(self.imputation)}
        return WandbLogger(name=cell.name, save_dir=self.output, config={**vars(cell), **settings}, **self.wandb)

    def log_summary(self, results: Results) -> None:
        """Logs the scores, the table and the curves to Weights & Biases, where the experiment has a project there."""
        if self.wandb is None:
            return
        import wandb

        with wandb.init(name="summary", dir=self.output, **self.wandb) as run:
            rows = [[r.cell.method, r.cell.fraction, r.cell.seed, r.accuracy, r.total_variation] for r in results.results]
            columns: list[Any] = [*SUMMARY]
            run.log(
                {
                    "roar/curves": wandb.Image(str(self.output / "curves.png")),
                    "roar/summary": wandb.Table(columns=columns, data=[list(vars(score).values()) for score in results.scores()]),
                    "roar/results": wandb.Table(columns=[*"method fraction seed accuracy total_variation".split()], data=rows),
                }
            )


def accuracy_of(metrics: Mapping[str, float], name: str | None) -> float:
    """The test metric that counts.

    Raises:
        CannotRun: if it was not logged, or none or several could be meant.
    """
    if name is not None:
        if name not in metrics:
            raise CannotRun(
                f"the test logged no metric {name!r}, but {', '.join(metrics) or 'nothing'}; name one of these with metric"
            )
        return metrics[name]
    found = [key for key in metrics if "acc" in key.lower()]
    if len(found) != 1:
        raise CannotRun(
            f"the test logged {', '.join(metrics) or 'nothing'}, of which {len(found)} have 'acc' in their names; say with metric "
            "which one counts (a LightningModule logs it in its test_step)"
        )
    return metrics[found[0]]
