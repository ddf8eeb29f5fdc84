"""Watch a Vision Transformer of Hugging Face while it learns digits: python examples/watch_a_vision_transformer.py

Needs: pip install transformers 'fg-lightning[demo]'. The film strip is in fullgrad/version_0/. Attention, layer norm and GELU are
part of the decomposition like any other operation.
"""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from fg_lightning import FullGradMonitor
from fg_lightning.demo import DigitsDataModule


class DigitTransformer(LightningModule):
    """A ViT with patches of 4 x 4 pixels and four layers."""

    def __init__(self) -> None:
        super().__init__()
        config = ViTConfig(
            image_size=28,
            patch_size=4,
            num_channels=1,
            num_labels=10,
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=128,
        )
        self.vit = ViTForImageClassification(config)

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(images).logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("val/accuracy", (self(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


if __name__ == "__main__":
    seed_everything(0)
    monitor = FullGradMonitor()
    trainer = Trainer(max_epochs=2, callbacks=[monitor], logger=False, enable_checkpointing=False)
    trainer.fit(DigitTransformer(), DigitsDataModule())
    print("completeness error", monitor.history.snapshots[-1].numbers["fullgrad/completeness_error"])
    print("film strip        ", monitor.history.strip_path)
