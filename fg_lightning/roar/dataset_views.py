"""The splits of a datamodule before random transforms, and checks that removed pixels are those that the network would see."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fg_lightning.atomic_files import replace_file
from fg_lightning.errors import CannotRun, RandomImages, UnfitData
from fg_lightning.recording.dataset_metadata import DatasetMetadata
from fg_lightning.removal.fills import MeanAndStd
from fg_lightning.roar.cell_training import determinism
from fg_lightning.roar.config import ROARConfig
from fg_lightning.roar.dataset_transforms import Transform, split_transform, strip_transform
from fg_lightning.roar.image_pixels import (
    Mask,
    Picture,
    apply_transform,
    channel_sums,
    fill_with_values,
    image_bytes,
    is_picture,
    place_of_image,
    planes,
    replace_image,
    spatial_shape,
)
from fg_lightning.visualization.film_strips import spread_indices
from fg_lightning.visualization.saliency_overlay import Normalization, to_rgb

SPLITS = ("train", "val", "test")

NUM_EXAMINED = 8
"""Number of samples of a split that are hashed, and read twice."""

EXAMPLES_FOLDER = "examples"
NUM_EXAMPLES = 6

UNCHANGED = Normalization([0.0], [1.0])
"""Normalization of images of bytes. Other images are scaled by their minimum and maximum."""


class Plane(Dataset[Any]):
    """Samples whose images have the size of the network's input, before the rest of the transform.

    Args:
        raw: a data set without its transform.
        steps: transforms that bring an image to that size: resizing, cropping the middle.
        place: index or key of the image in a sample.
    """

    def __init__(self, raw: Any, steps: list[Transform], place: Any) -> None:
        self.raw = raw
        self.steps = steps
        self.place = place

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> Any:
        sample = self.raw[index]
        for step in self.steps:
            sample = replace_image(sample, self.place, step(sample[self.place]))
        return sample

    def image(self, index: int) -> Picture:
        """The image of a sample."""
        picture: Picture = self[index][self.place]
        return picture


@dataclass(frozen=True)
class SplitView:
    """A split of a datamodule, with its images and transforms separated.

    Attributes:
        name: name of the split: train, val or test; val_0, val_1, ... if there are several loaders.
        loader: the user's loader.
        plane: the samples, at the size of the network's input.
        transform: transform of the user's data set after the plane. None if there is none.
        evaluation: transform of the test images after the plane, without random steps. None if there is none.
        normalization: (mean, std) of images of the plane that are already normalized. None if they are not normalized.
    """

    name: str
    loader: DataLoader[Any]
    plane: Plane
    transform: Transform | None
    evaluation: Transform | None
    normalization: MeanAndStd | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of the first image."""
        return spatial_shape(self.plane.image(0))

    def fingerprint(self) -> str:
        """A hash of the split's length and of the content of a few images.

        Raises:
            RandomImages: if an image changes when it is read again.
        """
        length = len(self.plane)
        digest = hashlib.sha256(str(length).encode())
        for index in sorted({i * (length - 1) // (NUM_EXAMINED - 1) for i in range(NUM_EXAMINED)}):
            digest.update(self.content(index))
        return digest.hexdigest()[:16]

    def content(self, index: int) -> bytes:
        """The content of an image of the plane.

        Raises:
            RandomImages: if it changes when it is read again.
        """
        first = image_bytes(self.plane.image(index))
        if image_bytes(self.plane.image(index)) != first:
            raise RandomImages(
                f"the {self.name} data set gives a different image each time for index {index}, so that no map fits it. Move "
                "random steps to the data set's attribute `transform`, which is applied after the pixels are removed, or pass "
                "them as transform=..."
            )
        return first


def views_of(
    data: LightningDataModule, *, prepare: Transform | None = None, transform: Transform | None = None
) -> dict[str, SplitView]:
    """The train, validation and test splits of a datamodule that is set up, by name.

    The transform of the last split is the evaluation transform. `check_alignment` tests it on an image.

    Args:
        data: the user's datamodule, after its `setup`.
        prepare: function that brings an image to the size of the network's input. Default: the first steps of the evaluation
            transform (the test split's, else the validation's, else the training's) that only resize, crop the middle, pad or grey.
        transform: transform of every image after that. Default: the transform of each data set.

    Raises:
        UnfitData: if a loader is not a DataLoader of torch, a data set is not map-style, no image is found in its samples, or its
            transform cannot be removed or moves pixels.
        RandomImages: if the evaluation transform is random.
        CannotRun: if there is no data.
    """
    loaders = {name: loader for split in SPLITS for name, loader in _loaders(data, split).items()}
    if not loaders:
        raise CannotRun(f"{type(data).__name__} has no train_dataloader, val_dataloader or test_dataloader; give it one")
    parts = {name: strip_transform(loader.dataset, transform) for name, loader in loaders.items()}
    last = parts[list(parts)[-1]][1]
    steps, evaluation = split_transform(last)
    if prepare is not None:
        steps, evaluation = [prepare], last
    views = {}
    for name, (raw, own) in parts.items():
        if not len(raw):  # type: ignore[arg-type]
            raise CannotRun(f"the {name} data set is empty, but at least one image is needed")
        begins, rest = split_transform(own)
        after = rest if prepare is None and [repr(step) for step in begins] == [repr(step) for step in steps] else own
        plane = Plane(raw, steps, place_of_image(raw[0]))
        views[name] = SplitView(name, loaders[name], plane, after, evaluation, _normalization_before(plane, evaluation, data))
    check_alignment(views[name], is_own=prepare is None and transform is None)
    return views


def _normalization_before(plane: Plane, evaluation: Transform | None, data: LightningDataModule) -> MeanAndStd | None:
    """The normalization of images with values below 0: the datamodule's attribute `normalization`.

    If the transform normalizes, the attribute belongs to the transform, and the normalization before it is unknown: None.
    """
    images = [planes(image) for i in spread_indices(len(plane), NUM_EXAMINED) if is_picture(image := plane.image(i))]
    is_normalized = any(image.is_floating_point() and bool((image < 0).any()) for image in images)
    if not is_normalized or DatasetMetadata(evaluation).normalization() is not None:
        return None
    declared = getattr(data, "normalization", None)
    return (declared.mean, declared.std) if isinstance(declared, Normalization) else declared


def rebuild_loader(loader: DataLoader[Any], dataset: Dataset[Any], **changed: Any) -> DataLoader[Any]:
    """A loader with the same settings over another data set of the same length."""
    batching: dict[str, Any] = {"batch_sampler": loader.batch_sampler}
    if loader.batch_sampler is None or type(loader.batch_sampler).__name__ == "BatchSampler":
        batching = {"batch_size": loader.batch_size, "sampler": loader.sampler, "drop_last": loader.drop_last}
    names = "num_workers collate_fn pin_memory timeout worker_init_fn multiprocessing_context generator".split()
    names += "prefetch_factor persistent_workers".split() if loader.num_workers else []
    return DataLoader(dataset, **{**batching, **{name: getattr(loader, name) for name in names}, **changed})


def map_loaders(loaders: Any, name: str, change: Callable[[str, DataLoader[Any]], Any]) -> Any:
    """Changes one loader, or each in a list or dict, by its name: test; test_0, test_1, ...; test_<key>.

    Raises:
        UnfitData: if a loader is not a DataLoader of torch.
    """
    if isinstance(loaders, (list, tuple)):
        return [map_loaders(loader, f"{name}_{i}", change) for i, loader in enumerate(loaders)]
    if isinstance(loaders, Mapping):
        return {key: map_loaders(loader, f"{name}_{key}", change) for key, loader in loaders.items()}
    if not isinstance(loaders, DataLoader):
        raise UnfitData(
            f"the {name} loader is {type(loaders).__name__}, but a torch.utils.data.DataLoader over a map-style data set is needed"
        )
    return change(name, loaders)


def _loaders(data: LightningDataModule, split: str) -> dict[str, DataLoader[Any]]:
    hook = f"{split}_dataloader"
    loaders: dict[str, DataLoader[Any]] = {}
    if is_overridden(hook, data, LightningDataModule):
        map_loaders(getattr(data, hook)(), split, loaders.__setitem__)
    return loaders


def check_alignment(view: SplitView, is_own: bool) -> None:
    """Checks with the first image of a split that its transform is complete and moves no pixel.

    It sets a pixel to the image's lowest or highest number. The pixel was not moved if no other pixel of the network's input
    changes more. It tests two pixels, a corner and one inside: a flip, turn or transpose leaves at most one of them in its place.

    Args:
        view: the split whose transform is the evaluation transform.
        is_own: whether that is the data set's own. It must then give the same image as the data set.

    Raises:
        RandomImages: if the data set or the transform is random.
        UnfitData: if the transform fails, resizes or moves pixels, or does not give the data set's image.
    """
    view.content(0)
    image = _network_input(view)
    if not is_picture(image):
        return
    if image_bytes(image) != image_bytes(_network_input(view)):
        raise RandomImages(
            f"the evaluation transform, that of the {view.name} images, is random, but images must be explained as they are "
            "tested: give the data set of the last split (test, if there is one) a transform without augmentation"
        )
    if not planes(image).double().isfinite().all():
        raise UnfitData(
            f"image 0 of the {view.name} data set has pixels that are not finite (NaN or infinity); correct or leave it out"
        )
    if is_own and not _is_close(image, view.loader.dataset[0][view.plane.place]):
        raise UnfitData(
            f"image 0 of the {view.name} data set is not its raw image after the attribute `transform`: the data set also "
            "changes images elsewhere. Pass the whole transform after the removal as transform=..., or torch.nn.Identity() for "
            "none"
        )
    shape = view.shape
    if spatial_shape(image) != shape:
        raise UnfitData(
            f"the {view.name} images are {shape} before their transform, but {spatial_shape(image)} after it, so their "
            "pixels do not correspond. Bring images to the network's size with prepare=..., and pass the rest of the transform as "
            "transform=..."
        )
    for pixel in (tuple(0 for _ in shape), (shape[0] // 3, *(side // 2 for side in shape[1:]))):
        mask = np.zeros(shape, bool)
        mask[pixel] = True
        change = (planes(_network_input(view, mask)).double() - planes(image).double()).abs().sum(0)
        there = tuple(map(int, np.unravel_index(int(change.argmax()), shape)))
        if change.max() > 0 and there != pixel:
            raise UnfitData(
                f"the transform of the {view.name} images moves pixel {pixel} to {there}, so the removed pixels would not be those "
                "that a method ranks. Pass flips, turns and shifts as prepare=..., and the rest of the evaluation transform as "
                "transform=..."
            )


def _network_input(view: SplitView, mask: Mask | None = None) -> Any:
    """The first image as the network sees it. Masked pixels get its lowest or highest number: the more distant one."""
    sample, place = view.plane[0], view.plane.place
    if mask is not None:
        values = planes(sample[place]).double()
        low, high = float(values.min()), float(values.max())
        if low == high:  # a blank image
            low, high = sorted((high, high / 2 if high else 1.0))
        here = float(values[:, torch.from_numpy(mask)].mean())
        far = low if here - low > high - here else high
        sample = replace_image(sample, place, fill_with_values(sample[place], mask, np.array([far])))
    try:
        return apply_transform(sample, place, view.evaluation)[place]
    except Exception as error:
        raise UnfitData(
            f"the transform of the {view.name} data set fails on its raw images "
            f"({type(error).__name__}: {error}); pass a function from image to image as transform=..."
        ) from error


def _is_close(image: Any, other: Any) -> bool:
    """Whether two images are equal up to the rounding of float32: the steps of a preset round differently than the preset."""
    if not is_picture(other):
        return False
    one, two = planes(image).double(), planes(other).double()
    return one.shape == two.shape and torch.allclose(one, two, rtol=1e-4, atol=1e-4)


def set_up(data: LightningDataModule) -> None:
    """Prepares and sets up a datamodule for training and test."""
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)


def load_views(config: ROARConfig) -> dict[str, SplitView]:
    """The splits of an experiment's data. A few images are compared with those of a second datamodule.

    Raises:
        CannotRun: if there is no test data, or none to train on, images are of several sizes or numbers of channels, or they change
            each time.
    """
    views, again = (_load_views(config, seed) for seed in (0, 1))
    if not any(name.split("_")[0] == "test" for name in views):
        raise CannotRun("the datamodule has no test data, but the networks are compared on it: give it a test_dataloader")
    if (config.mode != "road" or not config.checkpoints) and not any(name.split("_")[0] == "train" for name in views):
        raise CannotRun(
            "the datamodule has no data to train on: give it a train_dataloader; mode road with a checkpoint needs none"
        )
    for name, view in views.items():
        if view.fingerprint() != again[name].fingerprint():
            raise CannotRun(
                f"the datamodule gives different {name} images each time it is set up, so that no map fits them; if setup "
                "splits at random, give it a seed: random_split(..., generator=torch.Generator().manual_seed(0))"
            )
    _check_shapes(views)
    return views


def write_examples(folder: Path, view: SplitView) -> None:
    """Writes images of a split, evenly spaced, by their index in it: `examples/000012.png`. None for signals and volumes."""
    if len(view.shape) != 2:
        return
    (folder / EXAMPLES_FOLDER).mkdir(exist_ok=True)
    for index in spread_indices(len(view.plane), NUM_EXAMPLES):
        image = planes(view.plane.image(index))
        pixels = to_rgb(image, UNCHANGED if image.dtype is torch.uint8 else None)
        with replace_file(folder / EXAMPLES_FOLDER / f"{index:06d}.png") as file:
            Image.fromarray(pixels).save(file, "PNG")


def _load_views(config: ROARConfig, seed: int) -> dict[str, SplitView]:
    with determinism(seed, config.num_threads):
        data = config.data()
        set_up(data)
        return views_of(data, prepare=config.prepare, transform=config.transform)


def _check_shapes(views: dict[str, SplitView]) -> None:
    shapes: dict[tuple[str, int], str] = {}
    for name, view in views.items():
        for index in spread_indices(len(view.plane), NUM_EXAMINED):
            image = view.plane.image(index)
            if not planes(image).double().isfinite().all():
                raise CannotRun(
                    f"image {index} of the {name} data set has pixels that are not finite (NaN or infinity); correct it"
                )
            size = " x ".join(map(str, spatial_shape(image)))
            shapes.setdefault((size, len(channel_sums(image))), f"image {index} of the {name} data set")
    if len(shapes) > 1:
        examples = "; ".join(
            f"{where} is {size} with {channels} channel{'s' * (channels != 1)}" for (size, channels), where in shapes.items()
        )
        raise CannotRun(
            f"images must be of one size and one number of channels before their transform, but {examples}. Bring them to it with "
            "prepare=..., such as torchvision.transforms.v2.Compose([RGB(), Resize(256), CenterCrop(224)])"
        )
