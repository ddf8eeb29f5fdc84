"""Data and networks so small that a training takes a tenth of a second; imported by the processes that the tests start, too."""

import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchmetrics.classification import MulticlassAccuracy
from torchvision.datasets import VisionDataset
from torchvision.transforms import v2

SIDE = 8
TENSOR = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])


class Squares(VisionDataset):
    """Grey noise with a bright square in one of two corners, as PIL; the corner is the label."""

    def __init__(self, n=40, seed=0, transform=None, channels=1, target_transform=None):
        super().__init__(".", transform=transform, target_transform=target_transform)
        shape = (n, SIDE, SIDE) if channels == 1 else (n, SIDE, SIDE, channels)
        self.pixels = np.random.default_rng(seed).integers(0, 100, shape, dtype=np.uint8)
        self.labels = [i % 2 for i in range(n)]
        for pixels, label in zip(self.pixels, self.labels, strict=True):
            corner = slice(0, 3) if label else slice(5, 8)
            pixels[corner, corner] = 255

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        image, label = Image.fromarray(self.pixels[index]), self.labels[index]
        if self.transform is not None:
            image = self.transform(image)
        return image, label


class Data(LightningDataModule):
    """40 to train, 10 to validate and 20 to test; the training images are flipped at random."""

    def __init__(self, num_workers=0, batch_size=8, augment=False, n=40):
        super().__init__()
        self.num_workers, self.batch_size, self.n = num_workers, batch_size, n
        self.augment = v2.Compose([v2.RandomVerticalFlip(), TENSOR]) if augment else TENSOR

    def setup(self, stage):
        both = range(self.n + 10)
        self.train = Subset(Squares(len(both), transform=self.augment), both[: self.n])
        self.val = Subset(Squares(len(both), transform=TENSOR), both[self.n :])
        self.test = Squares(20, seed=1, transform=TENSOR)

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self):
        return DataLoader(self.val, self.batch_size, num_workers=self.num_workers)

    def test_dataloader(self):
        return DataLoader(self.test, self.batch_size, num_workers=self.num_workers)


class Net(LightningModule):
    """A convolution and a linear layer."""

    def __init__(self, width=4, lr=0.05):
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(width * 16, 2)
        )
        self.lr = lr
        self.accuracy = MulticlassAccuracy(2, average="micro")

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.accuracy(self(batch[0]), batch[1])
        self.log("test/accuracy", self.accuracy)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Slow(Net):
    """Writes down that a training has begun, and waits: SECONDS_EACH in all, or for ever in the training of number HANG_AT."""

    def on_train_start(self):
        path = os.environ["BEGUN"]
        with open(path, "a") as file:
            file.write("begun\n")
        with open(path) as file:
            hangs = len(file.readlines()) == int(os.environ.get("HANG_AT", "0"))
        time.sleep(3600 if hangs else float(os.environ.get("SECONDS_EACH", "0")))


class Diverging(Net):
    """Its loss is not finite, but for the seeds that come out even."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if torch.initial_seed() % 2 else loss
