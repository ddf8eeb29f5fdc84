"""Every image of every split through an attribution method, as a prediction that devices and nodes share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fg_lightning.attribution import Factory, find_method
from fg_lightning.removal import ranks
from fg_lightning.roar.draft import Draft
from fg_lightning.roar.errors import RandomImages, StoreError
from fg_lightning.roar.manifest import NAME, Manifest, SplitIdentity, model_fingerprint, read_manifest
from fg_lightning.roar.pixels import channel_sums, content, is_picture, spatial_shape
from fg_lightning.roar.quiet import quiet
from fg_lightning.roar.views import View, finished, views_of

SILENT: dict[str, Any] = {
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

Explained = Literal["predicted", "label"]


class Chunk(NamedTuple):
    """Consecutive images of a split, as the network takes them."""

    split: str
    number: int
    indices: Tensor
    images: Tensor
    labels: Tensor | None
    sums: Tensor


class Chunks(Dataset[Chunk]):
    """The chunks that are not done yet."""

    def __init__(self, draft: Draft, views: Mapping[str, View], remaining: list[tuple[str, int]]) -> None:
        self.draft = draft
        self.views = dict(views)
        self.remaining = remaining

    def __len__(self) -> int:
        return len(self.remaining)

    def __getitem__(self, index: int) -> Chunk:
        split, number = self.remaining[index]
        view, places = self.views[split], self.draft.places(split, number)
        samples = [view.plane[place] for place in places]
        pictures = [sample[view.plane.place] for sample in samples]
        for place, picture in zip(places, pictures, strict=True):
            if spatial_shape(picture) != self.draft.manifest.shape:
                raise ValueError(
                    f"image {place} of the {split} data set is {spatial_shape(picture)} before its transform, others are "
                    f"{self.draft.manifest.shape}: bring them to the network's size first with prepare=..., such as "
                    "torchvision.transforms.v2.Compose([Resize(256), CenterCrop(224)])"
                )
        batch = list(self.views.values())[-1].loader.collate_fn([finished(s, view.plane.place, view.evaluation) for s in samples])
        images, labels = _images_and_labels(batch)
        sums = np.sum([channel_sums(picture) for picture in pictures], axis=0)
        return Chunk(split, number, torch.tensor(places), images, labels, torch.from_numpy(sums))


class Ranking(LightningModule):
    """Predicts the ranks of a chunk's pixels."""

    def __init__(self, model: nn.Module, factory: Factory, settings: Mapping[str, Any], target: Explained, seed: int) -> None:
        super().__init__()
        self.model = model
        self._attribution = factory(model, **settings)
        self._target = target
        self._seed = seed

    def predict_step(self, batch: Chunk, batch_idx: int) -> npt.NDArray[Any]:
        if self._target == "label" and batch.labels is None:
            raise ValueError("target='label' takes labels, but no integers [N] were found in the batches; take target='predicted'")
        with torch.enable_grad():
            maps = self._attribution.attribute(batch.images, batch.labels if self._target == "label" else None)
        ties = [self._seed + int(index) for index in batch.indices]
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
        self.draft.write(batch.split, batch.number, prediction, batch.sums.cpu().numpy())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier("ranked")
        if trainer.is_global_zero:
            self.draft.finish()
        trainer.strategy.barrier("finished")


class Remaining(LightningDataModule):
    """The same remaining chunks for every process, as the first one found them."""

    def __init__(self, draft: Draft, views: Mapping[str, View]) -> None:
        super().__init__()
        self.draft = draft
        self.views = views

    def setup(self, stage: str) -> None:
        found: tuple[list[tuple[str, int]] | None, str] = (None, "")
        assert self.trainer is not None
        if self.trainer.is_global_zero:
            try:
                self.draft.begin()
                found = (self.draft.remaining(), "")
            except (StoreError, OSError) as error:
                found = (None, str(error))
        remaining, reason = self.trainer.strategy.broadcast(found)
        if remaining is None:  # all processes stop, not only the one that looked
            raise StoreError(reason)
        self.remaining = remaining

    def predict_dataloader(self) -> DataLoader[Chunk]:
        workers = next(iter(self.views.values())).loader.num_workers
        chunks = Chunks(self.draft, self.views, self.remaining)
        return DataLoader(chunks, batch_size=1, num_workers=workers, collate_fn=_only)


class Ranked(Callback):
    """Tells how many images are ranked."""

    def __init__(self, tell: Any) -> None:
        self._tell = tell

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        self._tell(len(batch.indices))


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
        method=method if isinstance(method, str) else getattr(method, "__qualname__", type(method).__qualname__),
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
    for view in views.values():
        _check_evaluation(view)
    if (folder / NAME).exists() and read_manifest(folder).finished and not read_manifest(folder).difference(manifest):
        return
    draft = Draft(folder, manifest)
    module = Ranking(model, factory, settings, target, seed)
    trainer = trainer or predictor({})
    writer = RankWriter(draft)
    trainer.callbacks.append(writer)  # type: ignore[attr-defined]
    try:
        with quiet():
            trainer.predict(module, datamodule=Remaining(draft, views), return_predictions=False)
    finally:
        trainer.callbacks.remove(writer)  # type: ignore[attr-defined]


def _check_evaluation(view: View) -> None:
    twice = [finished(view.plane[0], view.plane.place, view.evaluation)[view.plane.place] for _ in range(2)]
    if is_picture(twice[0]) and content(twice[0]) != content(twice[1]):
        raise RandomImages(
            f"the {view.name} images are explained under a transform that draws at random; maps are of images as they are "
            "tested: give the test data set, the last one that is looked at, a transform without augmentation"
        )


def _images_and_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    """The first images [N, C, *S] of a batch, and the first integers [N] after them.

    Raises:
        TypeError: if there are no images.
    """
    values = list(batch.values()) if isinstance(batch, Mapping) else list(batch)
    tensors = [value for value in values if isinstance(value, Tensor)]
    images = next((value for value in tensors if value.ndim >= 3 and value.is_floating_point()), None)
    if images is None:
        raise TypeError(
            "no images were found in a batch: expected a floating-point tensor [N, C, *S], such as torchvision's ToTensor gives"
        )
    labels = (v for v in tensors if v.ndim == 1 and len(v) == len(images) and not v.is_floating_point())
    return images, next(labels, None)


def _only(chunks: list[Chunk]) -> Chunk:
    return chunks[0]
