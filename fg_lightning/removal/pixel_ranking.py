"""Ranks the pixels of a saliency map, and chooses those to remove."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar

import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fg_lightning.errors import list_briefly
from fg_lightning.sample_seeds import Seed, seeds_of

Order = Literal["morf", "lerf"]
"""Most relevant first, or least relevant first."""

Ranks = TypeVar("Ranks", Tensor, npt.NDArray[Any])

ORDERS = ("morf", "lerf")


def ranks(maps: Float[Tensor, "n 1 *s"], seed: Seed = 0) -> Int[Tensor, "n *s"]:
    """The rank of every pixel. "morf" removes rank 0 first, "lerf" removes it last.

    Pixels of equal saliency are ranked at random, but the same each time and in every batch.

    Args:
        maps: saliency maps [N, 1, *S], floating-point.
        seed: breaks the ties. An int is combined with the values of each map, so equal maps have equal ranks. A sequence has one
            int for each image, such as its index in the data set. Default: 0.

    Returns:
        [N, *S], int64, a permutation of 0 .. number of pixels - 1 for every image.

    Raises:
        TypeError: if the maps are not a floating-point tensor.
        ValueError: if they are not [N, 1, *S] or hold NaN, or there are not as many seeds as maps.
    """
    check_maps(maps)
    values = maps.detach().flatten(1)
    n, pixels = values.shape
    shuffled = torch.empty((n, pixels), dtype=torch.long)
    for row, own in zip(shuffled, seeds_of(maps, seed), strict=True):
        torch.randperm(pixels, generator=torch.Generator().manual_seed(own), out=row)
    shuffled = shuffled.to(values.device)
    by_saliency = values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(pixels, device=values.device).expand(n, pixels)
    return torch.empty_like(shuffled).scatter_(1, shuffled.gather(1, by_saliency), places).reshape(n, *maps.shape[2:])


def removal_mask(ranks: Ranks, fraction: float, order: Order = "morf") -> Ranks:
    """The mask of the pixels to remove: exactly round(fraction * number of pixels) of each image.

    Args:
        ranks: [N, *S] from `ranks`, as a tensor or an array of any integer type.
        fraction: the share of pixels to remove, 0 to 1.
        order: "morf" (most relevant first) or "lerf" (least relevant first). Default: "morf".

    Returns:
        Bool [N, *S], True where a pixel is removed; an array if the ranks are one.

    Raises:
        ValueError: if the fraction lies outside 0..1 or there is no such order.
    """
    check_fraction(fraction)
    check_order(order)
    pixels = math.prod(ranks.shape[1:])
    count = round(fraction * pixels)
    if isinstance(ranks, Tensor) and ranks.dtype in (torch.uint16, torch.uint32, torch.uint64):
        ranks = ranks.long()  # torch cannot compare these types
    return ranks < count if order == "morf" else ranks >= pixels - count


def top_pixels(maps: Float[Tensor, "n 1 *s"], fraction: float, order: Order = "morf", seed: Seed = 0) -> Bool[Tensor, "n 1 *s"]:
    """The mask of the pixels to remove: the `removal_mask` of the maps' `ranks`, with their errors.

    Args:
        maps: saliency maps [N, 1, *S], floating-point.
        fraction: the share of pixels to remove, 0 to 1.
        order: "morf" (most relevant first) or "lerf" (least relevant first). Default: "morf".
        seed: breaks ties between pixels of equal saliency, as in `ranks`. Default: 0.

    Returns:
        Bool [N, 1, *S], True where a pixel is removed.
    """
    return removal_mask(ranks(maps, seed), fraction, order).unsqueeze(1)


def check_images(images: Tensor) -> None:
    """Raises TypeError if the images are not a floating-point tensor."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"images must be a floating-point tensor [N, C, *S], not {got}: convert them first, e.g. images.float() / 255"
        )


def check_images_and_mask(images: Tensor, mask: Tensor) -> None:
    """Checks images [N, C, *S] and a mask [N, 1, *S].

    Raises:
        TypeError: if the images are not floating-point or the mask is not boolean.
        ValueError: if the mask does not fit the images.
    """
    check_images(images)
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        got = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a boolean tensor, True where a pixel is removed, not {got}")
    expected = (len(images), 1, *images.shape[2:])
    if mask.shape != expected:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, but images of shape {tuple(images.shape)} need a mask of shape {expected}"
        )


def check_fraction(fraction: float) -> None:
    """Raises ValueError if the fraction lies outside 0..1."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie between 0 and 1, but is {fraction}; divide a percentage by 100")


def check_order(order: str) -> None:
    """Raises ValueError if there is no such order."""
    if order not in ORDERS:
        raise ValueError(f"order must be 'morf' (most relevant pixels first) or 'lerf' (least relevant first), not {order!r}")


def check_maps(maps: Tensor, images: Tensor | None = None) -> None:
    """Checks saliency maps.

    Args:
        maps: saliency maps, [N, 1, *S].
        images: [N, C, *S], the images of the maps. Default: None, they are not checked.

    Raises:
        TypeError: if the maps are not a floating-point tensor.
        ValueError: if they are not [N, 1, *S], do not fit the images, or hold NaN.
    """
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        got = f"a tensor of {maps.dtype}" if isinstance(maps, Tensor) else type(maps).__name__
        raise TypeError(f"maps must be a floating-point tensor [N, 1, *S], not {got}")
    if maps.ndim < 3 or maps.shape[1] != 1:
        raise ValueError(
            f"maps must be [N, 1, *S], but have shape {tuple(maps.shape)}; add a channel with maps[:, None], "
            "or combine several channels with maps.abs().sum(1, keepdim=True)"
        )
    if images is not None and (len(maps) != len(images) or maps.shape[2:] != images.shape[2:]):
        raise ValueError(
            f"maps of shape {tuple(maps.shape)} do not fit images of shape {tuple(images.shape)}: "
            f"expected {(len(images), 1, *images.shape[2:])}; resize the maps with torch.nn.functional.interpolate"
        )
    unknown = maps.isnan().flatten(1).sum(1)
    if bool(unknown.any()):
        where = unknown.nonzero().flatten().tolist()
        raise ValueError(
            f"{int(unknown.sum())} of {maps.numel()} saliency values are NaN, in the maps at {list_briefly(where)} of the batch, "
            "so pixels cannot be ranked; check that the model's output and gradients are finite"
        )
