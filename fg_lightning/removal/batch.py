"""What every imputer takes: images, and a mask of the pixels that go."""

from __future__ import annotations

import torch
from torch import Tensor


def check_images(images: Tensor) -> None:
    """
    Raises:
        TypeError: if the images are no floating-point tensor.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"images must be a floating-point tensor [N, C, *S], not {got}: convert them first, e.g. images.float() / 255"
        )


def check_batch(images: Tensor, mask: Tensor) -> None:
    """
    Raises:
        TypeError: if the images are not floating-point or the mask is not boolean.
        ValueError: if the mask does not go with the images.
    """
    check_images(images)
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        got = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a boolean tensor, True where a pixel goes, not {got}")
    expected = (len(images), 1, *images.shape[2:])
    if mask.shape != expected:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, but images of shape {tuple(images.shape)} take one of shape {expected}"
        )
