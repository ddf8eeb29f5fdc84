"""A saliency method as an attribution of Captum, and the scores that it explains: one number for each image."""

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

from fg_lightning.fullgrad.forward_backward import as_tuple, check_images
from fg_lightning.fullgrad.operation import map_tensors
from fg_lightning.fullgrad.preserve_model import as_model_input, copy_argument, preserve_model
from fg_lightning.fullgrad.target import Selection, Target
from fg_lightning.fullgrad.torch_internals import SET_GRAD_ENABLED, unwrap_model, without_checkpoints


class Scores:
    """The explained output of each image, [N], or of k copies of the batch one after the other, [k N].

    Captum can differentiate them. The predicted class is always that of the original images, even if the first images passed are
    noisy or faded copies.

    Args:
        model: the network as `preserve_model` prepares it: in evaluation mode, and only the images have gradients.
        images: the original images, [N, C, *S].
        target: as in `fg_lightning.FullGrad`; None for the predicted class.
        arguments: arguments of the forward after the images. Copies of an image use the rows of that image. Default: none.
    """

    def __init__(self, model: nn.Module, images: Tensor, target: Target, arguments: tuple[Any, ...] = ()) -> None:
        self.model = model
        self._images = images
        self._target = target
        self._arguments = arguments
        self._is_settled = target is not None

    def __call__(self, images: Float[Tensor, "m c *s"]) -> Float[Tensor, " m"]:
        """The scores of images.

        Raises:
            TypeError: if the target has a wrong type.
            ValueError: if the target does not fit, or the output is not finite or does not depend on the images.
        """
        if not self._is_settled and images is not self._images:
            with torch.no_grad():
                self(self._images)
        selection = Selection(_repeat_target(self._target, len(images) // len(self._images)), len(images))
        scores = selection(self._forward(images))
        if images.requires_grad and torch.is_grad_enabled() and not scores.requires_grad:
            with _WithGradients():  # a backbone under torch.no_grad() counts, too, as in FullGrad
                scores = selection(self._forward(images))
        if images.requires_grad and torch.is_grad_enabled() and not scores.requires_grad:
            raise ValueError(
                "the model's output does not depend on the images, so there is nothing to explain; "
                "check whether its forward detaches them, uses torch.inference_mode(), or returns a class index"
            )
        if images is self._images and not self._is_settled:
            self._target, self._is_settled = selection.target, True  # None if there are no classes to choose from
        return scores

    def _forward(self, images: Tensor) -> Any:
        """The model's output. The forward may overwrite its inputs, so it gets copies."""
        n = len(self._images)
        rows = tuple(
            argument.repeat(len(images) // n, *(1,) * (argument.ndim - 1))
            if isinstance(argument, Tensor) and argument.ndim and len(argument) == n
            else argument
            for argument in self._arguments
        )
        return self.model(images.clone(), *map_tensors(copy_argument, rows))


class _WithGradients(TorchFunctionMode):
    """Keeps autograd on, even if a forward turns it off."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        return None if function is SET_GRAD_ENABLED else function(*args, **(kwargs or {}))


def _repeat_target(target: Target, copies: int) -> Any:
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
"""(model, settings by name) -> an attribution.

Its `attribute(images, target, additional_forward_args)` returns maps [N, 1, *S], at least 0.
"""

OneOrTuple = Union[Tensor, tuple[Tensor, ...]]


class Method(Attribution):
    """A saliency method for one model.

    The model runs in evaluation mode, in the precision of its parameters (half precision in float32). Afterwards its modes,
    gradients, hooks and buffers, the random state and the images are as before.

    Args:
        model: any network of differentiable operations.
        draw: (scores, images) -> maps [N, 1, *S]. `scores` is a function from images to the explained outputs, [N]. It accepts the
            given images, k copies of them one after the other, or any changed version of either.

    Raises:
        TypeError: if the model is not a `torch.nn.Module`.
    """

    def __init__(self, model: nn.Module, draw: Draw) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        super().__init__(model)
        self.model = model
        self.draw = draw

    @log_usage()
    def attribute(  # type: ignore[override]
        self, inputs: OneOrTuple, target: Target = None, additional_forward_args: Any = None
    ) -> OneOrTuple:
        """The saliency maps of a batch.

        Args:
            inputs: images [N, C, *S] with one, two or three spatial dimensions, floating-point, as the model takes them; or a tuple
                of this one tensor, as some of Captum's tools pass it.
            target: the class to explain: one for all samples, one for each ([N] as list or tensor), a tuple of indices for a dense
                output, or a function from the model's output to [N]. Default: None, the class predicted from the images.
            additional_forward_args: arguments of the model's forward after the images, one value or a tuple. Default: None.

        Returns:
            Maps [N, 1, *S], at least 0. If `inputs` is a tuple, a tuple of the maps.

        Raises:
            TypeError: if the images are not floating-point, there are several inputs, or the target has a wrong type.
            ValueError: if shapes or targets do not fit, or the output is not finite or does not depend on the images.
        """
        images = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
        if isinstance(images, tuple):
            raise TypeError(f"this method explains one image input, not {len(images)}; FullGrad and its variants take several")
        check_images(self.model, images)
        with preserve_model(self.model, images.device):
            model = unwrap_model(self.model)
            leaf = as_model_input(images, model).requires_grad_()
            thread = get_ident()
            with without_checkpoints(lambda: get_ident() == thread):  # a reentrant one refuses a gradient at the images
                maps = self.draw(Scores(model, leaf, target, as_tuple(additional_forward_args)), leaf).detach()
        maps = maps.to(images.device)  # the last layer may be on another device
        return (maps,) if isinstance(inputs, tuple) else maps


def method_from(draw: Draw) -> Factory:
    """A factory for `METHODS` from a function (scores, images, settings by name) -> maps [N, 1, *S].

    Args:
        draw: the function; see `Method`. Its keyword arguments are the settings of the method.

    Returns:
        (model, settings by name) -> `Method`. It raises TypeError for an unknown setting.

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
    return copy_name(draw, build)


def copy_name(source: Callable[..., Any], build: Factory, prefix: str = "") -> Factory:
    """Gives a factory the name and module of its source. Stores and experiments recognize it by these."""
    if hasattr(source, "__qualname__"):
        build.__module__ = source.__module__
        build.__name__ = prefix + source.__name__
        build.__qualname__ = source.__qualname__.removesuffix(source.__name__) + build.__name__
    return build


def channel_sum(attributions: Float[Tensor, "n c *s"]) -> Float[Tensor, "n 1 *s"]:
    """The sum of the magnitudes over the channels of each pixel, [N, 1, *S].

    The authors of SmoothGrad and FullGrad use it (Simonyan et al. 2014 use the largest magnitude). All methods here use it, so that
    they do not differ in the way in which channels are combined.
    """
    return attributions.abs().sum(1, keepdim=True)
