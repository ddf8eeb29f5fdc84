"""Finds the images that are explained at all checkpoints of a training: from its datamodule, or pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from fg_lightning.callbacks.probe_finder import ProbeChoice, ProbeFinder
from fg_lightning.callbacks.probe_source import training_loader, validation_loader
from fg_lightning.checkpoints import one_line
from fg_lightning.errors import CannotRun
from fg_lightning.explain.load_network import Transform
from fg_lightning.explain.pictures import find_pictures, read_picture
from fg_lightning.recording.messages import Messages
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.settings import Settings
from fg_lightning.visualization.film_strips import spread_indices


def probe_of_data(
    make_data: Callable[[], LightningDataModule],
    network: nn.Module,
    num_samples: int,
    choice: Literal["balanced", "hardest"] | Sequence[int] | None,
    settings: Settings,
    messages: Messages,
) -> tuple[Probe, list[Any]]:
    """The images that a monitor would use of a datamodule: from its validation data, after the hooks that change batches.

    Lightning prepares the data as for a fit, and is stopped before training begins.

    Args:
        make_data: class of the datamodule, or a function that makes one.
        network: the network. If it is a LightningModule, its hooks change batches. The hardest images have its highest losses.
        num_samples: number of images.
        choice: as the monitor's `probe`. None: the images of the hook `fullgrad_probe`, or else as many of each class.
        settings: settings of the explanation.
        messages: receives notes if the choice cannot be followed.

    Returns:
        The images, and the objects that hold their normalization and classes.

    Raises:
        CannotRun: if the data cannot be prepared or hold no images.
    """
    try:
        asked = ProbeChoice.from_user(choice)
    except ValueError as error:
        raise CannotRun(str(error)) from error
    finder = ProbeFinder(asked, is_asked=choice is not None, num_samples=num_samples, settings=settings, messages=messages)
    reader = _ProbeReader(finder)
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
            trainer.fit(network if isinstance(network, LightningModule) else _AnyNetwork(network), datamodule=data)
    except _ProbeRead:
        pass
    except CannotRun:
        raise
    except Exception as error:
        raise CannotRun(f"the images could not be read from the data: {type(error).__name__}: {one_line(error)}") from error
    if reader.probe is None:
        raise CannotRun("the images could not be read from the data: Lightning did not set it up; check the datamodule's loaders")
    return reader.probe, [reader.loader, data]


def probe_of_pictures(folder: Path, transform: Transform, num_samples: int) -> tuple[Probe, list[Path]]:
    """Pictures of a folder, without labels, evenly spaced in the order of their names.

    Args:
        folder: folder of pictures. Its subfolders are searched, too.
        transform: function from a picture to [C, H, W], the same shape for all pictures.
        num_samples: largest number of pictures.

    Returns:
        The images, and their files.

    Raises:
        CannotRun: if there are none, or one cannot be read.
    """
    files = find_pictures(str(folder))
    files = [files[index] for index in spread_indices(len(files), num_samples)]
    images = [read_picture(path, transform) for path in files]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise CannotRun(
            f"the transform gives images of several shapes ({', '.join(map(str, sorted(shapes)))}); make it give one shape"
        )
    return Probe.from_user(torch.stack(images)), files


class _ProbeRead(Exception):
    """Stops Lightning after the data is set up."""


class _ProbeReader(Callback):
    """Reads the probe at the same point as a monitor, and stops Lightning."""

    def __init__(self, finder: ProbeFinder) -> None:
        self.finder = finder
        self.probe: Probe | None = None
        self.loader: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.enable_validation:
            trainer.fit_loop.setup_data()
        self.loader = validation_loader(trainer) if trainer.enable_validation else training_loader(trainer)
        probe = self.finder.find(trainer, pl_module, is_trained=True)
        self.probe = self.finder.from_stream(next(iter(self.loader))) if probe is None else probe
        raise _ProbeRead


class _AnyNetwork(LightningModule):
    """Wraps a network that is not a LightningModule, so that Lightning can read the data."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        raise NotImplementedError

    def configure_optimizers(self) -> None:
        raise NotImplementedError


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silences Lightning's messages about devices and its tips."""
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
