"""What replaces the removed pixels: the fill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Union

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

MeanAndStd = tuple[Numbers, Numbers]
"""How images were normalized: (image - mean) / std."""

DARKER = 0.05
"""By how much pixels may be darker than black, as a share of the brightest one: bicubic resizing overshoots."""


def black(
    images: Float[Tensor, "n c *s"], mask: Bool[Tensor, "n 1 *s"], normalization: MeanAndStd | None = None
) -> Float[Tensor, "n c *s"]:
    """Zero of the images as they were before they were normalized: -mean / std.

    Raises:
        ValueError: if an image has values below that. Then it is not black.
    """
    if normalization is None:
        if len(images) and bool((images < 0).any()):
            raise ValueError(
                "fill='black' is 0 of images that are not normalized, but these have values below 0. Say how they were normalized, "
                "such as normalization=([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) or (0.5, 0.5) for images from -1 to 1, "
                "or give the number of black"
            )
        return _replace(images, mask, images.new_zeros(()))
    mean, std = (_for_channels(numbers, images, "normalization") for numbers in normalization)
    before = images * std.to(images) + mean.to(images)
    if len(images) and float(before.min()) < -DARKER * float(before.max()):
        raise ValueError(
            f"fill='black' is 0 before the normalization, but by the normalization that was given some pixels were "
            f"{float(before.min()):.3g}: images were normalized by other numbers. Give theirs as normalization=(mean, std)"
        )
    return _replace(images, mask, -mean / std)


def image_mean(images: Float[Tensor, "n c *s"], mask: Bool[Tensor, "n 1 *s"]) -> Float[Tensor, "n c *s"]:
    """The mean of each image's channels over all its pixels. It is the same for every fraction."""
    return _replace(images, mask, images.mean(tuple(range(2, images.ndim)), keepdim=True))


FILLS: dict[str, FillFunction] = {"black": black, "image_mean": image_mean, "noisy_linear": noisy_linear}
"""The fills that need no numbers, by name. "dataset_mean" is the name of a fill that does."""


def find_fill(fill: Fill, *, dataset_mean: Numbers | None = None, normalization: MeanAndStd | None = None) -> FillFunction:
    """The function that a fill stands for.

    Args:
        fill: what replaces removed pixels:

            - a number in the images' own units, or one for each channel;
            - "black": 0 of the image, for normalized images -mean / std of each channel;
            - "image_mean": the mean of each image's own channels;
            - "dataset_mean": the mean of the training images' channels, which the caller gives;
            - "noisy_linear": Noisy Linear Imputation (Rong et al. 2022);
            - a function (images [N, C, *S], mask [N, 1, *S]) -> images [N, C, *S].
        dataset_mean: the numbers of "dataset_mean", in the images' own units. None if the caller knows no data set.
        normalization: (mean, std), one number each or one for each channel, if the images are (image - mean) / std. Their own
            units are then those before, usually 0..1: numbers are normalized as well. None for images that are not normalized.

    Returns:
        A function of images and mask, which it checks. It raises ValueError for "black" if images are darker than that, so that
        they are normalized otherwise than the caller says. It can be pickled if the fill can.

    Raises:
        TypeError: if the fill is none of these.
        ValueError: if there is no fill of that name, "dataset_mean" has no numbers, or numbers are not finite or not one for each
            channel, or a std is 0.

    Examples:
        >>> images, mask = torch.ones(1, 1, 1, 2), torch.tensor([[[[True, False]]]])
        >>> find_fill("black", normalization=(0.5, 0.25))(images, mask)
        tensor([[[[-2.,  1.]]]])
    """
    names = ", ".join([*FILLS, *(["dataset_mean"] if dataset_mean is not None else [])])
    choices = f"one of {names}, a number, a number for each channel, or a function (images, mask) -> images"
    scaling = None if normalization is None else _check_normalization(normalization)
    if isinstance(fill, str) and fill == "dataset_mean":
        if dataset_mean is None:
            raise ValueError(
                "fill='dataset_mean' needs the mean of the training images, which is not known here: give its numbers instead, one "
                "for each channel in the images' own units, such as fill=[0.48, 0.46, 0.41]"
            )
        fill = dataset_mean
    if isinstance(fill, str):
        if fill not in FILLS:
            raise ValueError(f"fill must be {choices}, not {fill!r}")
        function = partial(black, normalization=scaling) if fill == "black" else FILLS[fill]
        return partial(_check_and_fill, function=function)
    if callable(fill) and not isinstance(fill, Tensor):
        return partial(_check_and_fill, function=fill)
    try:
        values = _as_numbers(fill)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"fill must be {choices}, not {type(fill).__name__}") from error
    if values.ndim > 1 or not bool(values.isfinite().all()):
        raise ValueError(f"fill must be a finite number, or one for each channel, but is {fill!r}")
    return partial(_check_and_fill, function=partial(_fill_with_numbers, values=values, normalization=scaling))


def _as_numbers(given: Any) -> Tensor:
    values = torch.as_tensor(given, dtype=torch.float64).detach().cpu()
    # [C, 1, 1], as for broadcasting
    return values.flatten() if values.ndim > 1 and values.numel() == max(values.shape) else values


def _check_normalization(normalization: MeanAndStd) -> tuple[Tensor, Tensor]:
    try:
        mean, std = (_as_numbers(numbers) for numbers in normalization)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"normalization must be (mean, std), numbers for the channels, but is {normalization!r}") from error
    sizes = {values.numel() for values in (mean, std)} - {1}
    if max(mean.ndim, std.ndim) > 1 or len(sizes) > 1 or not bool((mean.isfinite() & std.isfinite() & (std != 0)).all()):
        raise ValueError(
            "normalization must be (mean, std), one finite number each or one for each channel, and no std 0, but is "
            f"{normalization!r}"
        )
    return mean, std


def _fill_with_numbers(images: Tensor, mask: Tensor, values: Tensor, normalization: MeanAndStd | None) -> Tensor:
    fill = _for_channels(values, images, "fill")
    if normalization is not None:
        mean, std = (_for_channels(numbers, images, "normalization") for numbers in normalization)
        fill = (fill - mean) / std
    return _replace(images, mask, fill)


def _for_channels(numbers: Numbers, images: Tensor, what: str) -> Float[Tensor, "c *s"]:
    """Numbers [1 or C, 1, 1, ...], in double precision on the CPU."""
    values, channels = torch.as_tensor(numbers, dtype=torch.float64), images.shape[1]
    if values.ndim and len(values) not in (1, channels):
        raise ValueError(f"{what} gives {len(values)} numbers, one for each channel, but the images have {channels} channels")
    return values.reshape(-1, *(1,) * (images.ndim - 2))


def _replace(images: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """torch.where(mask, values, images), in a sixth of its time on a CPU: at 0 and 1, lerp returns its ends as they are."""
    return torch.lerp(images, values.to(images), mask.to(images))


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
