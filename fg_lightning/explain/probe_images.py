"""The images that all checkpoints of a training are explained on: of its data, or pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from fg_lightning.callbacks.probe_source import load_probe, reads_by_index, training_loader, validation_loader
from fg_lightning.checkpoints import one_line
from fg_lightning.errors import CannotRun
from fg_lightning.explain.load_network import Transform
from fg_lightning.explain.pictures import find_pictures, read_picture
from fg_lightning.recording.probe import Probe
from fg_lightning.visualization.film_strips import spread_indices


def probe_of_data(make_data: Callable[[], LightningDataModule], network: nn.Module, num_samples: int) -> tuple[Probe, list[Any]]:
    """The images that a monitor takes from a datamodule: of its validation data, through the hooks that change batches.

    Lightning itself prepares the data, as before a fit, and is stopped before anything else happens.

    Args:
        make_data: makes the datamodule.
        network: the module whose hooks change batches, if it is a LightningModule.
        num_samples: number of images.

    Returns:
        The images, and what tells their normalization and classes.

    Raises:
        CannotRun: if the data cannot be prepared or hold no images.
    """
    reader = _ProbeReader(num_samples)
    try:
        data = make_data()
        with _quiet_lightning():
            trainer = Trainer(
                accelerator="cpu",
                devices=1,
                max_epochs=1,
                logger=False,
                callbacks=[reader],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(network if isinstance(network, LightningModule) else _AnyNetwork(), datamodule=data)
    except _ProbeRead:
        pass
    except CannotRun:
        raise
    except Exception as error:
        raise CannotRun(f"the images could not be read from the data: {type(error).__name__}: {one_line(error)}") from error
    if reader.probe is None:
        raise CannotRun("the images could not be read from the data, because Lightning did not set them up")
    return reader.probe, [reader.loader, data]


def probe_of_pictures(folder: Path, transform: Transform, num_samples: int) -> tuple[Probe, list[Path]]:
    """Pictures without labels, evenly spread over a folder in the order of their names.

    Args:
        folder: with pictures, also in folders in it.
        transform: makes a picture into [C, H, W]; all of one shape.
        num_samples: the largest number of pictures.

    Returns:
        The images, and the files that they are from.

    Raises:
        CannotRun: if there are none, or one cannot be read.
    """
    files = find_pictures(str(folder))
    files = [files[index] for index in spread_indices(len(files), num_samples)]
    images = [read_picture(path, transform) for path in files]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise CannotRun(f"the transform makes images of several shapes ({', '.join(map(str, sorted(shapes)))}); one is needed")
    return Probe.from_user(torch.stack(images)), files


class _ProbeRead(Exception):
    """Stops Lightning when the data are set up."""


class _ProbeReader(Callback):
    """Takes the images where a monitor does, and stops."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.probe: Probe | None = None
        self.loader: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        loader = validation_loader(trainer) if trainer.enable_validation else None
        if loader is None:
            trainer.fit_loop.setup_data()
            loader = training_loader(trainer)
        self.loader = loader
        if reads_by_index(loader):
            self.probe = load_probe(loader, self.num_samples, trainer, pl_module)
        else:  # a stream
            self.probe = Probe.from_batch(next(iter(loader)), self.num_samples)
        raise _ProbeRead


class _AnyNetwork(LightningModule):
    """Stands for a network that is no LightningModule, so that Lightning reads the data."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        raise NotImplementedError

    def configure_optimizers(self) -> None:
        raise NotImplementedError


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's words about devices and tips."""
    loggers = [
        logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
