"""segmentation-models-pytorch in a LightningModule, as in its examples."""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
import torch
from lightning.pytorch import LightningModule, Trainer
from made_data import CLASSES, loaders
from torch import Tensor

DISTRIBUTION = "segmentation-models-pytorch"


class PetModel(LightningModule):
    def __init__(self, arch: str, classes: int) -> None:
        super().__init__()
        self.model = smp.create_model(arch, encoder_name="resnet18", encoder_weights=None, in_channels=3, classes=classes)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.mode = smp.losses.BINARY_MODE if classes == 1 else smp.losses.MULTICLASS_MODE
        self.loss_fn = smp.losses.DiceLoss(self.mode, from_logits=True)

    def forward(self, image: Tensor) -> Tensor:
        return self.model((image - self.mean) / self.std)

    def shared_step(self, batch: Any, stage: str) -> Tensor:
        image, mask = batch["image"], batch["mask"]
        logits = self.forward(image)
        loss = self.loss_fn(logits, mask)
        guess = (logits.sigmoid() > 0.5).long() if self.mode == "binary" else logits.argmax(1)
        options = {} if self.mode == "binary" else {"num_classes": logits.shape[1]}
        counts = smp.metrics.get_stats(guess, mask.long(), mode=self.mode, **options)
        self.log(f"{stage}_iou", smp.metrics.iou_score(*counts, reduction="micro"))
        self.log(f"{stage}_loss", loss)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.shared_step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.shared_step(batch, "valid")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8, eta_min=1e-5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 1}}


def _classes(image: Tensor, label: Tensor, marks: Tensor) -> dict[str, Tensor]:
    return {"image": image, "mask": marks}


def unet(trainer: Trainer) -> None:
    trainer.fit(PetModel("Unet", CLASSES + 1), *loaders(_classes, size=64, count=16))


def fpn_binary(trainer: Trainer) -> None:
    def item(image: Tensor, label: Tensor, marks: Tensor) -> dict[str, Tensor]:
        return {"image": image, "mask": (marks > 0).float()[None]}

    trainer.fit(PetModel("FPN", 1), *loaders(item, size=64, count=16))


def deeplab(trainer: Trainer) -> None:
    trainer.fit(PetModel("DeepLabV3Plus", CLASSES + 1), *loaders(_classes, size=64, count=16))
