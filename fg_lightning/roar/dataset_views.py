"""The splits of a datamodule as remove-and-retrain sees them: images on the plane that a network sees, before anything random.

Whether a pixel that is removed is the one that a network would have seen there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, Dataset

from fg_lightning.errors import CannotRun, RandomImages, UnfitData
from fg_lightning.roar.dataset_transforms import Chain, Transform, split_transform, taken_apart
from fg_lightning.roar.image_pixels import (
    Picture,
    content,
    finished,
    is_picture,
    place_of_image,
    planes,
    spatial_shape,
    with_image,
    with_values,
)

if TYPE_CHECKING:
    from fg_lightning.roar.image_pixels import Mask

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


def check_alignment(view: View, is_own: bool) -> None:
    """Looks at the first image of a split: its transform must do all that its data set does, and leave pixels where they are.

    A pixel is where it was if nothing of what the network sees changes more than that pixel when it becomes the image's lowest or
    highest number. Two are tried, a corner and one inside, of which a flip, turn or transpose leaves one at most where it is.

    Args:
        view: of the split whose transform is the evaluation transform.
        is_own: whether that is the data set's own, so that it must give what the data set gives.

    Raises:
        RandomImages: if the data set or the transform draws at random.
        UnfitData: if it fails, resizes or moves pixels, or is not what the data set does.
    """
    view.content(0)
    seen = _seen(view)
    if not is_picture(seen):
        return
    if content(seen) != content(_seen(view)):
        raise RandomImages(
            f"the {view.name} images are explained under a transform that draws at random; maps are of images as they are "
            "tested: give the test data set, the last one that is looked at, a transform without augmentation"
        )
    if not planes(seen).double().isfinite().all():
        raise UnfitData(
            f"image 0 of the {view.name} data set has pixels that are not finite (NaN or infinity); correct or leave it out"
        )
    if is_own and not _is_close(seen, view.loader.dataset[0][view.plane.place]):
        raise UnfitData(
            f"image 0 of the {view.name} data set, taken before its transform and then transformed, is not what the data set "
            "gives: its attribute `transform` is not all that is done to images. Pass what is done to them once pixels are removed "
            "as transform=..., which is torch.nn.Identity() for nothing"
        )
    shape = view.shape
    if spatial_shape(seen) != shape:
        raise UnfitData(
            f"the {view.name} images are {shape} before their transform, but {spatial_shape(seen)} after it: pixels of one are "
            "not those of the other. Say with prepare=... what brings images to the network's size, and with transform=... what "
            "else is done to them"
        )
    for pixel in (tuple(0 for _ in shape), (shape[0] // 3, *(side // 2 for side in shape[1:]))):
        mask = np.zeros(shape, bool)
        mask[pixel] = True
        change = (planes(_seen(view, mask)).double() - planes(seen).double()).abs().sum(0)
        there = tuple(map(int, np.unravel_index(int(change.argmax()), shape)))
        if change.max() > 0 and there != pixel:
            raise UnfitData(
                f"pixel {pixel} of the {view.name} images before their transform is pixel {there} of what the network sees, so "
                "that other pixels would be removed than the ones that a method ranks: what flips, turns or shifts an image must "
                "be done before. Pass it as prepare=..., and the rest of the evaluation transform as transform=..."
            )


def _seen(view: View, mask: Mask | None = None) -> Any:
    """The first image as the network sees it, with masked pixels at the far end of its numbers."""
    sample, place = view.plane[0], view.plane.place
    if mask is not None:
        values = planes(sample[place]).double()
        low, high = float(values.min()), float(values.max())
        if low == high:  # a blank image
            low, high = sorted((high, high / 2 if high else 1.0))
        here = float(values[:, torch.from_numpy(mask)].mean())
        far = low if here - low > high - here else high
        sample = with_image(sample, place, with_values(sample[place], mask, np.array([far])))
    try:
        return finished(sample, place, view.evaluation)[place]
    except Exception as error:
        raise UnfitData(
            f"the transform of the {view.name} data set fails on its images as they are before it "
            f"({type(error).__name__}: {error}); pass what is to be done to them as transform=..., a function from image to image"
        ) from error


def _is_close(image: Any, other: Any) -> bool:
    """Up to the rounding of float32, which a preset's steps do elsewhere than the preset."""
    if not is_picture(other):
        return False
    one, two = planes(image).double(), planes(other).double()
    return one.shape == two.shape and torch.allclose(one, two, rtol=1e-4, atol=1e-4)
