"""One operation in a forward pass: its name, operands and outputs, and which operands depend on the input."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_REFLECTED = {"__radd__": "add", "__rmul__": "mul", "__rsub__": "rsub"}
_IN_PLACE_DUNDERS = {"__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ipow__", "__setitem__"}
_ALIASES = {
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "truediv": "div",
    "true_divide": "div",
    "concat": "cat",
    "concatenate": "cat",
    "clip": "clamp",
    "_softmax": "softmax",
    "special_expit": "sigmoid",
    "swapaxes": "transpose",
    "swapdims": "transpose",
}


@cache
def operation_name(function: Callable[..., Any]) -> str:
    """The name of an operation in the tables: `add` for `+`, `torch.add`, `Tensor.add_` and `+=`."""
    name = getattr(function, "__name__", repr(function))
    if name in ("__get__", "__set__"):  # a property of the tensor, such as x.T
        name = getattr(function.__self__, "__name__", name)  # type: ignore[attr-defined]
    if name in _REFLECTED:
        return _REFLECTED[name]
    if name in _IN_PLACE_DUNDERS and name != "__setitem__":
        name = name.replace("__i", "__", 1)
    core = name.split(".")[0].strip("_")  # an OpOverload is called "relu.default"
    return _ALIASES.get(core, core)


@cache
def works_in_place(function: Callable[..., Any]) -> bool:
    """Whether an operation overwrites its first operand, by torch's naming convention."""
    name = getattr(function, "__name__", "").split(".")[0]
    return name in _IN_PLACE_DUNDERS or (name.endswith("_") and not name.endswith("__"))


def tensors_in(tree: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dictionaries, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    found: list[Tensor] = []
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (tuple, list)):
        return found
    for item in tree:
        kind = type(item)
        if kind is Tensor or kind is nn.Parameter:
            found.append(item)
        elif kind not in _NUMBERS:
            found += tensors_in(item)
    return found


_NUMBERS = {bool, int, float, str, type(None)}
"""Common types of arguments that contain no tensors."""


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The same nested structure with `function` applied to every tensor in it."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, (tuple, list)):
        items = [map_tensors(function, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if isinstance(tree, dict):
        mapped = copy.copy(tree)  # keeps the class, its attributes and its default
        for key, item in tree.items():
            mapped[key] = map_tensors(function, item)
        return mapped
    return tree


RandomState = tuple[Tensor, list[tuple[int, Tensor]]]
"""The state of the CPU's generator, and of CUDA's generators by device."""


def _repeat(
    function: Callable[..., Any], in_place: bool, state: RandomState | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run an operation again on other operands. An in-place operation overwrites `args[0]`."""
    with ExitStack() as stack:
        if state is not None:
            cpu, devices = state
            stack.enter_context(torch.random.fork_rng(devices=[device for device, _ in devices]))
            torch.set_rng_state(cpu)
            for device, of_device in devices:
                torch.cuda.set_rng_state(of_device, device)
        result = function(*args, **kwargs)
    return args[0] if in_place else result


_OPERANDS = {
    "mm": ("input", "mat2"),
    "bmm": ("input", "mat2"),
    "mv": ("input", "vec"),
    "addmm": ("input", "mat1", "mat2"),
    "addmv": ("input", "mat", "vec"),
    "addbmm": ("input", "batch1", "batch2"),
    "baddbmm": ("input", "batch1", "batch2"),
    "where": ("condition", "input", "other"),
}
"""Torch's names of the operands of an operation, if they are not `input` and `other`."""


def _place_operands(operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turns `torch.mul(input=x, other=y)` into `torch.mul(x, y)`, so that rules find operands by position."""
    for position, name in enumerate(_OPERANDS.get(operation, ("input", "other"))):
        if name in kwargs and len(args) == position:
            args, kwargs = (*args, kwargs[name]), {key: value for key, value in kwargs.items() if key != name}
    return args, kwargs


def is_leaf(tensor: Tensor) -> bool:
    return tensor.is_leaf


class Operation(NamedTuple):
    """An operation with its operands and, after it was run, its outputs.

    A tensor that depends on the input requires gradients, since the model runs on detached parameters. Leaves also require
    gradients, because a forward may use their gradients, but they do not depend on the input.

    Attributes:
        function: the function of torch.
        name: its name in the table of operations.
        args: its arguments, including operands that were given by name.
        kwargs: its other keyword arguments.
        dependent: the operands that depend on the input.
        in_place: whether it overwrites its first operand.
        is_custom: whether it is an autograd function of the user, whose backward defines its Jacobian.
        dependent_ids: ids of the dependent operands. After an in-place operation, requires_grad describes the overwritten operand.
        outputs: the outputs that depend on the input. Empty before it was run.
        positions: their indices among all tensors in its result.
        overwritten: the values of the operand that it overwrote, if its rule reads them.
        random_state: the state of the random generators before the run, if its rule runs it again.
    """

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dependent: list[Tensor]
    in_place: bool
    is_custom: bool
    dependent_ids: frozenset[int]
    outputs: Sequence[Tensor] = ()
    positions: Sequence[int] = ()
    overwritten: Tensor | None = None
    random_state: RandomState | None = None

    @classmethod
    def meet(
        cls,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        is_free: Callable[[Tensor], bool] = is_leaf,
        name: str | None = None,
        is_custom: bool = False,
    ) -> Operation:
        """An operation that is about to be run.

        Args:
            function: the function that is called.
            args: its arguments.
            kwargs: its keyword arguments.
            is_free: function that checks whether a tensor that requires gradients does not depend on the input. Default: whether it
                is a leaf.
            name: name of the operation, if the function has no suitable name. It then never works in place. Default: the
                function's.
            is_custom: whether it is an autograd function of the user. Default: False.
        """
        in_place = name is None and bool(args) and isinstance(args[0], Tensor) and works_in_place(function)
        name = operation_name(function) if name is None else name
        if kwargs:
            args, kwargs = _place_operands(name, args, kwargs)
        dependent = [t for t in tensors_in((args, kwargs) if kwargs else args) if t.requires_grad and not is_free(t)]
        ids = frozenset(map(id, dependent))
        return cls(function, name, args, kwargs, dependent, in_place, is_custom, ids)

    def with_outputs(
        self,
        tensors: Sequence[Tensor],
        is_free: Callable[[Tensor], bool] = is_leaf,
        overwritten: Tensor | None = None,
        random_state: RandomState | None = None,
    ) -> Operation:
        """The operation after it was run.

        Args:
            tensors: all the tensors in its result, or the one that it overwrote.
            is_free: see `meet`.
            overwritten: see the attributes.
            random_state: see the attributes.
        """
        positions = [i for i, t in enumerate(tensors) if t.requires_grad and not is_free(t)]
        outputs = [tensors[i] for i in positions]
        return Operation(*self[:8], outputs, positions, overwritten, random_state)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by its position or its name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def depends(self, operand: Any) -> bool:
        """Whether an operand, or any tensor in it, depends on the input."""
        if isinstance(operand, Tensor):
            return id(operand) in self.dependent_ids
        return any(id(t) in self.dependent_ids for t in tensors_in(operand))

    def value(self, tensor: Tensor) -> Tensor:
        """The values of an operand as the operation read them, detached from the graph."""
        if self.overwritten is not None and tensor is self.args[0]:
            return self.overwritten
        return tensor.detach()

    def result(self, index: int = 0) -> Tensor:
        """The values of an output, detached from the graph."""
        return self.outputs[index].detach()

    @property
    def overwrites_leaf(self) -> bool:
        """Whether it overwrites a leaf, which autograd allows only under no_grad, such as an optimizer step in the forward."""
        return works_in_place(self.function) and any(t.is_leaf and t.requires_grad for t in tensors_in(self.args[:1]))

    @property
    def repeat(self) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
        """A function of (args, kwargs) that runs the operation again on other operands, with the same random numbers.

        It does not hold the outputs, so a bias that is computed later can hold it.
        """
        return partial(_repeat, self.function, self.in_place, self.random_state)

    def at_values(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments and keyword arguments, with every tensor replaced by its `value`."""
        return map_tensors(self.value, (self.args, self.kwargs))

    def at_zero(self) -> Any:
        """The operation's result with zeros in place of its dependent operands."""

        def zero(t: Tensor) -> Tensor:
            return torch.zeros_like(t) if self.depends(t) else self.value(t)

        return self.repeat(*map_tensors(zero, (self.args, self.kwargs)))


def random_state(op: Operation) -> RandomState:
    """The state of the random generators that an operation is about to use."""
    devices = [t.device.index for t in op.dependent[:1] if t.device.type == "cuda"]
    return torch.get_rng_state(), [(device, torch.cuda.get_rng_state(device)) for device in devices]
