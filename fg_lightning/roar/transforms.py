"""A data set's images before its transform, and the transform, so that pixels can be removed between the two."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from torchvision.datasets.vision import StandardTransform
from torchvision.transforms import v2

Transform = Callable[..., Any]
"""image -> image; or, where a data set has one for both, (image, target) -> (image, target)."""

GEOMETRY = ("Resize", "CenterCrop", "Pad", "Grayscale", "RGB")
"""Transforms by class name that put an image on the plane that a network sees, the same each time."""


class Joint:
    """A transform of an image and its target together, as torchvision's `transforms` argument takes it."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, image: Any, target: Any) -> Any:
        return self.transform(image, target)


def taken_apart(dataset: Any) -> tuple[Dataset[Any], Transform | None]:
    """A data set without its transform, and that transform.

    Looks into `Subset` and `ConcatDataset`, and finds torchvision's `transform` and `transforms` and any attribute `transform`. The
    data set itself is left as it is.

    Returns:
        A data set of the same length that shares the data, and the transform or None.

    Raises:
        TypeError: if the data set is not map-style.
        ValueError: if its parts have different transforms.
    """
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise TypeError(
            f"{type(dataset).__name__} has no index: a map is kept for every image, which is found again by its place in the data "
            "set. A map-style data set is needed, with __getitem__ and __len__"
        )
    if type(dataset) is Subset:
        images, transform = taken_apart(dataset.dataset)
        return Subset(images, dataset.indices), transform
    if type(dataset) is ConcatDataset:
        parts = [taken_apart(part) for part in dataset.datasets]
        if any(transform is not parts[0][1] and repr(transform) != repr(parts[0][1]) for _, transform in parts):
            raise ValueError(
                "the parts of a ConcatDataset have different transforms; give them the same one, or give them none and pass "
                "transform=... to ROARDataModule"
            )
        return ConcatDataset([images for images, _ in parts]), parts[0][1]
    return _without_transform(dataset)


def split_transform(transform: Transform | None) -> tuple[list[Transform], Transform | None]:
    """The steps at a transform's beginning that only put the image on its plane, and the rest, None if there is none."""
    steps = _steps(transform)
    first = next((i for i, step in enumerate(steps) if type(step).__name__ not in GEOMETRY), len(steps))
    if first == 0:
        return [], transform
    return steps[:first], v2.Compose(steps[first:]) if steps[first:] else None


class Chain:
    """Transforms one after the other; none of them leaves an image as it is."""

    def __init__(self, steps: list[Transform]) -> None:
        self.steps = steps

    def __call__(self, image: Any) -> Any:
        for step in self.steps:
            image = step(image)
        return image


def _without_transform(dataset: Any) -> tuple[Dataset[Any], Transform | None]:
    own, both = getattr(dataset, "transform", None), getattr(dataset, "transforms", None)
    bare = copy.copy(dataset)
    try:
        if callable(own):
            bare.transform = _unchanged
            if isinstance(both, StandardTransform):
                bare.transforms = StandardTransform(_unchanged, both.target_transform)
            return bare, own
        if callable(both) and not isinstance(both, StandardTransform):
            bare.transforms = _both_unchanged
            return bare, Joint(both)
    except AttributeError:  # a property that cannot be set: the transform stays where it is
        pass
    return dataset, None


def _steps(transform: Transform | None) -> list[Transform]:
    if transform is None or isinstance(transform, Joint):
        return []
    if type(transform).__name__ == "Compose" and hasattr(transform, "transforms"):
        return list(transform.transforms)
    if isinstance(transform, nn.Sequential):
        return list(transform)
    if type(transform).__name__ == "ImageClassification":  # what torchvision's weights.transforms() gives
        preset: Any = transform
        return [
            v2.Resize(preset.resize_size, interpolation=preset.interpolation, antialias=preset.antialias),
            v2.CenterCrop(preset.crop_size),
            v2.PILToTensor(),
            v2.ConvertImageDtype(),
            v2.Normalize(preset.mean, preset.std),
        ]
    return [transform]


def _unchanged(image: Any) -> Any:
    return image


def _both_unchanged(image: Any, target: Any) -> Any:
    return image, target
