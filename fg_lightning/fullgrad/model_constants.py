"""Replaces all tensors that a model holds by constants, and puts everything back afterwards.

Dictionaries and lists that hold a model's tensors are copied first and refilled at the end. No library restores them, because a
library could skip an object or create a new one.
"""

from __future__ import annotations

import argparse
import operator
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from fg_lightning.fullgrad.containers import BASE_CLASSES, CONTAINERS, base_class, copy_items, items_of, refill
from fg_lightning.fullgrad.hidden_writes import EXPOSING
from fg_lightning.fullgrad.model_contents import ATOMS, ModelContents, memory_of
from fg_lightning.fullgrad.operation import operation_name, tensors_in, works_in_place
from fg_lightning.fullgrad.torch_faults import FAULTY, avoid_faults
from fg_lightning.fullgrad.torch_internals import (
    child_table,
    modules_by_name,
    share_as_parameter,
    tensor_tables,
    writes_by_schema,
)

HALF = (torch.float16, torch.bfloat16)


def lift(tensor: Tensor) -> Tensor:
    """The values of a tensor without a graph, usable by autograd. Half precision becomes float32. Copied only if necessary."""
    tensor = tensor.detach()
    if tensor.dtype in HALF:
        return tensor.float()
    return tensor.clone() if tensor.is_inference() else tensor


class ModelConstants(TorchFunctionMode):
    """Replaces tensors by constants. As a function mode, it meets each operation before the operation can write to them.

    Attributes:
        has_drawn_numbers: whether the model has drawn random numbers of Python or NumPy. Known after the run.
    """

    def __init__(self) -> None:
        super().__init__()
        self._contents: list[tuple[Any, Any]] = []
        self._empty: list[Any] = []  # containers
        self._states: list[Callable[[], Any]] = []
        self._others: list[Any] = []  # objects of other packages, which stay as they are
        self._seen: dict[int, Any] = {}  # objects by id(); they are held, so that no id is used again
        self._constants: dict[int, Tensor] = {}
        self._sharing: defaultdict[int | None, list[Tensor]] = defaultdict(list)
        self._saved: list[tuple[Tensor, Tensor]] = []
        self._packages: set[str] = set()
        self.has_drawn_numbers = False

    def replace(self, module: nn.Module) -> None:
        """Puts constants into a module and into the objects that it holds."""
        if id(module) in self._seen:
            return
        parts = modules_by_name(module).values()
        new = [part for part in parts if id(part) not in self._seen and not isinstance(part, torch.jit.ScriptModule)]
        self._packages |= {type(part).__module__.partition(".")[0] for part in new} - _FRAMEWORKS
        self._seen |= {id(part): part for part in new}
        self._copy_buffers([buffer for part in new for buffer in tensor_tables(part)[1].values() if buffer is not None])
        for part in new:
            if children := child_table(part):  # they are among the parts
                self._keep(children)
            for table in tensor_tables(part):
                if table and id(table) not in self._seen:
                    self._keep(table)
                    for name, tensor in table.items():
                        if tensor is not None:
                            table[name] = self._make_constant(tensor)
        attributes = list(map(vars, new))
        for container in attributes:
            self._keep(container)
        self._replace_in(*attributes)

    def put_back(self) -> None:
        """Puts all contents, values and states back."""
        for container, items in self._contents:
            refill(container, items)
        for container in self._empty:
            if container:
                container.clear()
        for tensor, values in self._saved:
            tensor.data.copy_(values)  # without a new version, because a backward pass may have saved the tensor
        for put_back in self._states:
            put_back()

    def contents(self) -> ModelContents | None:
        """What the model held, to find out later whether it has changed. None if it holds or draws what changes unseen.

        That is: arrays, random generators, and random numbers of Python or NumPy.
        """
        if self._states or self.has_drawn_numbers:
            return None
        attributes = [own for other in self._others if isinstance(own := getattr(other, "__dict__", None), dict)]
        containers = [*self._contents, *((own, own.copy()) for own in attributes)]
        return ModelContents(containers, self._empty, list(self._seen.values()))

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(function, args, kwargs or {})

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an operation. Tensors of the model that it is about to overwrite are saved first."""
        if not kwargs and not _needs_care(function):  # most calls, such as those for a shape
            return function(*args)
        if _may_write(function) or "out" in kwargs or "inplace" in kwargs:
            self._save(_targets(function, args, kwargs))
        result = function(*args, **kwargs)
        avoid_faults(function, result)
        return result

    def _save(self, overwritten: list[Tensor]) -> None:
        """Saves the values of the model's tensors whose memory an operation is about to overwrite."""
        for tensor in overwritten:
            for original in self._sharing.pop(memory_of(tensor), ()):
                self._saved.append((original, original.detach().clone()))

    def _keep(self, container: Any) -> None:
        self._seen[id(container)] = container
        self._contents.append((container, container.copy() if type(container) in CONTAINERS else copy_items(container)))

    def _replace_in(self, *containers: Any) -> None:
        """Replaces the items of containers. Most items of modules are numbers or empty tables of hooks, which are skipped fast."""
        atoms, kinds, seen = ATOMS, CONTAINERS, self._seen
        self._empty += [item for own in containers for item in items_of(own) if type(item) in kinds and not item]
        others = [
            (own, key, item)
            for own in containers
            for key, item in (own.items() if isinstance(own, dict) else enumerate(own))
            if (kind := type(item)) not in atoms and (kind not in kinds or (item and id(item) not in seen))
        ]
        for own, key, item in others:
            if (replaced := self._replacement(item)) is not item:
                base_class(own).__setitem__(own, key, replaced)

    def _replacement(self, value: Any) -> Any:
        """The constant of a tensor, or a new tuple of constants. Other objects stay the same; tensors inside them are replaced."""
        kind = type(value)
        if kind in _TENSORS or isinstance(value, Tensor):
            return self._make_constant(value)
        if id(value) in self._seen:
            return value
        if isinstance(value, nn.Module):
            self.replace(value)
        elif isinstance(value, BASE_CLASSES):
            self._keep(value)
            if value and not isinstance(value, set) and len(value) <= _MAX_ITEMS:
                self._replace_in(value)
            if kind not in CONTAINERS and isinstance(attributes := getattr(value, "__dict__", None), dict):
                self._keep(attributes)
                self._replace_in(attributes)
        elif kind is tuple and ATOMS.issuperset(map(type, value)):
            return value
        elif kind is tuple or (isinstance(value, tuple) and hasattr(value, "_fields")):
            items = [self._replacement(item) for item in value]
            if not all(map(operator.is_, items, value)):
                return kind(*items) if hasattr(value, "_fields") else tuple(items)
        elif kind in _STATES:
            self._seen[id(value)] = value
            self._states.append(_STATES[kind](value))
        elif self._belongs_to_model(value):
            self._seen[id(value)] = value
            self._keep(vars(value))
            self._replace_in(vars(value))
        else:
            self._others.append(value)
        return value

    def _belongs_to_model(self, value: Any) -> bool:
        """Whether an object's attributes are the model's own; those of a trainer or a logger are not."""
        kind = type(value)
        if not isinstance(getattr(value, "__dict__", None), dict):
            return False
        package = kind.__module__.partition(".")[0]
        return kind in _NAMESPACES or package in self._packages or (is_dataclass(kind) and package not in _FRAMEWORKS)

    def _copy_buffers(self, buffers: list[Tensor]) -> None:
        """Makes constants of buffers. They are copies, because a model may write to them by operations that cannot be recognized.

        Small buffers, such as the statistics of norms, are copied together.
        """
        small: defaultdict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
        for buffer in {id(buffer): buffer for buffer in buffers if id(buffer) not in self._constants}.values():
            if _is_small(buffer):
                small[buffer.dtype, buffer.device].append(buffer)
            else:
                self._enter(buffer, buffer if is_lazy(buffer) else lift(buffer).clone())
        for together in small.values():
            copies = torch.cat([buffer.detach().reshape(-1) for buffer in together])
            for buffer, copied in zip(together, copies.split([buffer.numel() for buffer in together]), strict=True):
                copied = copied.data if buffer.ndim else copied[0].data  # with versions of its own
                self._enter(buffer, copied)

    def _make_constant(self, tensor: Tensor) -> Tensor:
        """The constant of a tensor. All its holders get the same one."""
        if (known := self._constants.get(id(tensor))) is not None:
            return known
        constant = _detach_constant(tensor)
        if (memory := memory_of(constant)) is not None and memory == memory_of(tensor):
            self._sharing[memory].append(tensor)
        return self._enter(tensor, constant)

    def _enter(self, tensor: Tensor, constant: Tensor) -> Tensor:
        identity = id(tensor)
        self._seen[identity] = tensor
        self._constants[identity] = self._constants[id(constant)] = constant
        if constant is not tensor and (attributes := vars(tensor)):
            vars(constant).update({name: self._replacement(value) for name, value in attributes.items()})
        return constant


def _is_small(buffer: Tensor) -> bool:
    """Whether a buffer can be copied together with others."""
    is_plain = type(buffer) is Tensor and buffer.layout is torch.strided and not buffer.is_quantized and buffer.dtype not in HALF
    return is_plain and buffer.ndim <= 1 and 0 < buffer.numel() <= _SMALL


def _detach_constant(tensor: Tensor) -> Tensor:
    """The values of a tensor as a constant of the same class. It shares the memory if possible, and counts its own versions."""
    kind = type(tensor)
    if kind is not Tensor and kind is not nn.Parameter:  # a subclass defines its own operations
        if is_lazy(tensor):
            return tensor
        return lift(tensor.data) if tensor.requires_grad else tensor
    values = tensor.data
    if values.dtype in HALF or values.is_inference():
        values = lift(values)
    return share_as_parameter(values) if kind is nn.Parameter else values


@cache
def _needs_care(function: Callable[..., Any]) -> bool:
    """Whether a call without keyword arguments may write to an operand, or has a backward pass with a fault."""
    return _may_write(function) or operation_name(function) in FAULTY


@cache
def _may_write(function: Callable[..., Any]) -> bool:
    return works_in_place(function) or operation_name(function) in _WRITERS or writes_by_schema(function)


def _targets(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation may write to."""
    name = operation_name(function)
    if name in _UPDATING_STATISTICS:
        return [t for t in tensors_in((args, kwargs)) if not isinstance(t, nn.Parameter)]
    if name in _RENORMALIZING and (args[3] if len(args) > 3 else kwargs.get("max_norm")) is None:
        return []
    if name in _WRITERS or writes_by_schema(function):
        return tensors_in((args, kwargs))
    return tensors_in((args[:1], kwargs.get("input"), kwargs.get("out")))


def _state_of_array(array: npt.NDArray[Any]) -> Callable[[], Any]:
    is_kept = array.flags.writeable and array.nbytes <= _MAX_BYTES
    return partial(np.copyto, array, array.copy()) if is_kept else lambda: None


def _state_of_generator(generator: torch.Generator) -> Callable[[], Any]:
    return partial(generator.set_state, generator.get_state())


def _state_of_numpys(generator: np.random.Generator) -> Callable[[], Any]:
    return partial(setattr, generator.bit_generator, "state", generator.bit_generator.state)


_STATES: dict[type, Callable[[Any], Callable[[], Any]]] = {
    np.ndarray: _state_of_array,
    torch.Generator: _state_of_generator,
    np.random.Generator: _state_of_numpys,
    np.random.RandomState: lambda generator: partial(generator.set_state, generator.get_state()),
    random.Random: lambda generator: partial(generator.setstate, generator.getstate()),
}
"""Class of an array or a random generator -> a function that returns what puts its present state back."""

_TENSORS = {Tensor, nn.Parameter}
_NAMESPACES = (SimpleNamespace, argparse.Namespace)
_FRAMEWORKS = set("torch torchvision torchmetrics lightning pytorch_lightning lightning_fabric fg_lightning builtins".split())
_SMALL = 1 << 12
"""Largest size of a buffer that is copied together with others. Larger ones get memory of their own, aligned for kernels."""

_MAX_ITEMS = 1000
"""A larger container holds data rather than parts of the model. It is put back, but its items are not replaced."""

_MAX_BYTES = 1 << 20
"""A larger array holds data rather than numbers that a forward counts with. It is not put back."""

_UPDATING_STATISTICS = {"batch_norm", "instance_norm", "native_batch_norm", "batch_norm_impl_index"}
"""Operations that update statistics."""

_RENORMALIZING = {"embedding", "embedding_bag"}
"""Operations that change their weight if `max_norm` is given."""

_WRITERS = _UPDATING_STATISTICS | _RENORMALIZING | EXPOSING
"""Operations that may write to a tensor although their name does not show it."""
