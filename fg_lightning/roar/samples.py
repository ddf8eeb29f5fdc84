"""A sample of a data set, whatever it is, and the image in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fg_lightning.roar.errors import UnfitData
from fg_lightning.roar.pixels import is_picture
from fg_lightning.roar.transforms import Joint, Transform, Whole


def place_of_image(sample: Any) -> Any:
    """Where in a sample its image is: an index or a key.

    Raises:
        UnfitData: if there is none.
    """
    items = sample.items() if isinstance(sample, Mapping) else enumerate(sample) if isinstance(sample, (tuple, list)) else ()
    for place, value in items:
        if is_picture(value):
            return place
    raise UnfitData(
        f"no image was found in a sample of type {type(sample).__name__}; expected a tuple, list or dict with a PIL image, "
        "a tensor [C, *S] or an array [H, W, C], such as (image, label)"
    )


def with_image(sample: Any, place: Any, image: Any) -> Any:
    """A sample of the same kind with another image."""
    if isinstance(sample, Mapping):
        return {**sample, place: image}
    parts = [image if i == place else part for i, part in enumerate(sample)]
    if hasattr(sample, "_fields"):
        return type(sample)(*parts)
    return tuple(parts) if isinstance(sample, tuple) else parts


def finished(sample: Any, place: Any, transform: Transform | None) -> Any:
    """A sample whose image, with its target or all else where the transform takes them too, is transformed."""
    if transform is None:
        return sample
    if isinstance(transform, Joint):
        return transform(*sample)
    if isinstance(transform, Whole):
        return transform(sample)
    return with_image(sample, place, transform(sample[place]))
