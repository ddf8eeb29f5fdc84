"""Completeness error: how far the terms of the decomposition are from adding up to the output."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fg_lightning.fullgrad import full_gradients
from fg_lightning.fullgrad.target import Target
from fg_lightning.metrics.sample_mean_metric import SampleMeanMetric


def completeness_error(
    model: nn.Module, images: Float[Tensor, "n c *s"], target: Target = None, **options: Any
) -> Float[Tensor, " n"]:
    """|f - input term - sum of bias terms| / |f| of every image (Srinivas & Fleuret 2019, completeness).

    It has the arguments and errors of `full_gradients`.

    Args:
        model: the network.
        images: [N, C, *S], as the model takes them.
        target: as in `full_gradients`. Default: None, the predicted class.
        **options: further arguments of `full_gradients`.

    Returns:
        [N], at least 0.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> completeness_error(model, torch.rand(2, 1, 8, 8)) < 1e-3
        tensor([True, True])
    """
    return full_gradients(model, images, target, **options).completeness_error


class CompletenessError(SampleMeanMetric):
    """Mean and largest `completeness_error` over samples. Do not trust the maps if it is not near zero.

    `update(model, images, target=None, **options)` has the arguments of `full_gradients`. `compute()` returns a dict with
    "completeness_error" and "completeness_error_max".

    Args:
        **settings: settings of every torchmetrics metric, such as `sync_on_compute`.

    Examples:
        >>> metric = CompletenessError()
        >>> metric.update(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.ones(5, 1, 2, 2))
        >>> {name: bool(value < 1e-3) for name, value in metric.compute().items()}
        {'completeness_error': True, 'completeness_error_max': True}
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    names = ("completeness_error",)
    largest: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("largest", torch.zeros(()), dist_reduce_fx="max")

    def update(self, model: nn.Module, images: Float[Tensor, "n c *s"], target: Target = None, **options: Any) -> None:
        """Adds a batch. It has the arguments and errors of `full_gradients`."""
        errors = completeness_error(model, images, target, **options)
        self._add(errors)
        self.largest = torch.maximum(self.largest, errors.max().to(self.largest))

    def compute(self) -> dict[str, Tensor]:
        """The mean and the maximum, by name."""
        return super().compute() | {"completeness_error_max": self.largest}
