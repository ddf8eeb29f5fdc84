"""Pixel perturbation: how the output changes if the least or the most relevant pixels of a map are removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Union

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.compute import auc
from torchmetrics.utilities.plot import plot_curve

from fg_lightning.fullgrad.forward_backward import as_tuple, check_model
from fg_lightning.fullgrad.operation import map_tensors
from fg_lightning.fullgrad.preserve_model import as_model_input, copy_argument, preserve_model
from fg_lightning.fullgrad.target import Selection, Target, main_output
from fg_lightning.fullgrad.torch_internals import unwrap_model
from fg_lightning.metrics.sample_mean_metric import keep_apart
from fg_lightning.removal import Fill, Order, find_fill, ranks, removal_mask
from fg_lightning.removal.fills import MeanAndStd, Numbers
from fg_lightning.removal.pixel_ranking import check_images, check_maps, check_order

Change = Literal["relative", "drop"]
"""|f(x') - f(x)| / |f(x)| (Srinivas & Fleuret 2019), or f(x) - f(x') (Samek et al. 2017)."""

Output = Literal["logit", "probability"]

USUAL: dict[Order, Change] = {"lerf": "relative", "morf": "drop"}
"""The change that the authors of each order measured."""

SETTINGS = ("fractions", "order", "fill", "change", "output", "seed", "dataset_mean", "normalization")
"""Names of the arguments that the metric passes on to `pixel_perturbation`."""

LABELS: dict[Change, str] = {"relative": "|f(x') - f(x)| / |f(x)|", "drop": "f(x) - f(x')"}


def pixel_perturbation(
    model: nn.Module,
    images: Float[Tensor, "n c *s"],
    maps: Float[Tensor, "n 1 *s"],
    target: Target = None,
    *,
    fractions: Sequence[float],
    order: Order = "lerf",
    fill: Fill = 0.0,
    change: Change | None = None,
    output: Output = "logit",
    seed: int = 0,
    dataset_mean: Numbers | None = None,
    normalization: MeanAndStd | None = None,
    additional_forward_args: Any = None,
) -> Float[Tensor, "n f"]:
    """How the output of every image changes if a fraction of its pixels is removed.

    order="lerf" removes the least relevant pixels. The change is |f(x') - f(x)| / |f(x)|, and lower is better (Srinivas & Fleuret
    2019, section 5.1). order="morf" removes the most relevant pixels. The change is f(x) - f(x'), and higher is better (Samek et
    al. 2017; their AOPC is its mean over steps). f is the output of the explained class, x' the image without its pixels.

    The model runs in evaluation mode, once for all images and once more for every fraction. Afterwards its modes and gradients and
    the random state are as before.

    Args:
        model: the network.
        images: [N, C, *S], floating-point, as the model takes them.
        maps: the saliency map of each image, [N, 1, *S], floating-point.
        target: as in `full_gradients`. Default: None, the class predicted from the whole image, for every fraction.
        fractions: [F], the shares of pixels to remove, 0 to 1. Each image loses exactly round(fraction * number of pixels).
        order: "lerf" or "morf". Default: "lerf".
        fill: replaces the removed pixels, see `fg_lightning.removal.find_fill`. The paper uses "black". Default: the number 0.
        change: "relative" or "drop", the formulas above. Default: None, "relative" for "lerf" and "drop" for "morf".
        output: "logit" for f as the model returns it, which FullGrad decomposes; "probability" for its softmax, or its sigmoid if
            there is one number for each image. Default: "logit".
        seed: breaks ties between pixels of equal saliency. Default: 0.
        dataset_mean: the training images' mean of each channel, for the fill "dataset_mean". Default: None.
        normalization: (mean, std), one number or one for each channel, if the images are (image - mean) / std. The fill "black"
            then needs it, and the numbers of a fill are in the units before. Default: None, not normalized.
        additional_forward_args: arguments of the model's forward after the images, one value or a tuple. Default: None.

    Returns:
        [N, F].

    Raises:
        TypeError: if images or maps are not floating-point, the target or the fill has a wrong type, or the model is not a module.
        ValueError: if fractions lie outside 0..1, shapes or targets do not fit, maps hold NaN, or the batch is empty; if an order,
            change, output or fill does not exist; or if the output is not finite, or is 0 and the change is relative to it.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
        >>> nn.init.ones_(model[1].weight).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
        >>> images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> pixel_perturbation(model, images, maps=images, fractions=[0.25, 0.5])
        tensor([[0.1000, 0.3000]])
        >>> pixel_perturbation(model, images, maps=images, fractions=[0.25, 0.5], order="morf")
        tensor([[4., 7.]])
    """
    _check_settings(fractions, order, change, output)
    check_model(model)
    if output == "probability" and callable(target) and not isinstance(target, Tensor):
        raise ValueError("output='probability' needs a class, not a function; let it return probabilities, with output='logit'")
    check_images(images)
    if not len(images):
        raise ValueError("images must hold at least one image, but the batch is empty")
    check_maps(maps, images)
    replace = find_fill(fill, dataset_mean=dataset_mean, normalization=normalization)
    places = ranks(maps.to(images.device), seed)
    change_between = _CHANGES[change or USUAL[order]]
    with preserve_model(model, images.device, autocast=True), torch.no_grad():
        network = unwrap_model(model)
        images = as_model_input(images, network)

        def score(batch: Tensor, target: Target) -> tuple[Tensor, Target]:
            # The forward may overwrite its inputs, so it gets copies.
            scores = network(batch.clone(), *map_tensors(copy_argument, as_tuple(additional_forward_args)))
            selection = Selection(target, len(batch))
            return selection(_probability(scores) if output == "probability" else scores), selection.target

        before, classes = score(images, target)
        _check_divisor(before, change_between)
        changes = []
        for fraction in fractions:
            mask = removal_mask(places, fraction, order).unsqueeze(1)
            after, _ = score(replace(images, mask), target if classes is None else classes)
            changes.append(change_between(before, after))
    return torch.stack(changes, 1)


class PixelPerturbation(Metric):
    """The curve of `pixel_perturbation`: the mean change of the output over images, for every fraction of pixels removed.

    `update(model, images, maps, target=None, additional_forward_args=None)` adds a batch. `compute()` returns the curve, [F],
    `area()` the area under it, and `plot()` draws it. The metric keeps sums and counts, so it is exact over several processes.

    Args:
        fractions: [F], in increasing order, 0 to 1.
        order: "lerf" (lower is better) or "morf" (higher is better). Default: "lerf".
        fill: replaces the removed pixels, see `fg_lightning.removal.find_fill`: a number in the images' own units, one for each
            channel, "black", "dataset_mean", "image_mean", "noisy_linear", or a function. Default: the number 0.
        change: "relative" or "drop". Default: None, "relative" for "lerf" and "drop" for "morf".
        output: "logit" or "probability". Default: "logit".
        seed: breaks ties between pixels of equal saliency. Default: 0.
        dataset_mean: the training images' mean of each channel, for the fill "dataset_mean". Default: None.
        normalization: (mean, std) of normalized images, as in `pixel_perturbation`. Default: None, not normalized.
        **settings: settings of every torchmetrics metric, such as `sync_on_compute`.

    Attributes:
        label: the formula of the change, for an axis.

    Raises:
        TypeError: if the fill has a wrong type.
        ValueError: if there are no fractions, they do not increase or lie outside 0..1, or an order, fill, change or output does
            not exist.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
        >>> nn.init.ones_(model[1].weight).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
        >>> images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> metric = PixelPerturbation([0.25, 0.5])
        >>> metric.update(model, images, maps=images)
        >>> metric.update(model, images, maps=-images)
        >>> metric.compute(), metric.area()
        (tensor([0.2500, 0.5000]), tensor(0.3750))
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better: bool | None = None
    """Whether a higher value is better. The class has None, because it depends on the order."""
    sums: Tensor
    count: Tensor

    def __init__(
        self,
        fractions: Sequence[float],
        order: Order = "lerf",
        fill: Fill = 0.0,
        *,
        change: Change | None = None,
        output: Output = "logit",
        seed: int = 0,
        dataset_mean: Numbers | None = None,
        normalization: MeanAndStd | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        _check_settings(fractions, order, change, output)
        self.fractions = [float(fraction) for fraction in fractions]
        if not self.fractions or any(a >= b for a, b in zip(self.fractions, self.fractions[1:], strict=False)):
            raise ValueError(f"fractions must be one or more numbers, each larger than the one before, but are {self.fractions}")
        find_fill(fill, dataset_mean=dataset_mean, normalization=normalization)  # raises if there is no such fill
        self.order, self.fill, self.change, self.output, self.seed = order, fill, change or USUAL[order], output, seed
        self.dataset_mean, self.normalization = dataset_mean, normalization
        self.__dict__["higher_is_better"] = order == "morf"  # torchmetrics forbids to assign it
        self.add_state("sums", torch.zeros(len(self.fractions)), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        keep_apart(self, *self._settings().values())

    @property
    def label(self) -> str:
        return LABELS[self.change]

    def update(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c *s"],
        maps: Float[Tensor, "n 1 *s"],
        target: Target = None,
        additional_forward_args: Any = None,
    ) -> None:
        """Adds a batch. It has the arguments and errors of `pixel_perturbation`."""
        settings = self._settings()
        changes = pixel_perturbation(model, images, maps, target, additional_forward_args=additional_forward_args, **settings)
        self.sums += changes.sum(0).to(self.sums)
        self.count += len(changes)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTINGS}

    def compute(self) -> Float[Tensor, "*f"]:
        """The mean change for every fraction, [F]; a scalar if there is a single fraction, as in torchmetrics."""
        return self.sums / self.count

    def area(self) -> Float[Tensor, ""]:
        """The area under the curve, by trapezoids, divided by the range of the fractions: the mean change in this range."""
        curve = self.compute()
        if curve.ndim == 0:
            return curve
        return auc(torch.tensor(self.fractions).to(curve), curve) / (self.fractions[-1] - self.fractions[0])

    def plot(
        self, val: Union[Float[Tensor, "*f"], Sequence[Float[Tensor, "*f"]], None] = None, ax: Axes | None = None
    ) -> tuple[Figure | None, Any]:
        """Draws a curve.

        Args:
            val: a result of `compute` or `forward`, or a list of results. A list gives a curve for each step, or a line over steps
                if there is one fraction. Default: None, the current result of `compute`, with its area.
            ax: axes to draw into. Default: None, a new figure.

        Returns:
            The figure, or None if `ax` is given, and the axes.

        Raises:
            ValueError: if `val` is an empty list.
        """
        if val is not None and not isinstance(val, Tensor):
            return self._plot_steps(val, ax)
        curve = (self.compute() if val is None else val).reshape(-1)
        return plot_curve(
            (torch.tensor(self.fractions), curve),  # type: ignore[arg-type]
            score=self.area() if val is None else None,
            ax=ax,
            label_names=("fraction of pixels removed", self.label),
            name=f"{self.order}: {'higher' if self.higher_is_better else 'lower'} is better",
        )

    def _plot_steps(self, values: Sequence[Float[Tensor, "*f"]], ax: Axes | None) -> tuple[Figure | None, Any]:
        if not values:
            raise ValueError("val is an empty list, so there is nothing to plot; pass what compute or forward returned")
        if len(self.fractions) == 1:
            return self._plot(values, ax)
        figure = None
        for step, value in enumerate(values):
            made, ax = self.plot(value, ax)
            figure = figure or made
            for line in ax.lines[-1:] if ax is not None else ():
                line.set_label(f"step {step}")
        if ax is not None:
            ax.legend()
        return figure, ax


_CHANGES: dict[Change, Callable[[Tensor, Tensor], Tensor]] = {
    "relative": lambda before, after: (after - before).abs() / before.abs(),
    "drop": lambda before, after: before - after,
}


def _probability(output: Any) -> Tensor:
    scores = main_output(output)
    return scores.sigmoid() if scores.ndim == 1 or scores.shape[1] == 1 else scores.softmax(1)


def _check_settings(fractions: Sequence[float], order: str, change: str | None, output: str) -> None:
    wrong = [fraction for fraction in fractions if not 0 <= fraction <= 1]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(fractions)} fractions lie outside 0..1: {', '.join(map(str, wrong))}; "
            "fractions are shares of the pixels, percentages divided by 100"
        )
    check_order(order)
    if change not in (None, *LABELS):
        raise ValueError(f"change must be one of {', '.join(LABELS)}, or None for the one that goes with the order, not {change!r}")
    if output not in ("logit", "probability"):
        raise ValueError(f"output must be 'logit' or 'probability', not {output!r}")


def _check_divisor(before: Tensor, change_between: Callable[[Tensor, Tensor], Tensor]) -> None:
    zero = (before == 0).nonzero().flatten().tolist()
    if zero and change_between is _CHANGES["relative"]:
        raise ValueError(
            f"the output is 0 for {len(zero)} of {len(before)} images, first for image {zero[0]} of the batch, "
            "so a change cannot be relative to it; use change='drop', or output='probability'"
        )
