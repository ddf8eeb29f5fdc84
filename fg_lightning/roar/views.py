"""The splits of a datamodule as remove-and-retrain sees them: images on the plane that a network sees, before anything random."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, Dataset

from fg_lightning.errors import CannotRun
from fg_lightning.roar.alignment import check_alignment
from fg_lightning.roar.errors import RandomImages, UnfitData
from fg_lightning.roar.pixels import Picture, content, spatial_shape
from fg_lightning.roar.samples import place_of_image, with_image
from fg_lightning.roar.transforms import Chain, Transform, split_transform, taken_apart

SPLITS = ("train", "val", "test")

EXAMINED = 8
"""So many samples of a split are hashed, and read twice."""


class Plane(Dataset[Any]):
    """Samples whose image lies on the plane that a network sees, and is not transformed any further.

    Args:
        raw: a data set without its transform.
        prepare: puts an image on the plane: resizing, cropping the middle.
        place: where in a sample the image is: an index or a key.
    """

    def __init__(self, raw: Any, prepare: Chain, place: Any) -> None:
        self.raw = raw
        self.prepare = prepare
        self.place = place

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> Any:
        sample = self.raw[index]
        return with_image(sample, self.place, self.prepare(sample[self.place])) if self.prepare.steps else sample

    def image(self, index: int) -> Picture:
        """The image of a sample, on the plane."""
        picture: Picture = self[index][self.place]
        return picture


@dataclass(frozen=True)
class View:
    """
    Attributes:
        name: of the split: train, val, test; val_0, val_1 where there are several loaders.
        loader: the user's.
        plane: its samples, on the plane.
        transform: what the user's data set does to an image on the plane.
        evaluation: what is done to it where nothing may be random.
    """

    name: str
    loader: DataLoader[Any]
    plane: Plane
    transform: Transform | None
    evaluation: Transform | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The plane's size, by its first image."""
        return spatial_shape(self.plane.image(0))

    def fingerprint(self) -> str:
        """A hash of the split's length and of what a few of its images hold.

        Raises:
            RandomImages: if an image is another when it is read again.
        """
        length = len(self.plane)
        digest = hashlib.sha256(str(length).encode())
        for index in sorted({i * (length - 1) // (EXAMINED - 1) for i in range(EXAMINED)}):
            digest.update(self.content(index))
        return digest.hexdigest()[:16]

    def content(self, index: int) -> bytes:
        """What an image on the plane holds.

        Raises:
            RandomImages: if it is another when it is read again.
        """
        first = content(self.plane.image(index))
        if content(self.plane.image(index)) != first:
            raise RandomImages(
                f"the {self.name} data set gives another image each time for index {index}, so that no map belongs to it. "
                "What is random must be in the data set's attribute `transform`, where it is found and applied after the "
                "pixels are removed, or be passed as transform=..."
            )
        return first


def views_of(data: LightningDataModule, *, prepare: Transform | None = None, transform: Transform | None = None) -> dict[str, View]:
    """The train, validation and test splits of a datamodule that is set up, by name.

    Of the last of them, whose transform is the evaluation transform, an image is looked at, see `check_alignment`.

    Args:
        data: the user's.
        prepare: puts an image on the plane that the network sees; by default the steps that the evaluation transform (the test
            split's, else the validation's, else the training's) begins with and that only resize, crop the middle, pad or grey.
        transform: what is done to every image after that; by default what each data set does.

    Raises:
        UnfitData: if a loader is none of torch's, a data set is not map-style, no image is found in its samples, or its transform
            cannot be taken away or moves pixels.
        RandomImages: if the evaluation transform draws at random.
        CannotRun: if there is no data.
    """
    loaders = {name: loader for split in SPLITS for name, loader in _loaders(data, split).items()}
    if not loaders:
        raise CannotRun(f"{type(data).__name__} has no train_dataloader, val_dataloader or test_dataloader")
    parts = {name: taken_apart(loader.dataset, transform) for name, loader in loaders.items()}
    last = parts[list(parts)[-1]][1]
    steps, evaluation = split_transform(last)
    if prepare is not None:
        steps, evaluation = [prepare], last
    views = {}
    for name, (raw, own) in parts.items():
        if not len(raw):  # type: ignore[arg-type]
            raise CannotRun(f"the {name} data set is empty")
        begins, rest = split_transform(own)
        after = rest if prepare is None and [repr(step) for step in begins] == [repr(step) for step in steps] else own
        views[name] = View(name, loaders[name], Plane(raw, Chain(steps), place_of_image(raw[0])), after, evaluation)
    check_alignment(views[name], is_own=prepare is None and transform is None)
    return views


def rebuilt(loader: DataLoader[Any], dataset: Dataset[Any], **changed: Any) -> DataLoader[Any]:
    """A loader with the same settings over another data set of the same length."""
    batching: dict[str, Any] = {"batch_sampler": loader.batch_sampler}
    if loader.batch_sampler is None or type(loader.batch_sampler).__name__ == "BatchSampler":
        batching = {"batch_size": loader.batch_size, "sampler": loader.sampler, "drop_last": loader.drop_last}
    names = "num_workers collate_fn pin_memory timeout worker_init_fn multiprocessing_context generator".split()
    names += "prefetch_factor persistent_workers".split() if loader.num_workers else []
    return DataLoader(dataset, **{**batching, **{name: getattr(loader, name) for name in names}, **changed})


def mapped(loaders: Any, name: str, change: Callable[[str, DataLoader[Any]], Any]) -> Any:
    """One loader, or a list or dict of them, each changed under its name: test; test_0, test_1; test_<key>."""
    if isinstance(loaders, (list, tuple)):
        return [mapped(loader, f"{name}_{i}", change) for i, loader in enumerate(loaders)]
    if isinstance(loaders, Mapping):
        return {key: mapped(loader, f"{name}_{key}", change) for key, loader in loaders.items()}
    if not isinstance(loaders, DataLoader):
        raise UnfitData(
            f"the {name} loader is {type(loaders).__name__}, but a torch.utils.data.DataLoader over a map-style data set is needed"
        )
    return change(name, loaders)


def _loaders(data: LightningDataModule, split: str) -> dict[str, DataLoader[Any]]:
    hook = f"{split}_dataloader"
    found: dict[str, DataLoader[Any]] = {}
    if is_overridden(hook, data, LightningDataModule):
        mapped(getattr(data, hook)(), split, found.__setitem__)
    return found
