"""What a method explains: one number an image, as a function that Captum can differentiate.

A saliency method as one of Captum's attributions, which leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from threading import get_ident
from typing import Any, Union

import numpy as np
import torch
from captum.attr import Attribution
from captum.log import log_usage
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fg_lightning.fullgrad.entry import check_images
from fg_lightning.fullgrad.preserve_model import as_the_model_takes, undisturbed, unwrapped
from fg_lightning.fullgrad.target import Selection, Target
from fg_lightning.fullgrad.torch_internals import without_checkpoints


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


Draw = Callable[..., Float[Tensor, "n 1 *s"]]
"""(scores, images [N, C, *S], settings by name) -> saliency maps, at least 0."""

Factory = Callable[..., Attribution]
"""(model, settings by name) -> an attribution whose `attribute(images, target)` gives maps [N, 1, *S], at least 0."""

OneOrTuple = Union[Tensor, tuple[Tensor]]


class Method(Attribution):
    """A way of drawing saliency maps, for one model.

    The model runs in evaluation mode, in its parameters' own precision (half precision in float32), and is left as it was: flags,
    gradients, hooks, buffers and random state. The images are, too.

    Args:
        model: any network of differentiable operations.
        draw: (scores, images) -> maps [N, 1, *S]. `scores` is a function from images to the explained outputs, [N]; of the images
            it is given, of k copies of them one after the other, or of any changed version of either.

    Raises:
        TypeError: if the model is no module.
    """

    def __init__(self, model: nn.Module, draw: Draw) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        super().__init__(model)
        self.model = model
        self.draw = draw

    @log_usage()
    def attribute(self, inputs: OneOrTuple, target: Target = None) -> OneOrTuple:  # type: ignore[override]
        """The saliency maps of a batch.

        Args:
            inputs: images [N, C, *S] with one, two or three spatial dimensions, floating-point, as the model takes them; or a tuple
                of that one tensor, as some of Captum's tools pass it.
            target: the class to explain: one for all samples, one for each ([N] as list or tensor), a tuple of indices for a dense
                output; None for the class predicted from the images themselves; or a function from the model's output to [N].

        Returns:
            Maps [N, 1, *S], at least 0. A tuple of them for a tuple.

        Raises:
            TypeError: if the images are not floating-point or the target is of no known kind.
            ValueError: if shapes or targets do not fit, or the output is not finite or does not depend on the images.
        """
        images = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
        check_images(self.model, images)
        with undisturbed(self.model, images.device):
            model = unwrapped(self.model)
            leaf = as_the_model_takes(images, model).requires_grad_()
            thread = get_ident()
            with without_checkpoints(lambda: get_ident() == thread):  # a reentrant one refuses a gradient at the images
                maps = self.draw(Scores(model, leaf, target), leaf).detach()
        return (maps,) if isinstance(inputs, tuple) else maps


def method_from(draw: Draw) -> Factory:
    """A factory for `METHODS` from a function (scores, images, settings by name) -> maps [N, 1, *S].

    Examples:
        >>> import torch
        >>> from fg_lightning.attribution import METHODS
        >>> def brightness(scores, images, *, gamma=1.0):
        ...     return images.clamp_min(0).sum(1, keepdim=True) ** gamma
        >>> METHODS["brightness"] = method_from(brightness)
        >>> METHODS["brightness"](nn.Conv2d(3, 1, 1), gamma=0.5).attribute(torch.ones(1, 3, 2, 2)).shape
        torch.Size([1, 1, 2, 2])
    """

    def build(model: nn.Module, **settings: Any) -> Method:
        known = list(signature(draw).parameters)[2:]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise TypeError(f"{draw.__name__} has no setting {', '.join(unknown)}; it takes {', '.join(known) or 'none'}")
        return Method(model, partial(draw, **settings))

    build.__doc__ = draw.__doc__
    return named_after(draw, build)


def named_after(source: Callable[..., Any], build: Factory, prefix: str = "") -> Factory:
    """The factory under the name and module of what it is made from, by which stores and experiments know it again."""
    if hasattr(source, "__qualname__"):
        build.__module__ = source.__module__
        build.__name__ = prefix + source.__name__
        build.__qualname__ = source.__qualname__.removesuffix(source.__name__) + build.__name__
    return build


def channel_sum(attributions: Float[Tensor, "n c *s"]) -> Float[Tensor, "n 1 *s"]:
    """The magnitudes of a pixel's channels, added up.

    As the authors of SmoothGrad and of FullGrad draw gradients (Simonyan et al. 2014 take the largest), and for every method alike,
    so that methods differ in what they say and not in how it is drawn.
    """
    return attributions.abs().sum(1, keepdim=True)
