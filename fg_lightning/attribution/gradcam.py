"""Grad-CAM, by default at the last layer whose output is a plane."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from captum.attr import LayerAttribution, LayerGradCam
from jaxtyping import Float
from torch import Tensor, nn

from fg_lightning.attribution.method import Scores
from fg_lightning.fullgrad.postprocess import INTERPOLATION

ADAPTIVE_POOLING = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def gradcam(scores: Scores, images: Float[Tensor, "n c *s"], *, layer: str | None = None) -> Float[Tensor, "n 1 *s"]:
    """max(0, sum over channels of activation times mean gradient) at a layer, upsampled linearly, Selvaraju et al. 2017.

    Args:
        layer: qualified name of the layer, such as "layer4". Default: None, the last layer whose output is a plane of more than one
            place.

    Raises:
        ValueError: if there is no such layer, its output is not [N, C, *S'], or the explained output does not depend on it.
    """
    shapes = _output_shapes(scores, images)
    if layer is None:
        layer = _last_planar(shapes, scores, images)
    elif layer not in shapes or not _is_planar(shapes[layer], images):
        raise ValueError(_unfit(layer, shapes, images, dict(scores.model.named_modules())))
    attribution = LayerGradCam(scores, scores.model.get_submodule(layer))
    try:
        planes = attribution.attribute(images, relu_attributions=True)
    except RuntimeError as error:
        if "appears to not have been used" not in str(error):
            raise
        raise ValueError(f"the explained output does not depend on layer {layer!r}; name another one with layer=...") from error
    return LayerAttribution.interpolate(planes, images.shape[2:], INTERPOLATION[images.ndim - 2])


def _output_shapes(scores: Scores, images: Tensor) -> dict[str, tuple[int, ...]]:
    """The shape of every module's output that is one tensor, in the order in which modules finish: a block after its layers."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(module: nn.Module, args: Any, output: Any, name: str) -> None:
        if isinstance(output, Tensor):
            shapes.pop(name, None)
            shapes[name] = tuple(output.shape)

    modules = scores.model.named_modules()
    named = [(name, module) for name, module in modules if name and not isinstance(module, torch.jit.ScriptModule)]  # has no hooks
    handles = [module.register_forward_hook(partial(note, name=name)) for name, module in named]
    try:
        with torch.no_grad():
            scores(images)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _is_planar(shape: tuple[int, ...], images: Tensor) -> bool:
    """Whether a shape is [N, C, *S'] with no axis longer than that of the images. Channels in last place can be longer."""
    same_kind = len(shape) == images.ndim and shape[0] == len(images)
    return same_kind and all(own <= given for own, given in zip(shape[2:], images.shape[2:], strict=True))


def _last_planar(shapes: dict[str, tuple[int, ...]], scores: Scores, images: Tensor) -> str:
    """The last layer whose output is a plane of more than one place. Adaptive pooling is left out: it may repeat a single place.

    Raises:
        ValueError: if there is none, or if later layers work on tokens or have their channels last.
    """
    found = behind = None
    for name, shape in shapes.items():
        if _is_planar(shape, images):
            is_pooling = isinstance(scores.model.get_submodule(name), ADAPTIVE_POOLING)
            if math.prod(shape[2:]) > 1 and not is_pooling:
                found, behind = name, None
        elif behind is None and len(shape) > 2:
            behind = name
    if found is None:
        raise ValueError(
            "gradcam found no layer whose output is a plane [N, C, *S] of more than one place, such as a convolution; "
            "name one with layer=..., or leave gradcam out"
        )
    if behind is not None:
        raise ValueError(
            f"gradcam cannot choose a layer: the last planes [N, C, *S] are the output of {found!r}, but the output of the later "
            f"{behind!r} is {list(shapes[behind])}. Name the layer, as in layer={found!r}, or leave gradcam out"
        )
    return found


def _unfit(layer: str, shapes: dict[str, tuple[int, ...]], images: Tensor, modules: dict[str, nn.Module]) -> str:
    """The message about a layer that cannot be used."""
    planar = [name for name, shape in shapes.items() if _is_planar(shape, images)]
    fitting = f"layers that fit are {', '.join(planar[-8:]) or 'none'}"
    if layer not in modules:
        return f"the model has no layer {layer!r}; {fitting}"
    found = list(shapes[layer]) if layer in shapes else "no tensor, or it never ran"
    return f"the output of layer {layer!r} must be [N, C, *S] with N = {len(images)}, but is {found}; {fitting}"
