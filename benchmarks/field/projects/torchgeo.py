"""torchgeo's tasks, unchanged."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from made_data import CLASSES, loaders
from torch import Tensor
from torchgeo.trainers import (
    BYOLTask,
    ClassificationTask,
    MoCoTask,
    MultiLabelClassificationTask,
    ObjectDetectionTask,
    PixelwiseRegressionTask,
    RegressionTask,
    SemanticSegmentationTask,
    SimCLRTask,
)

DISTRIBUTION = "torchgeo"


def _labelled(image: Tensor, label: Tensor, marks: Tensor) -> dict[str, Tensor]:
    return {"image": image, "label": label}


def _mapped(image: Tensor, label: Tensor, marks: Tensor) -> dict[str, Tensor]:
    return {"image": image, "mask": marks}


def classification(trainer: Trainer) -> None:
    task = ClassificationTask("resnet18", in_channels=4, task="multiclass", num_classes=CLASSES)
    trainer.fit(task, *loaders(_labelled, channels=4))


def multilabel(trainer: Trainer) -> None:
    def item(image: Tensor, label: Tensor, marks: Tensor) -> dict[str, Tensor]:
        return {"image": image, "label": (torch.arange(CLASSES) <= label).long()}

    trainer.fit(MultiLabelClassificationTask("resnet18", num_classes=CLASSES, loss="bce"), *loaders(item))


def segmentation(trainer: Trainer) -> None:
    task = SemanticSegmentationTask("unet", "resnet18", task="multiclass", num_classes=CLASSES + 1)
    trainer.fit(task, *loaders(_mapped))


def regression(trainer: Trainer) -> None:
    def item(image: Tensor, label: Tensor, marks: Tensor) -> dict[str, Tensor]:
        return {"image": image, "label": label[None].float()}

    trainer.fit(RegressionTask("resnet18"), *loaders(item))


def pixelwise_regression(trainer: Trainer) -> None:
    def item(image: Tensor, label: Tensor, marks: Tensor) -> dict[str, Tensor]:
        return {"image": image, "mask": marks[None].float()}

    trainer.fit(PixelwiseRegressionTask("unet", "resnet18"), *loaders(item))


def byol(trainer: Trainer) -> None:
    trainer.fit(BYOLTask("resnet18"), loaders(_labelled, count=16)[0])


def byol_validated(trainer: Trainer) -> None:
    trainer.fit(BYOLTask("resnet18"), *loaders(_labelled, count=16))


def simclr(trainer: Trainer) -> None:
    trainer.fit(SimCLRTask("resnet18", size=32, lr=0.1), *loaders(_labelled))


def moco(trainer: Trainer) -> None:
    trainer.fit(MoCoTask("resnet18", size=32, lr=0.1, hidden_dim=64, output_dim=32), loaders(_labelled)[0])


def detection(trainer: Trainer) -> None:
    def item(image: Tensor, label: Tensor, marks: Tensor) -> dict[str, Tensor]:
        rows, columns = torch.nonzero(marks).unbind(1)
        box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        return {"image": image, "bbox_xyxy": box[None], "label": label[None] + 1}

    def collated(items: list[dict[str, Tensor]]) -> dict[str, Any]:
        images = torch.stack([item["image"] for item in items])
        return {"image": images, **{key: [item[key] for item in items] for key in ("bbox_xyxy", "label")}}

    task = ObjectDetectionTask("fcos", "resnet18", num_classes=CLASSES + 1)
    trainer.fit(task, *loaders(item, size=64, count=8, batch=2, collate_fn=collated))
