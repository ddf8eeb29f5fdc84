"""Measure a snapshot of the monitor in training steps: python benchmarks/monitor.py [--networks digits] [--num_snapshots 9]

A step is one batch with as many images as the probe (8) in a running fit: forward, backward and Adam's update. A snapshot is all
the work of the monitor at the end of an epoch: maps and numbers, pictures, files and the logger's call. The time of each snapshot
is divided by that of the median step of its epoch. A row has the lowest, median and highest of these ratios. The first two
snapshots are left out, since they import the libraries for drawing and create the folder. `--clock cpu` measures the processor time
of this process instead, which a busy machine disturbs less; it does not include W&B's service, which is another process.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fg_lightning import FullGradMonitor
from fg_lightning.demo import DigitClassifier

PROBE = 8
STEPS = 5
LEFT_OUT = 2
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
SIZES = {"digits": ((1, 28, 28), 10), "resnet18": ((3, 224, 224), 1000), "resnet50": ((3, 224, 224), 1000)}
LOGGERS: dict[str, Callable[[Path], Logger | bool]] = {
    "none": lambda folder: False,
    "CSV": CSVLogger,
    "TensorBoard": TensorBoardLogger,
    "W&B": lambda folder: WandbLogger(save_dir=folder, offline=True),
}


class Classifier(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-4)


class Clock(Callback):
    """Records the times of steps and of the ends of epochs. One clock before and one after the monitor measure its time."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.steps: list[list[float]] = []
        self.ends: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.steps.append([])

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = self._now()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps[-1].append(self._now() - self._start)

    def on_train_epoch_end(self, *_: Any) -> None:
        self.ends.append(self._now())


def module_of(name: str) -> LightningModule:
    return DigitClassifier() if name == "digits" else Classifier(torchvision.models.get_model(name, weights=None))


def measure(
    name: str, logger: Logger | bool, num_snapshots: int, folder: Path, now: Callable[[], float] = time.perf_counter
) -> tuple[list[float], list[float]]:
    """For every epoch, the seconds of its median step and of the snapshot at its end."""
    seed_everything(0, verbose=False)
    shape, classes = SIZES[name]
    data = TensorDataset(torch.rand(STEPS * PROBE, *shape), torch.randint(classes, (STEPS * PROBE,)))
    before, after = Clock(now), Clock(now)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    # One extra epoch is not measured: its snapshot also draws the strip of the whole run.
    trainer = Trainer(
        max_epochs=LEFT_OUT + num_snapshots + 1,
        accelerator="cpu",
        logger=logger,
        callbacks=[before, FullGradMonitor(num_samples=PROBE, strict=True), after],
        default_root_dir=folder,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        **quiet,
    )
    trainer.fit(module_of(name), DataLoader(data, PROBE), DataLoader(data, PROBE))
    steps = [median(of_epoch) for of_epoch in after.steps]
    took = [end - start for start, end in zip(before.ends, after.ends, strict=True)]
    return steps[LEFT_OUT:-1], took[LEFT_OUT:-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--loggers", nargs="+", choices=LOGGERS, default=list(LOGGERS))
    parser.add_argument("--num_snapshots", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ["WANDB_SILENT"] = "true"
    console = Console(width=110)
    machine = f"{torch.get_num_threads()} thread(s), {platform.system()}, torch {torch.__version__}"
    title = f"a snapshot of {PROBE} images, {options.clock} time, {machine}"
    table = Table("network", "logger", "step, ms", "snapshot, ms", "in steps: lowest", "median", "highest", title=title)
    for network in options.networks:
        for kind in options.loggers:
            with tempfile.TemporaryDirectory() as folder:
                logger = LOGGERS[kind](Path(folder))
                steps, snapshots = measure(network, logger, options.num_snapshots, Path(folder), CLOCKS[options.clock])
                if isinstance(logger, WandbLogger):
                    logger.experiment.finish()
            console.print(f"{network} with {kind}: done")
            ratios = [snapshot / step for snapshot, step in zip(snapshots, steps, strict=True)]
            times = [f"{1e3 * median(seconds):.1f}" for seconds in (steps, snapshots)]
            table.add_row(network, kind, *times, *(f"{number:.2f}" for number in (min(ratios), median(ratios), max(ratios))))
    console.print(table)


if __name__ == "__main__":
    main()
