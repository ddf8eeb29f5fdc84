"""Hugging Face's models in a LightningModule, as in its notebooks: batches are mappings, outputs are dataclasses."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from made_data import CLASSES, loaders
from torch import Tensor
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

DISTRIBUTION = "transformers"
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


class Wrapped(LightningModule):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        return self.model(pixel_values=pixel_values, labels=labels)

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self(**batch).loss
        self.log("training_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("validation_loss", self(**batch).loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Pretrained(Wrapped):
    """A model without labels: its loss depends only on the images."""

    def forward(self, pixel_values: Tensor) -> Any:
        return self.model(pixel_values=pixel_values)


def vit(trainer: Trainer) -> None:
    model = ViTForImageClassification(ViTConfig(**SMALL, num_labels=CLASSES))
    trainer.fit(Wrapped(model), *loaders(lambda image, label, _: {"pixel_values": image, "labels": label}))


def convnext(trainer: Trainer) -> None:
    model = ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, num_labels=CLASSES))
    trainer.fit(Wrapped(model), *loaders(lambda image, label, _: {"pixel_values": image, "labels": label}))


def segformer(trainer: Trainer) -> None:
    sizes = {
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "decoder_hidden_size": 16,
        "num_attention_heads": [1, 1, 2, 2],
    }
    model = SegformerForSemanticSegmentation(SegformerConfig(**sizes, num_labels=CLASSES + 1))
    trainer.fit(Wrapped(model), *loaders(lambda image, _, marks: {"pixel_values": image, "labels": marks}, size=64))


def masked_autoencoder(trainer: Trainer) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    decoder = {f"decoder_{name}": value for name, value in sizes.items()}
    model = ViTMAEForPreTraining(ViTMAEConfig(**SMALL, **decoder))
    trainer.fit(Pretrained(model), *loaders(lambda image, *_: {"pixel_values": image}))
