"""Whether a pixel that is removed is the one that a network would have seen there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fg_lightning.roar.errors import RandomImages, UnfitData
from fg_lightning.roar.pixels import content, is_picture, planes, spatial_shape, with_values
from fg_lightning.roar.samples import finished, with_image

if TYPE_CHECKING:
    from fg_lightning.roar.pixels import Mask
    from fg_lightning.roar.views import View


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
