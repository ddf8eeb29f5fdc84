"""Explains every image of every split with Trainer.predict, so that devices and nodes share the work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fg_lightning.attribution import Factory
from fg_lightning.attribution.controls import Blurred
from fg_lightning.errors import CannotRun, StoreError
from fg_lightning.fullgrad import FullGrad
from fg_lightning.recording.explainer import device_of
from fg_lightning.removal import ranks
from fg_lightning.roar.cell_training import QUIET, silence_lightning
from fg_lightning.roar.dataset_views import SplitView
from fg_lightning.roar.experiment_folder import explain_disk_faults
from fg_lightning.roar.explained_class import choose_classes, compute_maps
from fg_lightning.roar.image_pixels import Picture, apply_transform, channel_sums, images_and_labels, spatial_shape
from fg_lightning.roar.saliency_store_files import Manifest, StoreWriter


class ImageBatch(NamedTuple):
    """Consecutive images of a split.

    Attributes:
        split: name of the split.
        number: number of the batch, from 0.
        start: index of its first image.
        samples: the batch that the user's collation gives.
        place: index or key of the images in a sample, and in `samples` if that has the same form.
        sums: sum of each channel over all pixels before the transform, [C].
    """

    split: str
    number: int
    start: int
    samples: Any
    place: Any
    sums: npt.NDArray[np.float64]


class UnfinishedBatches(Dataset[ImageBatch]):
    """The batches of a store that are not finished."""

    def __init__(self, writer: StoreWriter, views: Mapping[str, SplitView], unfinished: list[tuple[str, int]]) -> None:
        self.writer = writer
        self.views = dict(views)
        self.unfinished = unfinished
        first = next(iter(self.views.values())).plane.image(0)
        self.shape = [len(channel_sums(first)), *spatial_shape(first)]

    def __len__(self) -> int:
        return len(self.unfinished)

    def __getitem__(self, index: int) -> ImageBatch:
        split, number = self.unfinished[index]
        view, indices = self.views[split], self.writer.image_range(split, number)
        samples = [view.plane[i] for i in indices]
        sums = [
            self._sums(f"image {i} of the {split} data set", sample[view.plane.place])
            for i, sample in zip(indices, samples, strict=True)
        ]
        collate = list(self.views.values())[-1].loader.collate_fn
        collated = collate([apply_transform(sample, view.plane.place, view.evaluation) for sample in samples])
        return ImageBatch(split, number, indices.start, collated, view.plane.place, np.sum(sums, axis=0))

    def _sums(self, name: str, picture: Picture) -> npt.NDArray[np.float64]:
        """The picture's `channel_sums`.

        Raises:
            CannotRun: if it does not have the size and the channels of the first image.
        """
        sums = channel_sums(picture)
        shape = [len(sums), *spatial_shape(picture)]
        if shape != self.shape:
            raise CannotRun(
                f"{name} is {shape} before its transform (channels first), but others are {self.shape}: bring all images to the "
                "network's size and number of channels with prepare=..., such as "
                "torchvision.transforms.v2.Compose([RGB(), Resize(256), CenterCrop(224)])"
            )
        return sums


class RankPredictor(LightningModule):
    """Predicts the ranks of a batch's pixels."""

    def __init__(self, model: nn.Module, factory: Factory, manifest: Manifest) -> None:
        super().__init__()
        self.model = model
        self._attribution = factory(model, **manifest.settings)
        drawn = self._attribution.attribution if isinstance(self._attribution, Blurred) else self._attribution
        if isinstance(drawn, FullGrad):
            # A store has many batches of one shape, and its network does not change between them.
            drawn.graphed = manifest.settings.get("graphed", True)
        self._target = manifest.target
        self._seed = manifest.seed

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> npt.NDArray[Any]:
        images, labels = images_and_labels(batch.samples, batch.place)
        indices = range(batch.start, batch.start + len(images))
        classes = choose_classes(self._target, labels, self.model, images, batch.split, indices, self._seed)
        maps = compute_maps(self._attribution, images, classes)
        seeds = [self._seed + i for i in indices]
        places: npt.NDArray[Any] = ranks(maps.cpu(), seeds).numpy()
        return places


class RankWriter(BasePredictionWriter):
    """Writes every prediction to a store, and finishes the store."""

    def __init__(self, writer: StoreWriter) -> None:
        super().__init__("batch")
        self.writer = writer

    def write_on_batch_end(
        self, trainer: Any, pl_module: Any, prediction: Any, batch_indices: Any, batch: Any, batch_idx: int, dataloader_idx: int
    ) -> None:
        if prediction.shape[1:] != self.writer.manifest.shape:
            raise ValueError(
                f"maps are {prediction.shape[1:]}, but images are {self.writer.manifest.shape} before their transform, so their "
                "pixels do not correspond. Bring images to the network's size with prepare=..., separately from the rest of "
                "the transform"
            )
        self.writer.write(batch.split, batch.number, prediction, batch.sums)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier("ranked")
        if trainer.is_global_zero:
            self.writer.finish()
        trainer.strategy.barrier("finished")


class UnfinishedBatchesDataModule(LightningDataModule):
    """Begins or resumes a store, and gives the same unfinished batches to every process.

    Batches pass through the same hooks as in a test: the datamodule's, or else the network's.
    """

    def __init__(self, writer: StoreWriter, views: Mapping[str, SplitView], data: LightningDataModule, model: nn.Module) -> None:
        super().__init__()
        self.writer = writer
        self.views = views
        self.data = data
        self.model = model

    def setup(self, stage: str) -> None:
        answer: tuple[list[tuple[str, int]] | None, str] = (None, "")
        assert self.trainer is not None
        self.data.trainer = self.trainer
        if self.trainer.is_global_zero:
            try:
                with explain_disk_faults(self.writer.folder):
                    self.writer.begin()
                    answer = (self.writer.unfinished_batches(), "")
            except (CannotRun, OSError) as error:
                answer = (None, str(error))
        unfinished, reason = self.trainer.strategy.broadcast(answer)
        if unfinished is None:  # all processes stop, not only the first one
            raise StoreError(reason)
        self.unfinished = unfinished

    def predict_dataloader(self) -> DataLoader[ImageBatch]:
        num_workers = next(iter(self.views.values())).loader.num_workers
        batches = UnfinishedBatches(self.writer, self.views, self.unfinished)
        return DataLoader(batches, batch_size=1, num_workers=num_workers, collate_fn=_first)

    def transfer_batch_to_device(self, batch: ImageBatch, device: torch.device, dataloader_idx: int) -> ImageBatch:
        samples = self._hook("on_before_batch_transfer")(batch.samples, dataloader_idx)
        samples = self._hook("transfer_batch_to_device")(samples, device, dataloader_idx)
        return batch._replace(samples=self._hook("on_after_batch_transfer")(samples, dataloader_idx))

    def _hook(self, name: str) -> Callable[..., Any]:
        is_models = isinstance(self.model, LightningModule) and not is_overridden(name, self.data, LightningDataModule)
        hook: Callable[..., Any] = getattr(self.model if is_models else self.data, name)
        return hook


def make_predictor(options: Mapping[str, Any]) -> Trainer:
    """A Trainer that writes and prints nothing, with further arguments."""
    with silence_lightning():
        return Trainer(**{**QUIET, **options})


def compute_ranks(
    writer: StoreWriter,
    views: Mapping[str, SplitView],
    data: LightningDataModule,
    model: nn.Module,
    factory: Factory,
    trainer: Trainer | None,
) -> None:
    """Computes the ranks that a store lacks, and writes them.

    Args:
        writer: writer of the store.
        views: the splits by name.
        data: the user's datamodule. Its batch hooks are called.
        model: the network.
        factory: factory of the method.
        trainer: the Trainer whose `predict` is used. None: a Trainer with one device.
    """
    module, device = RankPredictor(model, factory, writer.manifest), device_of(model)
    trainer = trainer or make_predictor({"enable_progress_bar": sys.stdout.isatty()})
    callback = RankWriter(writer)
    trainer.callbacks.append(callback)  # type: ignore[attr-defined]
    try:
        with silence_lightning():
            trainer.predict(module, datamodule=UnfinishedBatchesDataModule(writer, views, data, model), return_predictions=False)
    finally:
        trainer.callbacks.remove(callback)  # type: ignore[attr-defined]
        model.to(device)  # Lightning leaves it on the CPU


def _first(batches: list[ImageBatch]) -> ImageBatch:
    return batches[0]
