"""What surrounds each run of a model: evaluation mode, constants for its tensors, and everything put back afterwards."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fg_lightning.fullgrad.constant_parameters import HALF, lifted, on_constants


@contextmanager
def undisturbed(model: nn.Module, device: torch.device, *, autocast: bool = False) -> Iterator[None]:
    """Runs a model in evaluation mode, eagerly, on constants and with gradients; it and the random state are put back.

    So are they when it raises. Random state, flags and what of torch is patched belong to all threads, so that a second one waits.

    Args:
        model: any module.
        device: where the images are.
        autocast: keep the autocast that is active around it.
    """
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(_ONE_THREAD)
        enter(torch.inference_mode(False))
        enter(torch.enable_grad())
        enter(_random_state({device, *(tensor.device for tensor in model.parameters())}))
        enter(on_constants(model))
        enter(_evaluation(model))
        enter(patch.object(parametrize, "_cache_enabled", 0))  # weights that are constants here must not be found there again
        enter(_eager())
        if not autocast:
            enter(torch.autocast(device.type, enabled=False))
        yield


_ONE_THREAD = RLock()


def unwrapped(model: nn.Module) -> nn.Module:
    """The network in what runs it on several devices, compiles it, or, as Fabric does, converts its inputs."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrapped(model.module)
    for name in ("_orig_mod", "_forward_module"):  # of torch.compile, of Fabric.setup
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return unwrapped(inner)
    return model


def as_the_model_takes(images: Tensor, model: nn.Module) -> Tensor:
    """The images as a plain tensor in the precision of a model's parameters, or float32 for half precision.

    A class of their own, such as MONAI's MetaTensor, would be that of all that is computed, and slices it as it sees fit.
    """
    precision = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
    return lifted(images.as_subclass(Tensor)).to(torch.float32 if precision in HALF else precision)


def copied(argument: Tensor) -> Tensor:
    """An additional argument as a model may have it: lifted as its parameters are, and its own to overwrite."""
    return lifted(argument).clone()


@contextmanager
def _random_state(devices: Iterable[torch.device]) -> Iterator[None]:
    """Put back the global random states of Python, NumPy and torch, the latter's of the CPU and of these devices."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    indices = sorted({device.index for device in devices if device.type == "cuda" and device.index is not None})
    try:
        with torch.random.fork_rng(devices=indices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, set flag by flag, since `eval()` may be overridden to do more."""
    in_training = [module for module in model.modules() if module.training]
    try:
        for module in in_training:
            module.training = False
        yield
    finally:
        for module in in_training:
            module.training = True


@contextmanager
def _eager() -> Iterator[None]:
    """Compiled modules and functions run as they are written; nothing to do where torch has compiled nothing."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        # torch advises on modules compiled by their call that are hooked, which is what decomposing them takes.
        warnings.filterwarnings("ignore", message="Using `torch.compile\\(module\\)` when there are global hooks")
        yield
