"""What replaces the pixels that go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Union

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fg_lightning.removal.batch import check_batch
from fg_lightning.removal.linear_imputation import noisy_linear

Imputer = Callable[[Float[Tensor, "n c *s"], Bool[Tensor, "n 1 *s"]], Float[Tensor, "n c *s"]]
"""(images, which pixels go) -> images with those pixels replaced; new ones, each of which depends on its own image alone."""

Fill = Union[float, str, Sequence[float], Tensor, Imputer]
"""A number, one for each channel, the name of an imputer, or an imputer of one's own."""


def channel_mean(images: Float[Tensor, "n c *s"], mask: Bool[Tensor, "n 1 *s"]) -> Float[Tensor, "n c *s"]:
    """Every image's own mean of each channel, over all its pixels, also those that go: the same whatever share of them goes."""
    return _replaced(images, mask, images.mean(tuple(range(2, images.ndim)), keepdim=True))


IMPUTERS: dict[str, Imputer] = {"mean": channel_mean, "noisy_linear": noisy_linear}


def find_imputer(fill: Fill) -> Imputer:
    """The imputer that a fill stands for.

    Args:
        fill: a number in the images' own units (0.0 is the paper's black where images are not normalised); one number for each
            channel, such as a data set's channel means; "mean", the image's own channel means; "noisy_linear" (Rong et al. 2022);
            or a function (images [N, C, *S], mask [N, 1, *S]) -> images [N, C, *S].

    Returns:
        A function of images and mask, which it checks. It can be pickled if the fill can.

    Raises:
        TypeError: if the fill is none of these.
        ValueError: if there is no imputer of that name, or the numbers are not finite or not one for each channel.
    """
    if isinstance(fill, str):
        if fill not in IMPUTERS:
            raise ValueError(
                f"fill must be one of {', '.join(IMPUTERS)}, a number, a number for each channel, "
                f"or a function (images, mask) -> images, not {fill!r}"
            )
        return partial(_imputed, imputer=IMPUTERS[fill])
    if callable(fill) and not isinstance(fill, Tensor):
        return partial(_imputed, imputer=fill)
    try:
        values = torch.as_tensor(fill, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"fill must be one of {', '.join(IMPUTERS)}, a number, a number for each channel, "
            f"or a function (images, mask) -> images, not {type(fill).__name__}"
        ) from error
    if values.ndim > 1 and values.numel() == max(values.shape):
        values = values.flatten()  # [C, 1, 1], as for broadcasting
    if values.ndim > 1 or not bool(values.isfinite().all()):
        raise ValueError(f"fill must be a finite number, or one for each channel, but is {fill!r}")
    return partial(_imputed, imputer=partial(_constant, values=values))


def _constant(images: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    channels = images.shape[1]
    if values.ndim and len(values) != channels:
        raise ValueError(f"fill gives {len(values)} numbers, one for each channel, but the images have {channels} channels")
    return _replaced(images, mask, values.to(images).reshape(-1, *(1,) * (images.ndim - 2)))


def _replaced(images: Tensor, mask: Tensor, fill: Tensor) -> Tensor:
    """torch.where(mask, fill, images), in a sixth of its time on a CPU: at 0 and 1, lerp returns its ends as they are."""
    return torch.lerp(images, fill, mask.to(images))


def _imputed(images: Tensor, mask: Tensor, imputer: Imputer) -> Tensor:
    """
    Raises:
        TypeError: if the images are not floating-point or the mask is not boolean.
        ValueError: if the mask does not go with the images, or what comes back is not of their shape.
    """
    check_batch(images, mask)
    replaced = imputer(images, mask)
    if not isinstance(replaced, Tensor) or replaced.shape != images.shape:
        got = f"shape {tuple(replaced.shape)}" if isinstance(replaced, Tensor) else type(replaced).__name__
        raise ValueError(f"an imputer must return images of the shape it was given, {tuple(images.shape)}, but returned {got}")
    return replaced
