"""Every image of every split through an attribution method, as a prediction that devices and nodes share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fg_lightning.attribution import Factory, find_method
from fg_lightning.errors import CannotRun, StoreError, UnfitData
from fg_lightning.removal import ranks
from fg_lightning.roar.cell_training import quiet
from fg_lightning.roar.config import described
from fg_lightning.roar.dataset_views import View, views_of
from fg_lightning.roar.experiment_folder import room
from fg_lightning.roar.image_pixels import Picture, channel_sums, finished, spatial_shape
from fg_lightning.roar.manifest import NAME, Manifest, SplitIdentity, model_fingerprint, read_manifest
from fg_lightning.roar.store_writer import Draft

SILENT: dict[str, Any] = {
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

Explained = Literal["predicted", "label"]


class Chunk(NamedTuple):
    """Consecutive images of a split.

    Attributes:
        split: by name.
        number: of the chunk.
        start: index of its first image.
        batch: as the user's collation gives it.
        place: of the images in a sample, and in a batch where it has the same form.
        sums: of every channel over the pixels before their transform, [C].
    """

    split: str
    number: int
    start: int
    batch: Any
    place: Any
    sums: npt.NDArray[np.float64]


class Chunks(Dataset[Chunk]):
    """The chunks that are not done yet."""

    def __init__(self, draft: Draft, views: Mapping[str, View], remaining: list[tuple[str, int]]) -> None:
        self.draft = draft
        self.views = dict(views)
        self.remaining = remaining
        first = next(iter(self.views.values())).plane.image(0)
        self.shape = [len(channel_sums(first)), *spatial_shape(first)]

    def __len__(self) -> int:
        return len(self.remaining)

    def __getitem__(self, index: int) -> Chunk:
        split, number = self.remaining[index]
        view, places = self.views[split], self.draft.places(split, number)
        samples = [view.plane[place] for place in places]
        sums = [
            self._sums(f"image {place} of the {split} data set", sample[view.plane.place])
            for place, sample in zip(places, samples, strict=True)
        ]
        batch = list(self.views.values())[-1].loader.collate_fn([finished(s, view.plane.place, view.evaluation) for s in samples])
        return Chunk(split, number, places.start, batch, view.plane.place, np.sum(sums, axis=0))

    def _sums(self, name: str, picture: Picture) -> npt.NDArray[np.float64]:
        """The picture's `channel_sums`, if it has the channels and the size that all have."""
        sums = channel_sums(picture)
        found = [len(sums), *spatial_shape(picture)]
        if found != self.shape:
            raise CannotRun(
                f"{name} is {found} before its transform, channels first, others are {self.shape}: bring them to the network's "
                "size and channels first with prepare=..., such as "
                "torchvision.transforms.v2.Compose([RGB(), Resize(256), CenterCrop(224)])"
            )
        return sums


class Ranking(LightningModule):
    """Predicts the ranks of a chunk's pixels."""

    def __init__(self, model: nn.Module, factory: Factory, settings: Mapping[str, Any], target: Explained, seed: int) -> None:
        super().__init__()
        self.model = model
        self._attribution = factory(model, **settings)
        self._target = target
        self._seed = seed

    def predict_step(self, batch: Chunk, batch_idx: int) -> npt.NDArray[Any]:
        images, labels = images_and_labels(batch.batch, batch.place)
        if self._target == "label" and labels is None:
            raise CannotRun(
                "target='label' takes labels, but no integers [N] were found behind the images in the batches; let the data set "
                "give the label after the image, or take target='predicted'"
            )
        with torch.enable_grad():
            maps = self._attribution.attribute(images, labels if self._target == "label" else None)
        ties = [self._seed + batch.start + i for i in range(len(images))]
        places: npt.NDArray[Any] = ranks(maps.cpu(), ties).numpy()
        return places


class RankWriter(BasePredictionWriter):
    """Begins or resumes a store, writes every prediction into it, and finishes it."""

    def __init__(self, draft: Draft) -> None:
        super().__init__("batch")
        self.draft = draft

    def write_on_batch_end(
        self, trainer: Any, pl_module: Any, prediction: Any, batch_indices: Any, batch: Any, batch_idx: int, dataloader_idx: int
    ) -> None:
        if prediction.shape[1:] != self.draft.manifest.shape:
            raise ValueError(
                f"maps are {prediction.shape[1:]}, but images {self.draft.manifest.shape} before their transform: pixels "
                "of one are not those of the other. Say with prepare=... what brings images to the network's size, apart from the "
                "rest of the transform"
            )
        self.draft.write(batch.split, batch.number, prediction, batch.sums)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier("ranked")
        if trainer.is_global_zero:
            self.draft.finish()
        trainer.strategy.barrier("finished")


class Remaining(LightningDataModule):
    """The same remaining chunks for every process, as the first one found them.

    Their batches go through the hooks that the user's would go through in a test: the datamodule's, else the network's.
    """

    def __init__(self, draft: Draft, views: Mapping[str, View], data: LightningDataModule, model: nn.Module) -> None:
        super().__init__()
        self.draft = draft
        self.views = views
        self.data = data
        self.model = model

    def setup(self, stage: str) -> None:
        found: tuple[list[tuple[str, int]] | None, str] = (None, "")
        assert self.trainer is not None
        self.data.trainer = self.trainer
        if self.trainer.is_global_zero:
            try:
                with room(self.draft.folder):
                    self.draft.begin()
                    found = (self.draft.remaining(), "")
            except (CannotRun, OSError) as error:
                found = (None, str(error))
        remaining, reason = self.trainer.strategy.broadcast(found)
        if remaining is None:  # all processes stop, not only the one that looked
            raise StoreError(reason)
        self.remaining = remaining

    def predict_dataloader(self) -> DataLoader[Chunk]:
        workers = next(iter(self.views.values())).loader.num_workers
        chunks = Chunks(self.draft, self.views, self.remaining)
        return DataLoader(chunks, batch_size=1, num_workers=workers, collate_fn=_only)

    def transfer_batch_to_device(self, batch: Chunk, device: torch.device, dataloader_idx: int) -> Chunk:
        own = self._hook("on_before_batch_transfer")(batch.batch, dataloader_idx)
        own = self._hook("transfer_batch_to_device")(own, device, dataloader_idx)
        return batch._replace(batch=self._hook("on_after_batch_transfer")(own, dataloader_idx))

    def _hook(self, name: str) -> Callable[..., Any]:
        is_models = isinstance(self.model, LightningModule) and not is_overridden(name, self.data, LightningDataModule)
        hook: Callable[..., Any] = getattr(self.model if is_models else self.data, name)
        return hook


def predictor(given: Mapping[str, Any]) -> Trainer:
    """A trainer that writes nothing and says nothing, with further arguments."""
    with quiet():
        return Trainer(**{**SILENT, **given})


def make_store(
    folder: Path,
    model: nn.Module,
    data: LightningDataModule,
    method: Union[str, Factory],
    settings: Mapping[str, Any],
    target: Explained,
    chunk: int,
    seed: int,
    prepare: Any,
    transform: Any,
    trainer: Trainer | None,
) -> None:
    """What `SaliencyStore.make` says."""
    factory = find_method(method)
    if target not in ("predicted", "label"):
        raise ValueError(f"target must be 'predicted' or 'label', not {target!r}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 image, not {chunk}")
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    views = views_of(data, prepare=prepare, transform=transform)
    first = next(iter(views.values()))
    manifest = Manifest(
        method=described(method),
        settings=settings,
        target=target,
        model=model_fingerprint(model),
        shape=first.shape,
        chunk=chunk,
        splits={
            name: SplitIdentity(len(view.plane), view.fingerprint(), type(view.loader.dataset).__name__)
            for name, view in views.items()
        },
        seed=seed,
    )
    draft = Draft(folder, manifest)
    if (folder / NAME).exists() and read_manifest(folder).finished and not read_manifest(folder).difference(manifest):
        damaged = draft.reopen()
        if not damaged:
            return
        rank_zero_warn(
            f"the saliency store {folder} was changed after it was written, as its checksums tell: {damaged} "
            f"{'chunk' if damaged == 1 else 'chunks'} of {chunk} images are made again"
        )
    module = Ranking(model, factory, settings, target, seed)
    trainer = trainer or predictor({"enable_progress_bar": sys.stdout.isatty()})
    writer = RankWriter(draft)
    trainer.callbacks.append(writer)  # type: ignore[attr-defined]
    try:
        with quiet():
            trainer.predict(module, datamodule=Remaining(draft, views, data, model), return_predictions=False)
    finally:
        trainer.callbacks.remove(writer)  # type: ignore[attr-defined]


def images_and_labels(batch: Any, place: Any) -> tuple[Tensor, Tensor | None]:
    """The images [N, C, *S] of a batch, and the first integers [N] behind them.

    Args:
        batch: as the network's steps get it.
        place: where the images are: an index or a key; in a batch of another form they are the first that could be some.

    Raises:
        UnfitData: if there are no images.
    """
    parts = list(batch.items() if isinstance(batch, Mapping) else enumerate(batch))
    found = [i for i, (_, part) in enumerate(parts) if isinstance(part, Tensor) and part.ndim >= 3 and part.is_floating_point()]
    if not found:
        raise UnfitData(
            "no images were found in a batch: expected a floating-point tensor [N, C, *S], such as torchvision's ToTensor gives"
        )
    first = next((i for i in found if parts[i][0] == place), found[0])
    images: Tensor = parts[first][1]
    behind = (part for _, part in parts[first + 1 :] if isinstance(part, Tensor) and part.shape == images.shape[:1])
    return images, next((part for part in behind if not part.is_floating_point()), None)


def _only(chunks: list[Chunk]) -> Chunk:
    return chunks[0]
