"""Synthetic data: noise with a bright square. The class is the quarter of the image that contains it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

CLASSES = 4
Item = Callable[[Tensor, Tensor, Tensor], Any]
"""Function from an image, its class and its label map to an item of a loader."""


def pictures(count: int, size: int, channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images [N, C, size, size], classes [N] and label maps [N, size, size] that are class + 1 on the square."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, channels, size, size, generator=generator) * 0.5
    classes = torch.randperm(count, generator=generator) % CLASSES
    maps = torch.zeros(count, size, size, dtype=torch.long)
    half, side = size // 2, size // 4
    for index, label in enumerate(classes.tolist()):
        top, left = half * (label // 2) + side // 2, half * (label % 2) + side // 2
        images[index, :, top : top + side, left : left + side] += 0.5
        maps[index, top : top + side, left : left + side] = label + 1
    return images, classes, maps


class Pictures(Dataset[Any]):
    """The images of `pictures` as items."""

    def __init__(
        self, count: int, size: int, item: Callable[[Tensor, Tensor, Tensor], Any], channels: int = 3, seed: int = 0
    ) -> None:
        self.rows = pictures(count, size, channels, seed)
        self.item = item

    def __len__(self) -> int:
        return len(self.rows[0])

    def __getitem__(self, index: int) -> Any:
        return self.item(*(column[index] for column in self.rows))


def loaders(
    item: Callable[[Tensor, Tensor, Tensor], Any],
    size: int = 32,
    channels: int = 3,
    count: int = 32,
    batch: int = 8,
    **options: Any,
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of training and validation data, see `Pictures`."""
    training, validation = (Pictures(n, size, item, channels, seed) for seed, n in enumerate((count, count // 2)))
    return DataLoader(training, batch, shuffle=True, **options), DataLoader(validation, batch, **options)


def write_pictures(folder: Path, count: int, size: int) -> None:
    """Folders of PNG files: `normal` noise, the same `marked` with the square, and its `masks`."""
    from torchvision.utils import save_image

    images, _, maps = pictures(count, size)
    masks = (maps > 0)[:, None].float()
    for name, shown in (("normal", images - 0.5 * masks), ("marked", images), ("masks", masks)):
        (folder / name).mkdir(parents=True)
        for index, image in enumerate(shown):
            save_image(image, folder / name / f"{index:03}.png")
