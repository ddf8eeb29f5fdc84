"""torchvision's detectors and a transfer-learning classifier in a LightningModule."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from made_data import CLASSES, loaders
from torch import Tensor, nn
from torchvision import models, ops

DISTRIBUTION = "torchvision"


class Detector(LightningModule):
    """A detector as in torchvision's training script, with a list of images and a list of targets."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        return self.model(images, targets)

    def training_step(self, batch: Any, index: int) -> Tensor:
        losses = self(*batch)
        self.log_dict(losses, batch_size=len(batch[0]))
        return sum(losses.values())

    def validation_step(self, batch: Any, index: int) -> None:
        found = self(batch[0])
        overlaps = [ops.box_iou(one["boxes"], other["boxes"]).sum() for one, other in zip(found, batch[1], strict=True)]
        self.log("val_overlap", torch.stack(overlaps).mean(), batch_size=len(found))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9)


class Transfer(LightningModule):
    """The backbone's modules under a second name, as in Lightning's page on transfer learning."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = models.resnet18(weights=None)
        self.feature_extractor = nn.Sequential(*list(self.backbone.children())[:-1])
        self.classifier = nn.Linear(self.backbone.fc.in_features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.feature_extractor.eval()
        with torch.no_grad():
            representations = self.feature_extractor(x).flatten(1)
        return self.classifier(representations)

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


def _boxed(image: Tensor, label: Tensor, marks: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    rows, columns = torch.nonzero(marks).unbind(1)
    box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
    return image, {"boxes": box[None], "labels": label[None] + 1}


def _collated(items: list[Any]) -> list[Any]:
    return [list(column) for column in zip(*items, strict=True)]


def _detect(trainer: Trainer, model: nn.Module) -> None:
    trainer.fit(Detector(model), *loaders(_boxed, size=64, count=8, batch=2, collate_fn=_collated))


def faster_rcnn(trainer: Trainer) -> None:
    sizes = {"min_size": 64, "max_size": 64, "num_classes": CLASSES + 1}
    _detect(trainer, models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, **sizes))


def ssdlite(trainer: Trainer) -> None:
    _detect(trainer, models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES + 1))


def transfer(trainer: Trainer) -> None:
    trainer.fit(Transfer(), *loaders(lambda image, label, _: (image, label)))
