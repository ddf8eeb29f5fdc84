"""MONAI's networks, losses, transforms and metrics in a LightningModule, as in its tutorials."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from made_data import CLASSES, pictures
from monai.data import CacheDataset, DataLoader, decollate_batch
from monai.losses import DiceLoss
from monai.metrics import DiceMetric
from monai.networks.nets import DenseNet121, UNet, ViT
from monai.transforms import AsDiscrete, Compose, EnsureType, NormalizeIntensityd, RandFlipd
from torch import Tensor, nn

DISTRIBUTION = "monai"


class Segmenter(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self._model = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)
        self.loss_function = DiceLoss(to_onehot_y=True, softmax=True)
        self.post_pred = Compose([EnsureType("tensor"), AsDiscrete(argmax=True, to_onehot=2)])
        self.post_label = Compose([EnsureType("tensor"), AsDiscrete(to_onehot=2)])
        self.dice_metric = DiceMetric(include_background=False, reduction="mean")

    def forward(self, x: Tensor) -> Tensor:
        return self._model(x)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self._model.parameters(), 1e-3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss_function(self(batch["image"]), batch["label"])
        self.log("train_loss", loss.as_tensor() if hasattr(loss, "as_tensor") else loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        outputs = self.forward(batch["image"])
        guesses = [self.post_pred(one) for one in decollate_batch(outputs)]
        labels = [self.post_label(one) for one in decollate_batch(batch["label"])]
        self.dice_metric(y_pred=guesses, y=labels)

    def on_validation_epoch_end(self) -> None:
        self.log("val_dice", self.dice_metric.aggregate().item())
        self.dice_metric.reset()


class Classifier(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def loss(self, batch: Any) -> Tensor:
        scores = self(batch["image"])
        return nn.functional.cross_entropy(scores[0] if isinstance(scores, tuple) else scores, batch["label"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch).as_subclass(torch.Tensor))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


def _loaders(items: list[dict[str, Tensor]], keys: list[str]) -> tuple[Any, Any]:
    plain = [NormalizeIntensityd("image")]
    flipped = Compose([*plain, RandFlipd(keys, prob=0.5, spatial_axis=0)])
    half = len(items) * 2 // 3
    training = CacheDataset(items[:half], flipped, progress=False)
    validation = CacheDataset(items[half:], Compose(plain), progress=False)
    return DataLoader(training, batch_size=4, shuffle=True), DataLoader(validation, batch_size=4)


def unet_of_volumes(trainer: Trainer) -> None:
    images, _, maps = pictures(18, 16, channels=1)
    volumes, labels = images[..., None].expand(-1, -1, -1, -1, 16), (maps > 0)[:, None, ..., None].expand(-1, -1, -1, -1, 16)
    items = [{"image": x.clone(), "label": y.float().clone()} for x, y in zip(volumes, labels, strict=True)]
    trainer.fit(Segmenter(), *_loaders(items, ["image", "label"]))


def _classify(trainer: Trainer, network: nn.Module) -> None:
    images, classes, _ = pictures(24, 32, channels=1)
    trainer.fit(Classifier(network), *_loaders([{"image": x, "label": y} for x, y in zip(images, classes, strict=True)], ["image"]))


def densenet(trainer: Trainer) -> None:
    _classify(trainer, DenseNet121(spatial_dims=2, in_channels=1, out_channels=CLASSES))


def vit(trainer: Trainer) -> None:
    sizes = {"hidden_size": 32, "mlp_dim": 64, "num_layers": 2, "num_heads": 2}
    _classify(trainer, ViT(1, 32, 8, **sizes, classification=True, num_classes=CLASSES, spatial_dims=2, post_activation=None))
