"""A saliency method as one of Captum's attributions, which leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from threading import get_ident
from typing import Any, Union

from captum.attr import Attribution
from captum.log import log_usage
from jaxtyping import Float
from torch import Tensor, nn

from fg_lightning.attribution.scores import Scores
from fg_lightning.fullgrad.entry import check_images
from fg_lightning.fullgrad.hidden import without_checkpoints
from fg_lightning.fullgrad.target import Target
from fg_lightning.fullgrad.undisturbed import as_the_model_takes, undisturbed, unwrapped

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
