"""timm's networks in a LightningModule, as in projects that use timm."""

from __future__ import annotations

from typing import Any

import timm
import torch
from lightning.pytorch import LightningModule, Trainer
from made_data import CLASSES, loaders
from torch import Tensor, nn

DISTRIBUTION = "timm"


class Classifier(LightningModule):
    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.model = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        scores = self(batch[0])
        self.log("val_loss", self.criterion(scores, batch[1]))
        self.log("val_acc", (scores.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)]


def _fit(trainer: Trainer, name: str, size: int = 64, **options: Any) -> None:
    trainer.fit(Classifier(name, **options), *loaders(lambda image, label, _: (image, label), size))


def resnet(trainer: Trainer) -> None:
    _fit(trainer, "resnet10t")


def coat(trainer: Trainer) -> None:
    _fit(trainer, "coat_lite_tiny", img_size=64)


def coat_parallel(trainer: Trainer) -> None:
    _fit(trainer, "coat_tiny", img_size=64)


def levit(trainer: Trainer) -> None:
    _fit(trainer, "levit_128s", size=224)


def efficientvit(trainer: Trainer) -> None:
    _fit(trainer, "efficientvit_b0")


def convnext(trainer: Trainer) -> None:
    _fit(trainer, "convnext_atto")


def vit(trainer: Trainer) -> None:
    _fit(trainer, "vit_tiny_patch16_224", img_size=64, drop_path_rate=0.1)


def mobilenet(trainer: Trainer) -> None:
    _fit(trainer, "mobilenetv3_small_050", drop_rate=0.2)
