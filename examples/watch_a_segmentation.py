"""What a network looks at when it draws a label map: python examples/watch_a_segmentation.py

The data are digits whose ink is to be coloured by what digit it is; the paper is class 0. For an output [N, K, H, W] and labels
[N, H, W] the monitor explains the mean score of an image's largest class, but for class 0, over its region: which pixels tell the
network that this ink is a seven. The film strip lies in fullgrad/version_0/ when it is done.
"""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from fg_lightning import FullGradMonitor
from fg_lightning.demo.data import digits


def coloured_digits() -> TensorDataset:
    """Digits of 56 x 56 pixels, [N, 3, 56, 56], and a class for every pixel, [N, 56, 56]."""
    images, labels = digits().tensors
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:1500]
    large = F.interpolate(images[order], scale_factor=2.0, mode="bilinear")
    return TensorDataset(large.expand(-1, 3, -1, -1), (large[:, 0] > 0) * (labels[order] + 1)[:, None, None])


class Segmenter(LightningModule):
    """A light network of torchvision with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=11)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)["out"]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, label_maps = batch
        weight = images.new_tensor([0.1] + [1.0] * 10)  # most of an image is paper
        return F.cross_entropy(self(images), label_maps, weight)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, label_maps = batch
        ink = label_maps > 0
        self.log("val/ink_accuracy", (self(images).argmax(1) == label_maps)[ink].float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


if __name__ == "__main__":
    seed_everything(0)
    dataset = coloured_digits()
    train, held_out = torch.utils.data.random_split(dataset, [1250, 250])
    monitor = FullGradMonitor()
    trainer = Trainer(max_epochs=2, callbacks=[monitor], logger=False, enable_checkpointing=False)
    trainer.fit(Segmenter(), DataLoader(train, 32, shuffle=True, drop_last=True), DataLoader(held_out, 125))
    print("completeness error", monitor.history.looks[-1].numbers["fullgrad/completeness_error"])
    print("film strip        ", monitor.history.strip_path)
