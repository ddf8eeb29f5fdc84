"""Guided backpropagation through every ReLU: a module, a function or a method."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from captum.attr import GuidedBackprop
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fg_lightning.attribution.method import Scores, channel_sum
from fg_lightning.fullgrad.operation import operation_name, works_in_place


def guided_backprop(scores: Scores, images: Float[Tensor, "n c *s"]) -> Float[Tensor, "n 1 *s"]:
    """|grad f|, with negative gradients set to zero at every ReLU, Springenberg et al. 2015.

    Captum handles only ReLU modules. Here every ReLU counts: a module, a function or a method, in place or not. If the model has no
    ReLU, it warns, because the map is then the same as that of gradient.
    """
    guided = _GuidedScores(scores)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU activations")
        attributions = GuidedBackprop(guided).attribute(images)
    if not guided.met:
        warnings.warn("guided_backprop found no ReLU in the model, so its map is the same as that of gradient", stacklevel=4)
    return channel_sum(attributions)


class _GuidedScores(nn.Module):
    """The scores, computed so that every ReLU goes through one module. Captum hooks that module.

    Attributes:
        met: number of calls of a ReLU that used the module.
    """

    def __init__(self, scores: Scores) -> None:
        super().__init__()
        self.scores = scores
        self.relu = nn.ReLU()
        self.met = 0

    def forward(self, images: Tensor) -> Tensor:
        with _ReLURouting(self._rectify):
            return self.scores(images)

    def _rectify(self, x: Tensor) -> Tensor:
        self.met += 1
        # Captum's hook gets the whole gradient of its tensor. The view has only the gradient of this ReLU.
        return self.relu(x.view_as(x))


class _ReLURouting(TorchFunctionMode):
    """Computes every ReLU that depends on the images with a function from its operand to its result."""

    def __init__(self, rectify: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._rectify = rectify

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        x: Any = args[0] if args else kwargs.get("input")
        if operation_name(function) != "relu" or not x.requires_grad:
            return function(*args, **kwargs)
        in_place = works_in_place(function) or kwargs.get("inplace", len(args) > 1 and args[1])
        return x.copy_(self._rectify(x)) if in_place else self._rectify(x)
