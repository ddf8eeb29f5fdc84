"""The base class of the metrics: numbers of each sample, averaged over all samples and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union
from zlib import crc32

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric


def keep_apart(metric: Metric, *choices: object) -> None:
    """Gives a metric a state that differs from that of any other kind of metric and of other choices.

    A `MetricCollection` compares the states of its metrics after the first batch. It merges metrics whose numbers are equal so far.
    """
    identity = f"{type(metric).__qualname__}{choices}".encode()
    metric.add_state("identity", torch.tensor(crc32(identity)), dist_reduce_fx="max")


class SampleMeanMetric(Metric):
    """Means over samples.

    Args:
        *choices: the settings on which the numbers of a sample depend.
        **settings: settings of every torchmetrics metric, such as `sync_on_compute`.

    Attributes:
        names: names of the numbers, in the order of the arguments of `_add`.
    """

    is_differentiable = False
    full_state_update = False
    names: tuple[str, ...]
    sums: Tensor
    count: Tensor

    def __init__(self, *choices: object, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("sums", torch.zeros(len(self.names)), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        keep_apart(self, *choices)

    def _add(self, *numbers: Float[Tensor, " n"]) -> None:
        """Adds the numbers of a batch's samples.

        Raises:
            ValueError: if the batch is empty.
        """
        if not len(numbers[0]):
            raise ValueError("the batch is empty, so it has no mean; leave empty batches out")
        self.sums += torch.stack(numbers).detach().sum(1).to(self.sums)
        self.count += len(numbers[0])

    def compute(self) -> dict[str, Tensor]:
        """The means, by name."""
        return dict(zip(self.names, self.sums / self.count, strict=True))

    def plot(
        self, val: Union[dict[str, Tensor], Sequence[dict[str, Tensor]], None] = None, ax: Axes | None = None
    ) -> tuple[Figure | None, Any]:
        """Draws a result of `compute` or `forward`, or a list of results as lines over steps. Default: the current result."""
        return self._plot(val, ax)
