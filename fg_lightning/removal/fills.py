"""What replaces the removed pixels: the fill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Union

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fg_lightning.removal.noisy_linear_fill import noisy_linear
from fg_lightning.removal.pixel_ranking import check_images_and_mask

FillFunction = Callable[[Float[Tensor, "n c *s"], Bool[Tensor, "n 1 *s"]], Float[Tensor, "n c *s"]]
"""(images, removal mask) -> new images with those pixels replaced. Each depends on its own image alone."""

Numbers = Union[float, Sequence[float], Tensor]
"""One number, or one for each channel, in the images' own units."""

Fill = Union[Numbers, str, FillFunction]
"""Numbers, the name of a fill, or a function of the user's own."""


def black(images: Float[Tensor, "n c *s"], mask: Bool[Tensor, "n 1 *s"]) -> Float[Tensor, "n c *s"]:
    """Zero, for images that are not normalized.

    Raises:
        ValueError: if an image has values below 0. Then 0 is not black.
    """
    if len(images) and bool((images < 0).any()):
        raise ValueError(
            "fill='black' is 0, but the images have values below 0: they are normalized, and their black is another number. "
            "Give it, -mean / std for each channel"
        )
    return _replace(images, mask, images.new_zeros(()))


def image_mean(images: Float[Tensor, "n c *s"], mask: Bool[Tensor, "n 1 *s"]) -> Float[Tensor, "n c *s"]:
    """The mean of each image's channels over all its pixels. It is the same for every fraction."""
    return _replace(images, mask, images.mean(tuple(range(2, images.ndim)), keepdim=True))


FILLS: dict[str, FillFunction] = {"black": black, "image_mean": image_mean, "noisy_linear": noisy_linear}
"""The fills that need no numbers, by name. "dataset_mean" is the name of a fill that does."""


def find_fill(fill: Fill, *, dataset_mean: Numbers | None = None) -> FillFunction:
    """The function that a fill stands for.

    Args:
        fill: what replaces removed pixels:

            - a number in the images' own units, or one for each channel;
            - "black": 0, for images that are not normalized;
            - "image_mean": the mean of each image's own channels;
            - "dataset_mean": the mean of the training images' channels, which the caller gives;
            - "noisy_linear": Noisy Linear Imputation (Rong et al. 2022);
            - a function (images [N, C, *S], mask [N, 1, *S]) -> images [N, C, *S].
        dataset_mean: the numbers of "dataset_mean", in the images' own units. None if the caller knows no data set.

    Returns:
        A function of images and mask, which it checks. It can be pickled if the fill can.

    Raises:
        TypeError: if the fill is none of these.
        ValueError: if there is no fill of that name, "dataset_mean" has no numbers, or numbers are not finite or not one for each
            channel.
    """
    names = ", ".join([*FILLS, *(["dataset_mean"] if dataset_mean is not None else [])])
    choices = f"one of {names}, a number, a number for each channel, or a function (images, mask) -> images"
    if isinstance(fill, str) and fill == "dataset_mean":
        if dataset_mean is None:
            raise ValueError(
                "fill='dataset_mean' needs a data set, and there is none here: give its numbers instead, the mean of every channel "
                "over the training images in the images' own units, such as fill=[0.48, 0.46, 0.41]"
            )
        fill = dataset_mean
    if isinstance(fill, str):
        if fill not in FILLS:
            raise ValueError(f"fill must be {choices}, not {fill!r}")
        return partial(_check_and_fill, function=FILLS[fill])
    if callable(fill) and not isinstance(fill, Tensor):
        return partial(_check_and_fill, function=fill)
    try:
        values = torch.as_tensor(fill, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"fill must be {choices}, not {type(fill).__name__}") from error
    if values.ndim > 1 and values.numel() == max(values.shape):
        values = values.flatten()  # [C, 1, 1], as for broadcasting
    if values.ndim > 1 or not bool(values.isfinite().all()):
        raise ValueError(f"fill must be a finite number, or one for each channel, but is {fill!r}")
    return partial(_check_and_fill, function=partial(_fill_with_numbers, values=values))


def _fill_with_numbers(images: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    channels = images.shape[1]
    if values.ndim and len(values) != channels:
        raise ValueError(f"fill gives {len(values)} numbers, one for each channel, but the images have {channels} channels")
    return _replace(images, mask, values.to(images).reshape(-1, *(1,) * (images.ndim - 2)))


def _replace(images: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """torch.where(mask, values, images), in a sixth of its time on a CPU: at 0 and 1, lerp returns its ends as they are."""
    return torch.lerp(images, values, mask.to(images))


def _check_and_fill(images: Tensor, mask: Tensor, function: FillFunction) -> Tensor:
    """
    Raises:
        TypeError: if the images are not floating-point or the mask is not boolean.
        ValueError: if the mask does not fit the images, or the function returns another shape.
    """
    check_images_and_mask(images, mask)
    filled = function(images, mask)
    if not isinstance(filled, Tensor) or filled.shape != images.shape:
        got = f"shape {tuple(filled.shape)}" if isinstance(filled, Tensor) else type(filled).__name__
        raise ValueError(f"a fill must return images of the shape it was given, {tuple(images.shape)}, but returned {got}")
    return filled
