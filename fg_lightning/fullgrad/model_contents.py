"""What a model held at some time, to find out later whether it has changed."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import BuiltinFunctionType, CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fg_lightning.fullgrad.containers import holds, items_of

ATOMS = {bool, int, float, complex, str, bytes, type(None), weakref.ProxyType, weakref.CallableProxyType}
"""Classes of objects that hold no tensors. Proxies are among them, because a proxy without an object raises on any access."""

_FUNCTIONS = {FunctionType, MethodType}
_UNCHANGING = ATOMS | _FUNCTIONS | {BuiltinFunctionType, type, torch.dtype, torch.device}


class ModelContents:
    """What a model held at some time: the items of its dictionaries and lists, the variables of its functions, and its tensors.

    Args:
        containers: dictionaries and lists, each with a copy.
        empty: containers without items.
        objects: modules, tensors and other objects of the model.
    """

    def __init__(self, containers: list[tuple[Any, Any]], empty: list[Any], objects: Iterable[Any]) -> None:
        self._containers = containers
        self._empty = empty
        self._objects = {id(item) for item in objects}
        self._classes = [(module, type(module)) for module in objects if isinstance(module, nn.Module)]
        self._tensors = [(tensor, _place(tensor)) for tensor in objects if isinstance(tensor, Tensor)]
        functions = [item for _, own in containers for item in items_of(own) if type(item) in _FUNCTIONS]
        self._variables = [(cell, _value_of(cell)) for cell in _cells_of(functions)]

    def may_change_unseen(self) -> bool:
        """Whether a function of the model has a variable that can change without an assignment, such as a list or an iterator."""
        return not all(type(value) in _UNCHANGING or id(value) in self._objects for _, value in self._variables)

    def are_unchanged(self) -> bool:
        """Whether the model holds the same objects now. The values of its tensors may have changed in place."""
        return (
            not any(self._empty)
            and all(type(module) is kind for module, kind in self._classes)
            and all(holds(container, items) for container, items in self._containers)
            and all(_value_of(cell) is value for cell, value in self._variables)
            and all(_place(tensor) == place for tensor, place in self._tensors)
        )


def _cells_of(functions: Iterable[Any]) -> list[CellType]:
    """The variables in the closures of functions and methods, and of functions in these."""
    found: dict[int, CellType] = {}
    ahead = list(functions)
    while ahead:
        function = ahead.pop()
        for cell in getattr(function, "__closure__", None) or ():
            if id(cell) not in found:
                found[id(cell)] = cell
                ahead.append(_value_of(cell))
    return list(found.values())


def _value_of(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it has no value yet, or no more
        return None


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor has its values, and how it reads them."""
    return memory_of(tensor), *view_of_memory(tensor)


def view_of_memory(tensor: Tensor) -> tuple[Any, ...]:
    """How a tensor reads its memory. Two tensors that read the same memory in the same way are equal."""
    return tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()


def memory_of(tensor: Tensor) -> int | None:
    """The address of a tensor's memory; None if it has no memory of its own, like sparse and fake tensors."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None
