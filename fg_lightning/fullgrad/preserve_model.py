"""Runs a model in evaluation mode on constants, and puts everything back afterwards."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator
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
    without_autocast_inside,
    without_parametrization_cache,
)


@contextmanager
def preserve_model(model: nn.Module, device: torch.device, *, autocast: bool = False) -> Iterator[ModelConstants]:
    """Runs a model in evaluation mode, eagerly, on constants and with gradients.

    The model and the random state are put back afterwards, even after an error. Random state, flags and patches of torch belong to
    all threads, so a second thread has to wait.

    Args:
        model: any module.
        device: device of the images.
        autocast: whether autocast stays active, around the model or in its forward. Default: False.

    Yields:
        The function mode that runs operations and saves tensors that they are about to overwrite.
    """
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(ONE_THREAD)
        enter(torch.inference_mode(False))
        enter(torch.enable_grad())
        modules = list(modules_by_name(model).values())
        has_drawn = enter(random_state({device, *(tensor.device for tensor in tensors_of(modules))}))
        constants = enter(_constants_for(model))
        enter(_evaluation(modules))
        enter(without_parametrization_cache())
        enter(_eager())
        if not autocast:
            enter(torch.autocast(device.type, enabled=False))
            enter(without_autocast_inside())
        yield constants
        constants.has_drawn_numbers = has_drawn()


ONE_THREAD = RLock()
"""Is held while a model runs, since its tensors, random states and patches belong to all threads."""


def as_model_input(images: Tensor, model: nn.Module) -> Tensor:
    """The images as a plain tensor in the precision of a model's parameters, or float32 for half precision.

    A subclass, such as MONAI's MetaTensor, would be passed on to all results and could slice them differently.
    """
    parts = modules_by_name(model).values()
    parameters = (p for part in parts for p in tensor_tables(part)[0].values() if p is not None)
    precision = next((p.dtype for p in parameters if p.is_floating_point()), images.dtype)
    return lift(images.as_subclass(Tensor)).to(torch.float32 if precision in HALF else precision)


def copy_argument(argument: Tensor) -> Tensor:
    """A copy of an additional argument, because the model may overwrite it. Half precision becomes float32."""
    return lift(argument).clone()


@contextmanager
def random_state(devices: Iterable[torch.device]) -> Iterator[Callable[[], bool]]:
    """Puts back the global random states of Python, NumPy and torch, on the CPU and on these devices.

    Yields:
        A function that tells whether random numbers of Python or NumPy were drawn.
    """
    of_python: Any = random.getstate()
    of_numpy: Any = np.random.get_state()
    indices = sorted({device.index for device in devices if device.type == "cuda" and device.index is not None})

    def has_drawn() -> bool:
        now: Any = np.random.get_state()
        return random.getstate() != of_python or now[2] != of_numpy[2] or not np.array_equal(now[1], of_numpy[1])

    try:
        with torch.random.fork_rng(devices=indices):
            yield has_drawn
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def _evaluation(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Sets evaluation mode flag by flag, because an overridden `eval()` may do more."""
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
    """Runs compiled modules and functions without their compiled code."""
    if not has_compiled():
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        # Torch advises against hooks on compiled modules, but the decomposition needs them.
        warnings.filterwarnings("ignore", message="Using `torch.compile\\(module\\)` when there are global hooks")
        yield


@contextmanager
def _constants_for(model: nn.Module) -> Iterator[ModelConstants]:
    """Runs a model on constants, including modules that it calls without registering them, and puts all tensors back.

    Attributes, containers, objects of the model's own code and random generators are put back as well. Parameters share their
    memory with the constants. Values that an operation is about to overwrite are saved first. Half precision becomes float32.

    Args:
        model: any module. A module or tensor in it may have several names.
    """
    constants, thread = ModelConstants(), get_ident()

    def replace(module: nn.Module, args: Any) -> None:
        if get_ident() == thread:  # global hooks run in all threads
            constants.replace(module)

    handle = register_module_forward_pre_hook(replace)
    try:
        constants.replace(model)
        with constants:
            yield constants
    finally:
        handle.remove()
        constants.put_back()
