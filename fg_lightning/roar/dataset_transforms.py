"""Separates a data set's images from its transform, so that pixels can be removed before the transform."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from torchvision.datasets.vision import StandardTransform
from torchvision.transforms import v2

from fg_lightning.errors import CannotRun, UnfitData

Transform = Callable[..., Any]
"""A function from image to image; or Joint, Named or Whole, if the data set calls its transform in another way."""

GEOMETRY = ("Resize", "CenterCrop", "Pad", "Grayscale", "RGB")
"""Class names of transforms, none of them random, that give an image the size and colours of the network's input."""


@dataclass(frozen=True)
class Joint:
    """A transform of an image and its target together, as in the argument `transforms` of torchvision's data sets."""

    transform: Transform

    def __call__(self, image: Any, target: Any) -> Any:
        return self.transform(image, target)


@dataclass(frozen=True)
class Named:
    """A transform that takes and returns an image under a name, as in albumentations."""

    transform: Transform
    name: str

    def __call__(self, image: Any) -> Any:
        return self.transform(**{self.name: image})[self.name]


@dataclass(frozen=True)
class Whole:
    """A transform from sample to sample."""

    transform: Transform

    def __call__(self, sample: Any) -> Any:
        return self.transform(sample)


def strip_transform(dataset: Any, instead: Transform | None = None) -> tuple[Dataset[Any], Transform | None]:
    """A data set without its transform, and that transform.

    It finds torchvision's `transform` and `transforms`, and any attribute `transform` that the data set applies in `__getitem__`,
    also inside of `Subset` and `ConcatDataset`. The data set itself is not changed.

    Args:
        dataset: map-style data set.
        instead: transform to return. The data set's own is then removed even if it is called in an unknown way. Default: its own.

    Returns:
        A data set of the same length that shares the data, and the transform or None.

    Raises:
        UnfitData: if the data set is not map-style, or fails without its own transform.
        CannotRun: if its parts have different transforms.
    """
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise UnfitData(
            f"{type(dataset).__name__} has no index, but each map belongs to an image at a fixed index. Use a map-style data set, "
            "with __getitem__ and __len__"
        )
    if type(dataset) is Subset:
        images, transform = strip_transform(dataset.dataset, instead)
        return Subset(images, dataset.indices), transform
    if type(dataset) is ConcatDataset:
        parts = [strip_transform(part, instead) for part in dataset.datasets]
        if any(transform is not parts[0][1] and repr(transform) != repr(parts[0][1]) for _, transform in parts):
            raise CannotRun(
                "the parts of a ConcatDataset have different transforms; give them the same one, or pass one for all of them as "
                "transform=..."
            )
        return ConcatDataset([images for images, _ in parts]), parts[0][1]
    bare, own = _strip_own_transform(dataset, instead is not None)
    return bare, own if instead is None else instead


def split_transform(transform: Transform | None) -> tuple[list[Transform], Transform | None]:
    """The first steps of a transform that are in GEOMETRY, and the rest of it. None if there is no rest."""
    steps = _steps(transform)
    first = next((i for i, step in enumerate(steps) if type(step).__name__ not in GEOMETRY), len(steps))
    if first == 0:
        return [], transform
    return steps[:first], v2.Compose(steps[first:]) if steps[first:] else None


def _strip_own_transform(dataset: Any, is_replaced: bool) -> tuple[Dataset[Any], Transform | None]:
    transforms = {name: getattr(dataset, name, None) for name in ("transform", "transforms")}
    name = next((n for n, own in transforms.items() if callable(own) and not isinstance(own, StandardTransform)), None)
    if name is None or not len(dataset):
        return dataset, None
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(*args: Any, **named: Any) -> Any:
        calls.append((args, named))
        return _return_arguments(*args, **named)

    try:
        bare, trial = (_replace_transform(dataset, name, other) for other in (_return_arguments, record))
    except AttributeError:  # a property that cannot be set: the transform stays
        return dataset, None
    try:
        trial[0]
    except Exception as error:
        raise UnfitData(
            f"{type(dataset).__name__} cannot give its images without its transform ({type(error).__name__}: {error}), but pixels "
            f"are removed before it: let __getitem__ call self.{name} last, as transform(image), transform(image, target), "
            "transform(image=image)['image'] or transform(sample)"
        ) from error
    if not calls:  # it was applied when the data set was made, or by an inner data set
        return dataset, None
    return bare, None if is_replaced else _adapt_transform(transforms[name], *calls[0])


def _replace_transform(dataset: Any, name: str, transform: Transform) -> Any:
    changed = copy.copy(dataset)
    setattr(changed, name, transform)
    both = getattr(dataset, "transforms", None)
    if isinstance(both, StandardTransform):
        changed.transforms = StandardTransform(transform, both.target_transform)
    return changed


def _adapt_transform(transform: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> Transform:
    """The transform in the form in which the data set called it."""
    match len(args), len(named):
        case 1, 0:
            return Whole(transform) if isinstance(args[0], (Mapping, tuple, list)) else transform
        case 2, 0:
            return Joint(transform)
        case 0, 1:
            return Named(transform, *named)
    raise UnfitData(
        f"a data set calls its transform with {len(args)} arguments and {', '.join(named) or 'none'} by name, and it is unknown "
        "which of them is the image; pass the transform of the images as transform=..., a function from image to image"
    )


def _steps(transform: Transform | None) -> list[Transform]:
    if transform is None:
        return []
    if type(transform).__name__ == "Compose" and hasattr(transform, "transforms"):
        return list(transform.transforms)
    if isinstance(transform, nn.Sequential):
        return list(transform)
    if type(transform).__name__ == "ImageClassification":  # from torchvision's weights.transforms()
        preset: Any = transform
        return [
            v2.Resize(preset.resize_size, interpolation=preset.interpolation, antialias=preset.antialias),
            v2.CenterCrop(preset.crop_size),
            v2.PILToTensor(),
            v2.ConvertImageDtype(),
            v2.Normalize(preset.mean, preset.std),
        ]
    return [transform]


def _return_arguments(*args: Any, **named: Any) -> Any:
    """Returns its arguments in the form that a transform would return."""
    return named or (args[0] if len(args) == 1 else args)
