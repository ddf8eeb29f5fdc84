"""An image classifier over any of torchvision's networks, trained by AdamW or SGD with a warm-up and a cosine."""

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

    Weight decay is for what multiplies: kernels and matrices, not biases and scales, whose tensors have one dimension.
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
    """What the learning rate is multiplied by: a line up from 0 over the first steps, then half a cosine down to 0.

    Args:
        step: from 0.
        steps: of the whole training; infinite for one without an end, whose learning rate stays after 100 steps of warm-up.
        warmup: the share of steps on the line, 0 to 1.
    """
    rising = 100.0 if math.isinf(steps) else max(warmup * steps, 1.0)
    if step + 1 < rising:
        return (step + 1) / rising
    if math.isinf(steps):
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min((step + 1 - rising) / max(steps - rising, 1.0), 1.0)))


SMALL = 64
"""Pixels of the shorter side of a small image, at most."""


class ImageClassifier(LightningModule):
    """A classifier of torchvision, made to fit the data that it is trained on.

    Logs `train/loss`, `train/accuracy`, `val/loss`, `val/accuracy`, `test/loss` and `test/accuracy`, of further loaders
    `val/loss/dataloader_idx_1` and so on. Batches are (images, labels), predictions the probabilities of the classes, [N, K].

    Its last layer gets an output for each class and its first convolution the images' channels, both as the datamodule has them
    when the training begins. They are kept with the weights: a checkpoint needs no arguments to be loaded, and is refused for other
    data than what it was trained on.

    Args:
        name: The network: resnet18, convnext_tiny, vit_b_16, any other in `torchvision.models.list_models()`, or vgg9_bn, a VGG
            of 9 layers for CIFAR's images. Default: resnet18.
        weights: The first weights: DEFAULT, or another of the network's sets such as IMAGENET1K_V1. Default: random ones.
        num_classes: Number of classes. Default: the datamodule's.
        in_channels: Number of channels of the images. Default: the datamodule's. Trained weights are added up for grey images.
        small_images: Whether the first layers keep the resolution, which they halve twice or more otherwise. Default: yes for
            images of at most 64 pixels with random weights.
        optimizer: adamw, or sgd, which needs a higher learning rate. Default: adamw.
        lr: The highest learning rate. Default: 0.001.
        weight_decay: Weight decay of kernels and matrices. Default: 0.05.
        warmup: Share of the training in which the learning rate rises. Then it falls along a cosine. Default: 0.05.
        label_smoothing: Share of each training label that is spread over all classes, 0 to 1. Default: 0.

    Raises:
        CannotRun: if there is no such network or set of weights, or the weights cannot be downloaded.
        CannotRun: if a number is out of range; in `setup`, if the data does not fit, or does not say how many classes it has.
        CannotRun: in training and tests, if a label is none of the classes.
        CannotRun: once a checkpoint is loaded, if it was trained on other channels or classes than the data's.

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
        """The logits of images."""
        return self.network(images)

    def setup(self, stage: str) -> None:
        """Makes the network fit the datamodule, unless it is trained already and not trained further.

        Raises:
            CannotRun: if there are more classes than outputs, it is unknown how many there are, or the network takes no images of
                the data's size.
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
        """The probabilities of the classes."""
        return self(batch[0] if isinstance(batch, (tuple, list)) else batch).softmax(1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        given = self.hparams
        optimizer = build_optimizer(self.network, given["optimizer"], given["lr"], given["weight_decay"])
        share = partial(lr_factor, steps=self.trainer.estimated_stepping_batches, warmup=given["warmup"])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def get_extra_state(self) -> Tensor:
        """What was changed in the network to fit the data, kept with the weights: classes, channels, whether images are small."""
        return torch.tensor([*self.made_for, int(self.is_small)])

    def set_extra_state(self, state: Tensor) -> None:
        """Makes the network the one whose weights are about to be loaded."""
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
                f"{type(data).__name__} does not say how many classes it has: give it an attribute num_classes, or the model "
                "num_classes (--model.num_classes 10)"
            )
        return counted or outputs(self.network)

    def _check_is_for_the_data(self) -> None:
        classes, in_channels = self.made_for
        has_classes, has_channels = self.data_has
        if has_classes not in (None, classes) or has_channels not in (None, in_channels):
            raise CannotRun(
                f"the weights were trained on {in_channels}-channel images of {classes} classes, but the data has "
                f"{has_channels or in_channels} channels and {has_classes or classes} classes; name the same --data"
            )

    def _check_takes(self, shape: tuple[int, ...]) -> None:
        """Whether an image of this shape comes through."""
        was_training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                self.network(torch.zeros(1, *shape, device=self.device, dtype=next(self.network.parameters()).dtype))
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            raise CannotRun(
                f"{self.hparams['name']} takes no images of shape {list(shape)} ({error}). Resize them to what it was made for "
                "(--data.size 224), or choose another network, such as resnet18"
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
    """Whether labels are classes; on a GPU, which this waits for, those of the first batch alone.

    Raises:
        CannotRun: if not.
    """
    if labels.is_floating_point() or labels.ndim != 1:
        raise CannotRun(
            f"labels must be integers [N], a class each, but are {labels.dtype} {list(labels.shape)}; for anything else give "
            "a model of your own (--model my_package.Net)"
        )
    if not labels.numel() or (batch_idx and labels.device.type != "cpu"):
        return
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise CannotRun(
            f"a label is {least if least < 0 else most}, but the data says that it has {classes} classes, 0 to {classes - 1}; "
            "correct the labels, or num_classes or classes of the datamodule, or give --model.num_classes"
        )


def _check(
    num_classes: int | None, in_channels: int | None, lr: float, weight_decay: float, warmup: float, label_smoothing: float
) -> None:
    for name, count in (("num_classes", num_classes), ("in_channels", in_channels)):
        if count is not None and count < 1:
            raise CannotRun(f"{name} must be at least 1, or left out to be what the data has, not {count}")
    if lr <= 0:
        raise CannotRun(f"lr must be more than 0, not {lr}")
    if weight_decay < 0:
        raise CannotRun(f"weight_decay must be at least 0, not {weight_decay}")
    for name, share in (("warmup", warmup), ("label_smoothing", label_smoothing)):
        if not 0 <= share <= 1:
            raise CannotRun(f"{name} must be from 0 to 1, not {share}")
