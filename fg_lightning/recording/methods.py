"""The methods of a run: their keys, and their maps of the numbers that FullGrad explains."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pkgutil import resolve_name
from typing import Any, Union

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import Attribution
from jaxtyping import Float
from torch import Tensor, nn

from fg_lightning.attribution import METHODS, Factory, channel_sum
from fg_lightning.fullgrad.decomposition import as_several, one_or_several
from fg_lightning.fullgrad.forward_backward import OneOrSeveral
from fg_lightning.fullgrad.postprocess import INTERPOLATION
from fg_lightning.fullgrad.preserve_model import as_model_input, preserve_model
from fg_lightning.recording.called_module import ScoredModule
from fg_lightning.recording.side_by_side import join_side_by_side

FULLGRAD = "fullgrad"

OF_FULLGRAD = ("simple_fullgrad", "smooth_fullgrad", "blurred_fullgrad")
"""Further methods that take FullGrad's arguments `psi`, `implicit` and `reading`."""

RESERVED = ("probe", "saliency")
"""Folders of a run. No method may have one of them as its key."""

Method = Union[str, Factory]
Methods = Union[str, Mapping[str, Method], Sequence[Method], Factory]
"""Names in METHODS, factories, or import paths of factories. A mapping gives each its key."""


def methods_by_key(methods: Methods) -> dict[str, Method]:
    """The methods by the keys under which their maps are logged and stored.

    The key of a name is that name. The key of a factory is its own name, or that of its class, in lower case with underscores.

    Raises:
        TypeError: if a method is neither a name nor a function.
        ValueError: if `methods` is empty, a name does not exist, an import path cannot be imported, a key is not allowed, or two
            methods have the same key.
    """
    if isinstance(methods, Mapping):
        pairs = [(_clean(str(key)), _resolve(method)) for key, method in methods.items()]
    else:
        several = [methods] if isinstance(methods, str) or not isinstance(methods, Sequence) else methods
        pairs = [(_key(method), method) for method in map(_resolve, several)]
    if not pairs:
        raise ValueError('methods is empty, but must name at least one, such as methods=("fullgrad",)')
    keyed: dict[str, Method] = {}
    for key, method in pairs:
        _check(key, method)
        if key in keyed:
            raise ValueError(f"two methods have the key {key!r}; give each a key with a mapping: methods={{{key + '_2'!r}: ...}}")
        keyed[key] = method
    return keyed


def _resolve(method: Any) -> Any:
    """Imports a method from its import path. A name in METHODS, and anything else, is returned unchanged."""
    if not isinstance(method, str) or method in METHODS or "." not in method:
        return method
    try:
        return resolve_name(method)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"the method {method!r} cannot be imported: {error}") from error


def _key(method: Any) -> str:
    name = next((name for name, factory in METHODS.items() if factory is method), None)
    if name is None and isinstance(method, partial):
        return _key(method.func)
    return _clean(str(name or (method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__))))


def _clean(name: str) -> str:
    """A name as part of keys and paths: "ScoreCAM" -> "score_cam"."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_") or "method"


def _check(key: str, method: Any) -> None:
    if isinstance(method, str) and method not in METHODS:
        close = get_close_matches(method, METHODS, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no method {method!r}; {hint}the methods are {', '.join(METHODS)}")
    if not isinstance(method, str) and not callable(method):
        raise TypeError(f"a method must be a name or a function from the model to an attribution, not {method!r}")
    if (key == FULLGRAD) != (method in (FULLGRAD, METHODS[FULLGRAD])) or key in RESERVED:
        raise ValueError(f"a method cannot have the key {key!r} here; give another: methods={{{'my_' + key!r}: ...}}")


def draw_maps(method: Method, scored: ScoredModule, images: OneOrSeveral, **of_fullgrad: Any) -> Float[Tensor, "n 1 *s"]:
    """The maps of a method for the numbers that a module returns.

    The random state is seeded with 0 while the method runs. Afterwards the module and the random state are as before, even after an
    error.

    Args:
        method: a name in METHODS or a factory.
        scored: returns the explained number of each image.
        images: [N, C, *S], as the module takes them; or a tuple of several image inputs.
        of_fullgrad: psi, implicit and reading, for methods that are versions of FullGrad.

    Returns:
        Maps [N, 1, *S] on the CPU; those of several inputs side by side. The magnitudes of several channels are summed, and a
        coarser map is upsampled linearly.

    Raises:
        ValueError: if the method does not return finite maps of the images. Errors of the method are passed on.
    """
    factory = METHODS[method] if isinstance(method, str) else method
    settings = of_fullgrad if method in OF_FULLGRAD or any(factory is METHODS[name] for name in OF_FULLGRAD) else {}
    several = as_several(images)
    device = several[0].device
    with _without_gradients(scored), preserve_model(scored, device):
        _seed(device)
        attribution: Attribution = factory(scored, **settings)
        arguments = {"additional_forward_args": scored.arguments} if scored.arguments else {}
        leaves = [as_model_input(of_input, scored).requires_grad_() for of_input in several]
        maps = attribution.attribute(one_or_several(leaves), target=None, **arguments)
    if len(several) == 1:
        return _as_maps(maps, several[0]).cpu()
    if not isinstance(maps, tuple) or len(maps) != len(several):
        raise ValueError(f"attribute must return a tuple of {len(several)} maps for as many image inputs")
    return join_side_by_side([_as_maps(*pair) for pair in zip(maps, several, strict=True)]).cpu()


def describe_zero_maps(key: str, method: Method, maps: Float[Tensor, "n 1 *s"], moment: str) -> str:
    """A message if half or more of a method's maps are zero everywhere; otherwise empty.

    Args:
        key: key of the method.
        method: the method.
        maps: its maps in one snapshot.
        moment: title of the snapshot, such as "epoch 2".
    """
    count = int((~maps.flatten(1).any(1)).sum())
    if 2 * count < len(maps):
        return ""
    is_cam = _key(method) == "gradcam"
    reason = " no channel of the layer supports the class, and Grad-CAM drops what is against it;" if is_cam else ""
    told = f"{key} ({moment}): {count} of {len(maps)} maps are zero everywhere:{reason} its numbers leave these maps out"
    return f"{told}. If it happens again, there is no message"


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Removes the gradients of the parameters for a while: a method that calls `backward` would add to them."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _seed(device: torch.device) -> None:
    """Seeds the global random states with 0. The caller restores them."""
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # torch.manual_seed would seed every GPU, too
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(0)


def _as_maps(maps: Any, images: Tensor) -> Tensor:
    if isinstance(maps, tuple) and len(maps) == 1:
        maps = maps[0]
    if not isinstance(maps, Tensor) or maps.ndim != images.ndim or len(maps) != len(images):
        found = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(f"attribute must return maps [N, 1, *S] of {list(images.shape)}, but it returned {found}")
    maps = maps.detach().float()
    if not bool(maps.isfinite().all()):
        raise ValueError("its maps are not finite")
    maps = maps if maps.shape[1] == 1 else channel_sum(maps)
    if maps.shape[2:] == images.shape[2:]:
        return maps
    return F.interpolate(maps, images.shape[2:], mode=INTERPOLATION[images.ndim - 2], align_corners=False)
