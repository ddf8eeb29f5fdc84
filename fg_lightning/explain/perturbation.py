"""The perturbation curves of a session: a table and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from fg_lightning.atomic import replacing, write_atomically
from fg_lightning.attribution import CONTROLS
from fg_lightning.errors import CannotRun
from fg_lightning.metrics import PixelPerturbation
from fg_lightning.removal import Fill, Order
from fg_lightning.visualization.curves import curves

DIRECTION = {"lerf": "least relevant pixels first: lower is better", "morf": "most relevant pixels first: higher is better"}


class PerturbationCurves:
    """One `PixelPerturbation` for each method.

    Args:
        fractions: of pixels that are replaced.
        order: "lerf" or "morf".
        fill: what replaces them.

    Raises:
        CannotRun: if one of these makes no sense.
    """

    def __init__(self, fractions: Sequence[float], order: Order, fill: Fill) -> None:
        self.fractions = list(fractions)
        self.order = order
        self._fill = fill
        self._metrics: dict[str, PixelPerturbation] = {}
        try:
            self._new()
        except (TypeError, ValueError) as error:
            raise CannotRun(str(error)) from error

    def update(self, method: str, model: nn.Module, images: Tensor, maps: Tensor, target: Tensor | None) -> None:
        """
        Args:
            method: whose maps they are.
            model: the network.
            images: [N, C, H, W].
            maps: [N, 1, H, W].
            target: [N], or None where the network has one output.

        Raises:
            CannotRun: if no change can be measured, as where the output is 0.
        """
        metric = self._metrics.setdefault(method, self._new().to(images.device))
        try:
            metric.update(model, images, maps, target)
        except ValueError as error:
            raise CannotRun(f"the perturbation by {method} cannot be measured: {error}") from error

    def write(self, folder: Path, methods: Sequence[str]) -> dict[str, Path]:
        """Writes a table, a row for each fraction and a column for each of these methods, and a plot of it.

        Returns:
            What was written, and where it lies.
        """
        values = {method: self._metrics[method].compute().reshape(-1).tolist() for method in methods}
        table, plot = folder / "perturbation.csv", folder / "perturbation.png"
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["fraction", *values])
        writer.writerows(zip(self.fractions, *values.values(), strict=True))
        write_atomically(table, text.getvalue())
        label = f"change of the output, {self._new().label}"
        figure = curves(self.fractions, values, ylabel=label, title=DIRECTION[self.order], controls=CONTROLS)
        with replacing(plot) as picture:
            figure.savefig(picture, format="png")
        return {"perturbation": table, "perturbation plot": plot}

    def _new(self) -> PixelPerturbation:
        return PixelPerturbation(self.fractions, order=self.order, fill=self._fill)
