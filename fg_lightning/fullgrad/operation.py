"""One call of a torch operation, as the tape meets it: its name, its operands, and which of them depend on the input."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

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
    """The name under which the tables know an operation: `add` for `+`, `torch.add`, `Tensor.add_` and `+=` alike."""
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


@cache
def _keeps_its_operand(function: Callable[..., Any]) -> bool:
    """Whether autograd copies the operand of an in-place function (SiLU does), so that there is no need to do it again."""
    operand = torch.full((1,), 0.5).requires_grad_()
    try:
        saved = getattr(function(operand.clone()).grad_fn, "_saved_self", None)
    except (TypeError, RuntimeError):  # it takes more than its operand
        return False
    return isinstance(saved, Tensor) and torch.equal(saved, operand)


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
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (tuple, list, dict)):
            found += tensors_in(item)
    return found


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The same nested structure with `function` applied to every tensor in it."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, (tuple, list)):
        items = [map_tensors(function, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if isinstance(tree, dict):
        mapped = copy.copy(tree)  # of its own class, whose attributes and default it keeps
        for key, item in tree.items():
            mapped[key] = map_tensors(function, item)
        return mapped
    return tree


RandomState = tuple[Tensor, list[tuple[int, Tensor]]]
"""Of the CPU's generator and, by device, of CUDA's."""


def _repeat(
    function: Callable[..., Any], in_place: bool, state: RandomState | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """An operation once more, on other operands; an in-place one overwrites `args[0]`."""
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
"""What torch calls the operands of an operation, where it is not input and other."""


def _operands_by_position(operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`torch.mul(input=x, other=y)` as `torch.mul(x, y)`, so that rules find operands in one place."""
    for position, name in enumerate(_OPERANDS.get(operation, ("input", "other"))):
        if name in kwargs and len(args) == position:
            args, kwargs = (*args, kwargs[name]), {key: value for key, value in kwargs.items() if key != name}
    return args, kwargs


def is_free(tensor: Tensor) -> bool:
    """Whether a tensor that requires gradients does not depend on the input: a leaf, or made of leaves."""
    return tensor.is_leaf or hasattr(tensor, "_fg_free")


class Call:
    """An operation with its operands.

    A tensor that depends on the input is told by `requires_grad`, since the model runs on detached parameters. Leaves, and what a
    forward makes of them alone, require gradients as well, so that it may ask for them; they are free of the input.
    Rules read operands through this class, so that the tape knows which values they hold on to. `repeat(args, kwargs)` runs the
    operation once more, on other operands, drawing the random numbers it drew if `keep_random_state` was called before.

    Attributes:
        outputs: the outputs that depend on the input, once the operation was run.
        places: which of all the tensors in its result they are.
        held: detached values that rules hold on to.
        wrote_into_constant: whether it works in place on a view of what did not depend on the input before.
        linearised: whether its bias came from the general fallback.
        is_custom: whether it is an autograd function somebody wrote, whose own backward says what its Jacobian is.
    """

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None = None
    ) -> None:
        self.function = function
        self.name = operation_name(function) if name is None else name
        if kwargs:
            args, kwargs = _operands_by_position(self.name, args, kwargs)
        self.args = args
        self.kwargs = kwargs
        self.dependent = [t for t in tensors_in((args, kwargs) if kwargs else args) if t.requires_grad and not is_free(t)]
        self.in_place = name is None and bool(args) and isinstance(args[0], Tensor) and works_in_place(function)
        base = args[0]._base if self.in_place else None
        self.wrote_into_constant = base is not None and not base.requires_grad
        # What is computed later must not hold on to the call, whose outputs would hold it: hence a function of its own.
        self.repeat = partial(_repeat, function, self.in_place, None)
        self.outputs: list[Tensor] = []
        self.places: list[int] = []
        self.held: list[Tensor] = []
        self.linearised = False
        self.is_custom = False
        # After an in-place operation requires_grad says what the operand has become, not what it was.
        self._dependent_ids = {id(t) for t in self.dependent}
        self._overwritten: Tensor | None = None
        self._found_in_history = False

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by its position or its name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def depends(self, operand: Any) -> bool:
        """Whether an operand, or any tensor in it, depends on the input."""
        if isinstance(operand, Tensor):
            return id(operand) in self._dependent_ids
        return any(id(t) in self._dependent_ids for t in tensors_in(operand))

    def keep_random_state(self) -> None:
        """Let `repeat` draw the numbers that the operation is about to draw."""
        devices = [t.device.index for t in self.dependent[:1] if t.device.type == "cuda"]
        state = torch.get_rng_state(), [(device, torch.cuda.get_rng_state(device)) for device in devices]
        self.repeat = partial(_repeat, self.function, self.in_place, state)

    def keep_overwritten(self) -> None:
        """See to it that `value` still finds the operand that an in-place operation is about to overwrite."""
        self._found_in_history = not self.args[0]._is_view() and _keeps_its_operand(self.function)
        if not self._found_in_history:
            self._overwritten = self.args[0].detach().clone()

    def value(self, tensor: Tensor) -> Tensor:
        """The values of an operand as the operation read them, cut off from the graph."""
        if self._overwritten is not None and tensor is self.args[0]:
            return self._overwritten
        return self._hold(tensor)

    def result(self, index: int = 0) -> Tensor:
        """The values of an output, cut off from the graph."""
        return self._hold(self.outputs[index])

    def _hold(self, tensor: Tensor) -> Tensor:
        detached = tensor.detach()
        self.held.append(detached)
        return detached

    def has_run(self, outputs: Iterable[Tensor]) -> None:
        """Take note of the outputs: all the tensors in the operation's result, or the one that it overwrote."""
        outputs = list(outputs)
        if self._found_in_history:
            self._overwritten = outputs[0].grad_fn._saved_self  # type: ignore[union-attr]
        self.places = [i for i, t in enumerate(outputs) if t.requires_grad and not is_free(t)]
        self.outputs = [outputs[i] for i in self.places]

    def at_values(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments and keyword arguments with every tensor as `value` gives it."""
        return map_tensors(self.value, (self.args, self.kwargs))

    def at_zero(self) -> Any:
        """The operation's result with zeros in place of its dependent operands."""

        def zeroed(t: Tensor) -> Tensor:
            return torch.zeros_like(t) if self.depends(t) else self.value(t)

        return self.repeat(*map_tensors(zeroed, (self.args, self.kwargs)))
