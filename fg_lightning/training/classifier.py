"""An image classifier over any of torchvision's networks."""

from __future__ import annotations

from functools import partial
from typing import Any, Union

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from fg_lightning.errors import CannotRun
from fg_lightning.training.facts import classes_of, image_shape
from fg_lightning.training.network import channels, classifier, for_small_images, outputs, with_channels, with_outputs
from fg_lightning.training.schedule import Optimizer, optimizer_for, share_of_lr

SMALL = 64
"""Images whose shorter side has at most so many pixels are small."""


class ImageClassifier(LightningModule):
    """A classifier of torchvision, made to fit the data that it is trained on.

    Logs `train/loss`, `train/accuracy`, `val/loss`, `val/accuracy`, `test/loss` and `test/accuracy`. Batches are (images, labels),
    predictions the probabilities of the classes, [N, K].

    Its last layer gets an output for each class and its first convolution the images' channels, both as the datamodule has them
    when the training begins. They are kept with the weights: a checkpoint needs no arguments to be loaded.

    Args:
        name: of the network: resnet18, convnext_tiny, vit_b_16, or any other in `torchvision.models.list_models()`.
        weights: to begin with: DEFAULT, or another of the network's sets such as IMAGENET1K_V1; by default random ones.
        num_classes: by default what the datamodule has.
        in_channels: of the images, by default what the datamodule's have. Trained weights are added up for grey images.
        small_images: keep the resolution at the network's beginning, which halves it twice or more otherwise. By default so for
            images of at most 64 pixels and random weights.
        optimizer: adamw or sgd, which wants a higher learning rate.
        lr: the highest learning rate.
        weight_decay: of kernels and matrices.
        warmup: the share of the training in which the learning rate rises; it falls along a cosine after that.
        label_smoothing: the share of every training label that is spread over all classes, 0 to 1.

    Raises:
        CannotRun: if there is no such network or set of weights, or the weights cannot be downloaded.
        CannotRun: if a number is out of range; in `setup`, if the data does not fit, or does not say how many classes it has.

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
        self.save_hyperparameters(ignore=["weights"])  # a checkpoint has its own, and is loaded where none can be downloaded
        self.network = classifier(name, weights)
        self.starts_trained = weights is not None
        self.is_small = False
        self.knows_its_data = False
        self._fit(num_classes or outputs(self.network), in_channels or channels(self.network), bool(small_images))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The logits of images."""
        return self.network(images)

    def setup(self, stage: str) -> None:
        """Makes the network fit the datamodule.

        Raises:
            CannotRun: if there are more classes than outputs, it is unknown how many there are, or the network takes no images of
                the data's size.
        """
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        shape, given = image_shape(data, stage), self.hparams
        small = given["small_images"]
        if small is None and not self.knows_its_data:
            small = shape is not None and min(shape[1:]) <= SMALL and not self.starts_trained
        self._fit(self._classes(data), given["in_channels"] or (shape or [channels(self.network)])[0], bool(small))
        self.knows_its_data = True
        if shape is not None:
            self._check_takes(shape)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.hparams["label_smoothing"])
        self.train_accuracy(logits, labels)
        self.log("train/loss", loss)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_accuracy)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_accuracy)

    def predict_step(self, batch: Any, batch_idx: int) -> Float[Tensor, "n k"]:
        """The probabilities of the classes."""
        return self(batch[0] if isinstance(batch, (tuple, list)) else batch).softmax(1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        given = self.hparams
        optimizer = optimizer_for(self.network, given["optimizer"], given["lr"], given["weight_decay"])
        share = partial(share_of_lr, steps=self.trainer.estimated_stepping_batches, warmup=given["warmup"])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def get_extra_state(self) -> Tensor:
        """What was changed in the network to fit the data, kept with the weights: classes, channels, whether images are small."""
        return torch.tensor([outputs(self.network), channels(self.network), int(self.is_small)])

    def set_extra_state(self, state: Tensor) -> None:
        """Makes the network the one whose weights are about to be loaded."""
        classes, in_channels, small = state.tolist()
        self._fit(classes, in_channels, bool(small))
        self.knows_its_data = True

    def _fit(self, classes: int, in_channels: int, small: bool) -> None:
        if small and not self.is_small:
            for_small_images(self.network)
        self.is_small = self.is_small or small
        with_channels(self.network, in_channels)
        with_outputs(self.network, classes)
        self.train_accuracy, self.val_accuracy, self.test_accuracy = (
            MulticlassAccuracy(classes, average="micro").to(self.device) for _ in range(3)
        )

    def _classes(self, data: Any) -> int:
        given, found = self.hparams["num_classes"], classes_of(data)
        if given is not None:
            if found is not None and found > given:
                raise CannotRun(f"the data has {found} classes, but num_classes is {given}; leave it out, or make it {found}")
            return int(given)
        if found is None and not self.knows_its_data:
            raise CannotRun(
                f"{type(data).__name__} does not say how many classes it has: give it an attribute num_classes, or the model "
                "num_classes (--model.num_classes 10)"
            )
        return found or outputs(self.network)

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

    def _evaluate(self, batch: tuple[Tensor, Tensor], part: str, accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
        logits = self(images)
        accuracy(logits, labels)
        self.log(f"{part}/loss", F.cross_entropy(logits, labels), prog_bar=True)
        self.log(f"{part}/accuracy", accuracy, prog_bar=True)


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
