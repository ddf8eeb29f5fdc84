"""An image classifier with any network of torchvision. AdamW or SGD trains it, with warm-up and a cosine schedule."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, Union

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from fg_lightning.errors import CannotRun
from fg_lightning.training.image_datamodule import count_classes, image_shape
from fg_lightning.training.torchvision_network import channels, classifier, keep_resolution, outputs, set_channels, set_outputs

Optimizer = Literal["adamw", "sgd"]


def build_optimizer(network: nn.Module, name: Optimizer, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, or SGD with a Nesterov momentum of 0.9.

    Only kernels and matrices get weight decay. Biases and scales, tensors of one dimension, do not.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr)


def lr_factor(step: int, steps: float, warmup: float) -> float:
    """The factor of the learning rate: it rises linearly from 0 over the first steps, then falls to 0 along half a cosine.

    Args:
        step: number of the step, from 0.
        steps: number of steps of the whole training. Infinite: the factor stays 1 after 100 steps of warm-up.
        warmup: share of the steps in which it rises, 0 to 1.
    """
    rising = 100.0 if math.isinf(steps) else max(warmup * steps, 1.0)
    if step + 1 < rising:
        return (step + 1) / rising
    if math.isinf(steps):
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min((step + 1 - rising) / max(steps - rising, 1.0), 1.0)))


SMALL = 64
"""Largest shorter side of a small image, in pixels."""


class ImageClassifier(LightningModule):
    """A classifier of torchvision that adapts to the data that it is trained on.

    Logs `train/loss`, `train/accuracy`, `val/loss`, `val/accuracy`, `test/loss` and `test/accuracy`; for further loaders
    `val/loss/dataloader_idx_1` and so on. Batches are (images [N, C, H, W], labels [N]); predictions are probabilities [N, K].

    When training begins, the last layer gets an output for each class of the datamodule, and the first convolution the channels of
    its images. Checkpoints hold both numbers: they load without arguments, and raise an error for data with other classes or
    channels.

    Args:
        name: The network: resnet18, convnext_tiny, vit_b_16, any other in `torchvision.models.list_models()`, or vgg9_bn, a VGG
            of 9 layers for CIFAR's images. Default: resnet18.
        weights: The initial weights: DEFAULT, or another of the network's sets such as IMAGENET1K_V1. Default: random weights.
        num_classes: Number of classes. Default: the datamodule's.
        in_channels: Number of channels of the images. Default: the datamodule's. For grey images, pretrained weights are summed
            over the channels.
        small_images: Whether the first layers keep the resolution, instead of halving it twice or more. Default: True for images of
            at most 64 pixels if the weights are random.
        optimizer: adamw, or sgd, which needs a higher learning rate. Default: adamw.
        lr: The highest learning rate. Default: 0.001.
        weight_decay: Weight decay of kernels and matrices. Default: 0.05.
        warmup: Share of the training in which the learning rate rises. Then it falls along a cosine. Default: 0.05.
        label_smoothing: Share of each training label that is spread over all classes, 0 to 1. Default: 0.

    Raises:
        CannotRun: if the network or the set of weights is unknown, the weights cannot be downloaded, or a number is out of range.
        CannotRun: in `setup`, if the data does not fit, or its number of classes is unknown.
        CannotRun: in training and tests, if a label is not one of the classes.
        CannotRun: after a checkpoint is loaded, if it was trained on other numbers of channels or classes than the data has.

    Examples:
        >>> from fg_lightning.training import TorchvisionDataModule
        >>> trainer.fit(ImageClassifier("resnet18"), TorchvisionDataModule("CIFAR10"))  # doctest: +SKIP
    """

    def __init__(
        self,
        name: str = "resnet18",
        weights: Union[str, None] = None,
        num_classes: Union[int, None] = None,
        in_channels: Union[int, None] = None,
        small_images: Union[bool, None] = None,
        optimizer: Optimizer = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        _check(num_classes, in_channels, lr, weight_decay, warmup, label_smoothing)
        self.save_hyperparameters(ignore=["weights"])  # a checkpoint has its own, and loads without a download
        self.network = classifier(name, weights)
        self.starts_trained = weights not in (None, "none")
        self.is_small = False
        self.knows_its_data = False
        self.data_has: tuple[int | None, int | None] = (None, None)
        self._fit(num_classes or outputs(self.network), in_channels or channels(self.network), bool(small_images))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The logits [N, K] of images [N, C, H, W]."""
        return self.network(images)

    def setup(self, stage: str) -> None:
        """Adapts the network to the datamodule, unless it is already adapted and `stage` is not "fit".

        Raises:
            CannotRun: if there are more classes than outputs, the number of classes is unknown, or the network cannot process
                images of this size.
        """
        self.data_has = (None, None)
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        shape, given = image_shape(data, stage), self.hparams
        classes, in_channels = self._classes(data), given["in_channels"] or (None if shape is None else shape[0])
        self.data_has = classes, in_channels
        if stage == "fit" or not self.knows_its_data:
            small = given["small_images"]
            if small is None and not self.knows_its_data:
                small = shape is not None and min(shape[1:]) <= SMALL and not self.starts_trained
            self._fit(classes, in_channels or channels(self.network), bool(small))
            self.knows_its_data = True
        self._check_is_for_the_data()
        if shape is not None:
            self._check_takes(shape)

    def on_fit_start(self) -> None:
        self._check_is_for_the_data()  # a checkpoint is loaded after `setup`

    on_validation_start = on_test_start = on_predict_start = on_fit_start

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        _check_labels(labels, self.made_for[0], batch_idx)
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.hparams["label_smoothing"])
        self.log("train/loss", loss)
        self.log("train/accuracy", accuracy(logits, labels), on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "val", batch_idx, dataloader_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "test", batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Float[Tensor, "n k"]:
        """The probabilities of the classes, [N, K]."""
        return self(batch[0] if isinstance(batch, (tuple, list)) else batch).softmax(1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        given = self.hparams
        optimizer = build_optimizer(self.network, given["optimizer"], given["lr"], given["weight_decay"])
        share = partial(lr_factor, steps=self.trainer.estimated_stepping_batches, warmup=given["warmup"])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def get_extra_state(self) -> Tensor:
        """The adaptation to the data, saved with the weights: number of classes, number of channels, whether images are small."""
        return torch.tensor([*self.made_for, int(self.is_small)])

    def set_extra_state(self, state: Tensor) -> None:
        """Adapts the network to the weights that are about to be loaded."""
        classes, in_channels, small = state.tolist()
        self._fit(classes, in_channels, bool(small))
        self.knows_its_data = True

    def _fit(self, classes: int, in_channels: int, small: bool) -> None:
        if small and not self.is_small:
            keep_resolution(self.network)
        self.is_small = self.is_small or small
        set_channels(self.network, in_channels)
        set_outputs(self.network, classes)
        self.made_for = classes, in_channels

    def _classes(self, data: Any) -> int:
        given, counted = self.hparams["num_classes"], count_classes(data)
        if given is not None:
            if counted is not None and counted > given:
                raise CannotRun(f"the data has {counted} classes, but num_classes is {given}; leave it out, or make it {counted}")
            return int(given)
        if counted is None and not self.knows_its_data:
            raise CannotRun(
                f"the number of classes of {type(data).__name__} is unknown: give it an attribute num_classes, or give the model "
                "num_classes (--model.num_classes 10)"
            )
        return counted or outputs(self.network)

    def _check_is_for_the_data(self) -> None:
        classes, in_channels = self.made_for
        has_classes, has_channels = self.data_has
        if has_classes not in (None, classes) or has_channels not in (None, in_channels):
            raise CannotRun(
                f"the weights were trained on {in_channels}-channel images of {classes} classes, but the data has "
                f"{has_channels or in_channels} channels and {has_classes or classes} classes; give the same --data as to its "
                "training"
            )

    def _check_takes(self, shape: tuple[int, ...]) -> None:
        """Raises CannotRun if the network cannot process an image of this shape."""
        was_training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                self.network(next(self.network.parameters()).new_zeros(1, *shape))  # not yet on `self.device`
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            raise CannotRun(
                f"{self.hparams['name']} cannot process images of shape {list(shape)} ({error}). Resize them to the size that it "
                "needs (--data.size 224), or choose another network, such as resnet18"
            ) from error
        finally:
            self.network.train(was_training)

    def _evaluate(self, batch: tuple[Tensor, Tensor], part: str, batch_idx: int, loader: int) -> None:
        images, labels = batch
        _check_labels(labels, self.made_for[0], batch_idx)
        logits = self(images)
        scores = {f"{part}/loss": F.cross_entropy(logits, labels), f"{part}/accuracy": accuracy(logits, labels)}
        self.log_dict(scores, prog_bar=True, sync_dist=True, batch_size=len(labels), add_dataloader_idx=loader > 0)


def accuracy(logits: Float[Tensor, "n k"], labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """The share of images whose largest logit is the label's."""
    return (logits.argmax(1) == labels).float().mean()


def _check_labels(labels: Tensor, classes: int, batch_idx: int) -> None:
    """Checks that labels are classes. On a GPU, where the check must wait, it checks only the first batch.

    Raises:
        CannotRun: if they are not.
    """
    if labels.is_floating_point() or labels.ndim != 1:
        raise CannotRun(
            f"labels must be integers [N], one class for each image, but are {labels.dtype} {list(labels.shape)}; for other labels "
            "use your own model (--model my_package.Net)"
        )
    if not labels.numel() or (batch_idx and labels.device.type != "cpu"):
        return
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise CannotRun(
            f"a label is {least if least < 0 else most}, but there are {classes} classes, 0 to {classes - 1}; correct the labels, "
            "or num_classes or classes of the datamodule, or give --model.num_classes"
        )


def _check(
    num_classes: int | None, in_channels: int | None, lr: float, weight_decay: float, warmup: float, label_smoothing: float
) -> None:
    for name, count in (("num_classes", num_classes), ("in_channels", in_channels)):
        if count is not None and count < 1:
            raise CannotRun(f"{name} must be at least 1, not {count}; leave it out to use the data's")
    if lr <= 0:
        raise CannotRun(f"lr must be more than 0, not {lr}")
    if weight_decay < 0:
        raise CannotRun(f"weight_decay must be at least 0, not {weight_decay}")
    for name, share in (("warmup", warmup), ("label_smoothing", label_smoothing)):
        if not 0 <= share <= 1:
            raise CannotRun(f"{name} must be from 0 to 1, not {share}")
