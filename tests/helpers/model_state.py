"""Everything of a model, an input and the process that an explanation of the model might change."""

from __future__ import annotations

import random
import weakref
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class The:
    """An object, equal to itself alone; it stays alive, so that nothing else gets its id."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, The) and self.thing is other.thing

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self.thing).__name__} at {id(self.thing):x}"


def state_of(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """What `assert_unchanged` compares."""
    modules = list(model.modules())
    slots = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    hooks = [name for name in vars(torch.nn.modules.module) if name.startswith("_global_") and name.endswith("hooks")]
    assert len(hooks) > 5  # torch still calls them so
    return {
        "slots": [(name, The(tensor)) for name, tensor in slots.items()],
        "modules": [(name, The(module)) for name, module in model.named_modules(remove_duplicate=False)],
        "keys": list(model.state_dict()),
        **{f"tensor {name}": tensor_state(tensor) for name, tensor in ({"the images": x} | slots).items()},
        "attributes": [contents(vars(module)) for module in modules],
        "global hooks": [len(getattr(torch.nn.modules.module, name)) for name in hooks],
        "flags": [module.training for module in modules],
        "torch": torch.get_rng_state().tolist(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "function modes": torch.overrides._len_torch_function_stack(),
    }


def tensor_state(tensor: Tensor) -> tuple[Any, ...]:
    """Whether it is the same tensor, and holds the same."""
    version = None if tensor.is_inference() else tensor._version
    grad = (The(tensor.grad), values(tensor.grad)) if tensor.is_leaf and tensor.grad is not None else None
    layout = (type(tensor), tensor.dtype, tensor.stride(), tensor.data_ptr())
    attributes = {name: (The(value), values(value) if isinstance(value, Tensor) else None) for name, value in vars(tensor).items()}
    return (*layout, tensor.requires_grad, version, bool(tensor._backward_hooks), grad, values(tensor), attributes)


def values(tensor: Tensor) -> bytes:
    tensor = tensor.detach().as_subclass(Tensor).contiguous()
    return tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.reshape(1).view(torch.uint8).numpy().tobytes()


def contents(value: Any, depth: int = 5) -> Any:
    """Which objects are in a container, and in what it holds; the values of tensors, too."""
    if type(value) in weakref.ProxyTypes:  # of what may be gone
        return The(value)
    if isinstance(value, Tensor):
        return (The(value), tensor_state(value))
    if depth == 0 or isinstance(value, nn.Module):
        return The(value)
    own = contents(vars(value), depth - 1) if isinstance(value, (dict, list)) and hasattr(value, "__dict__") else None
    if isinstance(value, dict):
        return (The(value), [(The(key), contents(item, depth - 1)) for key, item in value.items()], own)
    if isinstance(value, (list, tuple, deque)):
        return (The(value), [contents(item, depth - 1) for item in value], own)
    if isinstance(value, np.ndarray):
        return (The(value), value.tobytes())
    if isinstance(value, set):
        return (The(value), sorted(map(id, value)))
    if isinstance(value, torch.Generator):
        return (The(value), value.get_state().tolist())
    if isinstance(value, np.random.Generator):
        return (The(value), str(value.bit_generator.state))
    if isinstance(value, SimpleNamespace) or type(value).__module__ == "tests.helpers.undisturbed_networks":
        return (The(value), contents(vars(value), depth - 1))
    return The(value)


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    assert not changed, f"changed: {changed}"
