"""Runs a model in evaluation mode on constants, and puts everything back afterwards."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock, get_ident
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from fg_lightning.fullgrad.model_constants import HALF, ModelConstants, lift
from fg_lightning.fullgrad.torch_internals import (
    has_compiled,
    modules_by_name,
    tensor_tables,
    tensors_of,
    without_parametrization_cache,
)


@contextmanager
def preserve_model(model: nn.Module, device: torch.device, *, autocast: bool = False) -> Iterator[ModelConstants]:
    """Run a model in evaluation mode, eagerly, on constants and with gradients; put it and the random state back, also on errors.

    Random state, flags and patches of torch belong to all threads, so that a second thread waits.

    Args:
        model: any module.
        device: where the images are.
        autocast: keep the autocast that is active around it.

    Yields:
        The function mode that runs operations and saves what they are about to overwrite.
    """
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(_ONE_THREAD)
        enter(torch.inference_mode(False))
        enter(torch.enable_grad())
        modules = list(modules_by_name(model).values())
        enter(_random_state({device, *(tensor.device for tensor in tensors_of(modules))}))
        constants = enter(_constants_for(model))
        enter(_evaluation(modules))
        enter(without_parametrization_cache())
        enter(_eager())
        if not autocast:
            enter(torch.autocast(device.type, enabled=False))
        yield constants


_ONE_THREAD = RLock()


def as_model_input(images: Tensor, model: nn.Module) -> Tensor:
    """The images as a plain tensor in the precision of a model's parameters, or float32 for half precision.

    A class of its own, such as MONAI's MetaTensor, would be passed on to all results and could slice them differently.
    """
    parts = modules_by_name(model).values()
    parameters = (p for part in parts for p in tensor_tables(part)[0].values() if p is not None)
    precision = next((p.dtype for p in parameters if p.is_floating_point()), images.dtype)
    return lift(images.as_subclass(Tensor)).to(torch.float32 if precision in HALF else precision)


def copy_argument(argument: Tensor) -> Tensor:
    """A copy of an additional argument, in float32 if it is of half precision; the model may overwrite it."""
    return lift(argument).clone()


@contextmanager
def _random_state(devices: Iterable[torch.device]) -> Iterator[None]:
    """Put back the global random states of Python, NumPy and torch, on the CPU and on these devices."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    indices = sorted({device.index for device in devices if device.type == "cuda" and device.index is not None})
    try:
        with torch.random.fork_rng(devices=indices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def _evaluation(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode, set flag by flag, since `eval()` may be overridden to do more."""
    in_training = [module for module in modules if module.training]
    try:
        for module in in_training:
            module.training = False
        yield
    finally:
        for module in in_training:
            module.training = True


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled modules and functions as they are written."""
    if not has_compiled():
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        # Torch's advice on compiled modules with hooks; the decomposition needs hooks.
        warnings.filterwarnings("ignore", message="Using `torch.compile\\(module\\)` when there are global hooks")
        yield


@contextmanager
def _constants_for(model: nn.Module) -> Iterator[ModelConstants]:
    """Run a model, and modules that it calls without registering them, on constants; put all their tensors back.

    Attributes, containers, objects of the model's own code and random generators are put back as well. Parameters share their
    memory with the constants; values that an operation is about to overwrite are saved first. Half precision becomes float32.

    Args:
        model: any module; a module or tensor in it may have several names.
    """
    constants, thread = ModelConstants(), get_ident()

    def replace(module: nn.Module, args: Any) -> None:
        if get_ident() == thread:  # global hooks are met by all threads
            constants.replace(module)

    handle = register_module_forward_pre_hook(replace)
    try:
        constants.replace(model)
        with constants:
            yield constants
    finally:
        handle.remove()
        constants.put_back()
