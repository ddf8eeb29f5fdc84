"""torch-uncertainty's routines: plain networks, and ensembles with several rows for each image."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from made_data import CLASSES, loaders
from torch import Tensor, nn, optim
from torch_uncertainty.losses import DistributionNLLLoss, ELBOLoss
from torch_uncertainty.models.classification import bayesian_lenet, lenet, mimo_resnet, packed_resnet, resnet
from torch_uncertainty.models.mlp import mlp
from torch_uncertainty.models.segmentation import small_unet
from torch_uncertainty.routines import ClassificationRoutine, RegressionRoutine, SegmentationRoutine
from torch_uncertainty.transforms import MIMOBatchFormat, RepeatTarget

DISTRIBUTION = "torch-uncertainty"


def _recipe(model: nn.Module) -> optim.Optimizer:
    return optim.SGD(model.parameters(), 0.01, momentum=0.9)


def _labelled(image: Tensor, label: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    return image, label


def _classify(trainer: Trainer, model: nn.Module, loss: nn.Module | None = None, **options: Any) -> None:
    routine = ClassificationRoutine(model, CLASSES, loss or nn.CrossEntropyLoss(), optim_recipe=_recipe(model), **options)
    trainer.fit(routine, *loaders(_labelled))


def classification(trainer: Trainer) -> None:
    _classify(trainer, resnet(3, CLASSES, 18, style="cifar", width_multiplier=0.25))


def mixup(trainer: Trainer) -> None:
    _classify(trainer, lenet(3, CLASSES), mixup_params={"mixup_alpha": 0.4, "mixtype": "mixup"})


def packed(trainer: Trainer) -> None:
    model = packed_resnet(3, CLASSES, 18, 2, 2, 1, style="cifar", width_multiplier=0.25)
    _classify(trainer, model, is_ensemble=True, format_batch_fn=RepeatTarget(2))


def mimo(trainer: Trainer) -> None:
    model = mimo_resnet(3, CLASSES, 18, 2, style="cifar", width_multiplier=0.25)
    _classify(trainer, model, is_ensemble=True, format_batch_fn=MIMOBatchFormat(2, 0.0, 1))


def bayesian(trainer: Trainer) -> None:
    model = bayesian_lenet(3, CLASSES, num_samples=2)
    _classify(trainer, model, ELBOLoss(model, nn.CrossEntropyLoss(), kl_weight=1e-4, num_samples=2), is_ensemble=True)


def regression(trainer: Trainer) -> None:
    model = nn.Sequential(nn.Flatten(), mlp(3 * 32 * 32, 1, [32], dist_family="normal"))
    routine = RegressionRoutine(model, 1, DistributionNLLLoss(), dist_family="normal", optim_recipe=_recipe(model))
    trainer.fit(routine, *loaders(lambda image, label, _: (image, label.float())))


def segmentation(trainer: Trainer) -> None:
    model = small_unet(3, CLASSES + 1, bilinear=True)
    routine = SegmentationRoutine(model, CLASSES + 1, nn.CrossEntropyLoss(), optim_recipe=_recipe(model), metric_subsampling_rate=1)
    trainer.fit(routine, *loaders(lambda image, _, marks: (image, marks)))
