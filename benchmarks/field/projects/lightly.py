"""lightly's modules, losses and transforms in a LightningModule, as in its examples, which import pytorch_lightning."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from lightly.loss import BarlowTwinsLoss, DINOLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    SimCLRProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import DINOTransform, SimCLRTransform
from lightly.utils.scheduler import cosine_schedule
from made_data import pictures
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

DISTRIBUTION = "lightly"
TRAINER = "pytorch_lightning:Trainer"


class Views(Dataset[Any]):
    """Several views of each picture, its class and its name, as in LightlyDataset."""

    def __init__(self, count: int, transform: Any) -> None:
        images, self.classes, _ = pictures(count, 32)
        self.images = [torchvision.transforms.functional.to_pil_image(image) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images[index]), int(self.classes[index]), f"{index}.png"


class SimCLR(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        resnet = torchvision.models.resnet18()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = SimCLRProjectionHead(512, 64, 32)
        self.criterion = NTXentLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        (x0, x1), _, _ = batch
        loss = self.criterion(self.forward(x0), self.forward(x1))
        self.log("train_loss_ssl", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)


class BarlowTwins(SimCLR):
    def __init__(self) -> None:
        super().__init__()
        self.projection_head = BarlowTwinsProjectionHead(512, 64, 64)
        self.criterion = BarlowTwinsLoss()

    def validation_step(self, batch: Any, batch_index: int) -> None:
        (x0, x1), _, _ = batch
        self.log("val_loss_ssl", self.criterion(self.forward(x0), self.forward(x1)))


class BYOL(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        resnet = torchvision.models.resnet18()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = BYOLProjectionHead(512, 64, 32)
        self.prediction_head = BYOLPredictionHead(32, 64, 32)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x: Tensor) -> Tensor:
        return self.prediction_head(self.projection_head(self.backbone(x).flatten(start_dim=1)))

    def forward_momentum(self, x: Tensor) -> Tensor:
        return self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1)).detach()

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        momentum = cosine_schedule(self.current_epoch, 10, 0.996, 1)
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)
        (x0, x1) = batch[0]
        p0, z0, p1, z1 = self.forward(x0), self.forward_momentum(x0), self.forward(x1), self.forward_momentum(x1)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)


class DINO(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
        self.student_backbone = backbone
        self.student_head = DINOProjectionHead(512, 64, 32, 128, freeze_last_layer=1)
        self.teacher_backbone = copy.deepcopy(backbone)
        self.teacher_head = DINOProjectionHead(512, 64, 32, 128)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(output_dim=128, warmup_teacher_temp_epochs=5)

    def forward(self, x: Tensor) -> Tensor:
        return self.student_head(self.student_backbone(x).flatten(start_dim=1))

    def forward_teacher(self, x: Tensor) -> Tensor:
        return self.teacher_head(self.teacher_backbone(x).flatten(start_dim=1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        momentum = cosine_schedule(self.current_epoch, 10, 0.996, 1)
        update_momentum(self.student_backbone, self.teacher_backbone, m=momentum)
        update_momentum(self.student_head, self.teacher_head, m=momentum)
        views = batch[0]
        teacher_out = [self.forward_teacher(view) for view in views[:2]]
        student_out = [self.forward(view) for view in views]
        return self.criterion(teacher_out, student_out, epoch=self.current_epoch)

    def on_after_backward(self) -> None:
        self.student_head.cancel_last_layer_gradients(current_epoch=self.current_epoch)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.001)


def _loader(transform: Any, count: int = 24) -> DataLoader[Any]:
    return DataLoader(Views(count, transform), batch_size=8, shuffle=True, drop_last=True)


def simclr(trainer: pl.Trainer) -> None:
    trainer.fit(SimCLR(), _loader(SimCLRTransform(input_size=32, gaussian_blur=0.0)))


def barlow_twins(trainer: pl.Trainer) -> None:
    validation = DataLoader(Views(8, SimCLRTransform(input_size=32, gaussian_blur=0.0)), batch_size=8)
    trainer.fit(BarlowTwins(), _loader(SimCLRTransform(input_size=32)), validation)


def byol(trainer: pl.Trainer) -> None:
    trainer.fit(BYOL(), _loader(SimCLRTransform(input_size=32)))


def dino(trainer: pl.Trainer) -> None:
    trainer.fit(DINO(), _loader(DINOTransform(global_crop_size=32, local_crop_size=32, n_local_views=2)))
