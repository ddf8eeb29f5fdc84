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
    """|f - input term - sum of bias terms| / |f| (Srinivas & Fleuret 2019, completeness).

    Takes and raises what `full_gradients` does.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> completeness_error(model, torch.rand(2, 1, 8, 8)) < 1e-3
        tensor([True, True])
    """
    return full_gradients(model, images, target, **options).completeness_error


class CompletenessError(SampleMeanMetric):
    """Mean and largest `completeness_error` over samples. Do not trust the maps if it is not near zero.

    `update(model, images, target=None, **options)` takes what `full_gradients` does; `compute()` gives "completeness_error" and
    "completeness_error_max".

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
        errors = completeness_error(model, images, target, **options)
        self._add(errors)
        self.largest = torch.maximum(self.largest, errors.max().to(self.largest))

    def compute(self) -> dict[str, Tensor]:
        """Mean and maximum by name."""
        return super().compute() | {"completeness_error_max": self.largest}
