"""Watch what a segmentation network looks at: python examples/watch_a_segmentation.py

The network labels each ink pixel with its digit; the paper is class 0. For an output [N, K, H, W] and labels [N, H, W], the monitor
explains the mean score of an image's largest class, except class 0, over its region. The map shows which pixels tell the network
that this ink is a seven. The film strip is in fullgrad/version_0/.
"""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fg_lightning import FullGradMonitor
from fg_lightning.demo import load_digits


def coloured_digits() -> TensorDataset:
    """Digits [N, 1, 28, 28] and the class of every pixel, [N, 28, 28]."""
    images, labels = load_digits().tensors
    return TensorDataset(images, (images[:, 0] > 0) * (labels + 1)[:, None, None])


def block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())


class Segmenter(LightningModule):
    """A network with two branches: the whole digit at a quarter of its size, and its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = block(1, 16)
        self.coarse = nn.Sequential(nn.MaxPool2d(2), block(16, 32), nn.MaxPool2d(2), block(32, 64), block(64, 64), block(64, 64))
        self.head = nn.Sequential(block(80, 32), nn.Conv2d(32, 11, 1))

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)
        coarse = F.interpolate(self.coarse(fine), size=fine.shape[2:], mode="bilinear")
        return self.head(torch.cat([fine, coarse], 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, label_maps = batch
        return F.cross_entropy(self(images), label_maps)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, label_maps = batch
        ink = label_maps > 0
        self.log("val/ink_accuracy", (self(images).argmax(1) == label_maps)[ink].float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


if __name__ == "__main__":
    seed_everything(0)
    train, held_out = random_split(coloured_digits(), [4500, 500])
    monitor = FullGradMonitor(class_names=["paper", *"0123456789"])
    trainer = Trainer(max_epochs=3, callbacks=[monitor], logger=False, enable_checkpointing=False)
    trainer.fit(Segmenter(), DataLoader(train, 64, shuffle=True), DataLoader(held_out, 125))
    print("accuracy on ink   ", round(float(trainer.callback_metrics["val/ink_accuracy"]), 3))
    print("completeness error", monitor.history.snapshots[-1].numbers["fullgrad/completeness_error"])
    print("film strip        ", monitor.history.strip_path)
