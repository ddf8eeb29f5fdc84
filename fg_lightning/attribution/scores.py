"""What a method explains: one number an image, as a function that Captum can differentiate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fg_lightning.fullgrad.target import Selection, Target


class Scores:
    """The explained output of every image, [N], or of several copies of the batch one after the other, [k N].

    The class that is explained belongs to the images themselves: where it is the predicted one, it is predicted from them, even if
    the first images that come are noisy or faded copies.

    Args:
        model: the network, undisturbed: in evaluation mode, on constants, so that gradients go to the images alone.
        images: [N, C, *S].
        target: as in `fg_lightning.FullGrad`; None for the predicted class.
    """

    def __init__(self, model: nn.Module, images: Tensor, target: Target) -> None:
        self.model = model
        self._images = images
        self._target = target

    def __call__(self, images: Float[Tensor, "m c *s"]) -> Float[Tensor, " m"]:
        """
        Raises:
            TypeError: if the target is of no known kind.
            ValueError: if the target does not fit, or the output is not finite or does not depend on the images.
        """
        if self._target is None and images is not self._images:
            with torch.no_grad():
                self(self._images)
        selection = Selection(_repeated(self._target, len(images) // len(self._images)), len(images))
        # The copy is what a forward that works in place overwrites.
        scores = selection(self.model(images.clone()))
        if images.requires_grad and torch.is_grad_enabled() and not scores.requires_grad:
            with _WithGradients():  # a backbone frozen by torch.no_grad() counts like any other, as in FullGrad
                scores = selection(self.model(images.clone()))
        if images.requires_grad and torch.is_grad_enabled() and not scores.requires_grad:
            raise ValueError(
                "the model's output does not depend on the images, so there is nothing to explain; "
                "does its forward detach them, use torch.inference_mode(), or return a class index?"
            )
        if images is self._images and selection.target is not None:
            self._target = selection.target
        return scores


class _WithGradients(TorchFunctionMode):
    """Autograd stays on, whatever a forward says."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        return None if function is torch._C._set_grad_enabled else function(*args, **(kwargs or {}))


def _repeated(target: Target, copies: int) -> Any:
    """The target of several copies of a batch, one after the other."""
    if isinstance(target, list):
        return target * copies
    if isinstance(target, (np.ndarray, Tensor)) and np.prod(target.shape) > 1:
        target = torch.as_tensor(target)
        return target.repeat(copies, *(1,) * (target.ndim - 1))
    return target
