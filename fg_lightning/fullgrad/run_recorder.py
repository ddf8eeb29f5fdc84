"""Records the operations of a run, forward and backward, and repeats them without the network's Python code.

The recorder stands below autograd and autocast, where only operations on tensors are left. A repetition calls the same operations
on other inputs and on the present weights. Tensors are told apart by the memory that they read, because autograd returns saved
tensors as new objects.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from fg_lightning.fullgrad.function_facts import PLAIN
from fg_lightning.fullgrad.model_contents import view_of_memory
from fg_lightning.fullgrad.operation import tensors_in
from fg_lightning.fullgrad.preserve_model import random_state
from fg_lightning.fullgrad.torch_internals import (
    DispatchMode,
    StorageWeakRef,
    identify_memory,
    is_operation,
    returns_nothing,
    without_autocast,
    without_function_modes,
    writes_by_schema,
    written_operands,
)

AS_STRIDED = torch.ops.aten.as_strided.default
INDEX = torch.ops.aten.index.Tensor

LITERALS = {bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
"""Types of arguments that are part of an operation, besides tensors and lists."""

READS_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
"""Torch's marks of operations that give values of tensors to Python, or whose results have shapes that depend on values."""


class CannotRecord(RuntimeError):
    """The run cannot be repeated. The text says why."""


@dataclass(frozen=True, slots=True)
class _Memory:
    """The memory of a tensor.

    Attributes:
        reference: keeps the address of the memory's record from being used again, but not the memory.
        base: the first tensor that read it.
        dtype: type of the base.
        outlives: whether the tensor existed before the run, or is a constant.
    """

    reference: StorageWeakRef
    base: fx.Node
    dtype: torch.dtype
    outlives: bool


class RunRecorder(DispatchMode):
    """Records the operations inside it.

    Args:
        inputs: tensors that are given anew to each repetition.

    Attributes:
        refusal: why the run cannot be repeated. Empty if it can be.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.refusal = ""
        self._graph = fx.Graph()
        self._nodes: dict[Any, fx.Node] = {}  # by `_place`
        self._memories: dict[int, _Memory] = {}
        self._outside: list[Tensor] = []
        self._is_random = False
        for number, tensor in enumerate(inputs):
            self._last_argument = self._graph.placeholder(f"input_{number}")
            self._enter(tensor, self._last_argument, outlives=True)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        node = self._attempt(self._call, function, args, kwargs)
        result = function(*args, **kwargs)
        self._attempt(self._enter_results, node, result)
        return result

    def _attempt(self, step: Callable[..., fx.Node | None], *args: Any) -> fx.Node | None:
        if not self.refusal:
            try:
                return step(*args)
            except CannotRecord as reason:
                self.refusal = str(reason)
        return None

    def _call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node | None:
        """The node of a call; None if it only changes how a tensor reads its memory, which `_find` sees afterwards.

        Raises:
            CannotRecord: if it reads values, writes to a tensor that outlives the run, or is no operation on plain tensors.
        """
        if not is_operation(function):
            raise CannotRecord(f"{function} is not one of torch's operations on tensors")
        tags = function.tags
        if any(tag in tags for tag in READS_VALUES) and (function is not INDEX or _has_mask(args)):
            raise CannotRecord(f"{function} reads values of tensors")
        self._is_random |= torch.Tag.nondeterministic_seeded in tags
        found_args, found_kwargs = map_aggregate((args, kwargs), self._find_or_keep)
        written = written_operands(function, args, kwargs) if writes_by_schema(function) else []
        if any(self._memories[_memory(tensor)].outlives for tensor in written):
            raise CannotRecord(f"{function} writes to a tensor that the run did not make")
        return None if torch.Tag.inplace_view in tags else self._graph.call_function(function, found_args, found_kwargs)

    def _find_or_keep(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return self._find(argument)
        if type(argument) not in LITERALS:
            raise CannotRecord(f"an operation has an argument of type {type(argument).__name__}")
        return argument

    def _find(self, tensor: Tensor) -> fx.Node:
        """The node of a tensor. A tensor that the run did not make becomes an argument of the graph."""
        node = self._nodes.get(_place(tensor))
        if node is not None:
            return node
        memory = self._memories.get(_memory(tensor))
        if memory is None:
            with self._graph.inserting_after(self._last_argument):
                self._last_argument = self._graph.placeholder(f"outside_{len(self._outside)}")
            self._outside.append(tensor.detach())
            return self._enter(tensor, self._last_argument, outlives=True)
        is_of_input = memory.base.name.startswith("input_")  # whose memory is another one at each repetition
        if is_of_input or tensor.dtype is not memory.dtype or tensor.is_conj() or tensor.is_neg():
            raise CannotRecord("a tensor reads the memory of another one, but no operation of torch made it")
        view = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
        return self._enter(tensor, self._graph.call_function(AS_STRIDED, (memory.base, *view)))

    def _enter_results(self, node: fx.Node | None, result: Any) -> None:
        """Gives the results of a call their nodes. A call that only returned what is known, such as `detach`, leaves the graph."""
        if node is None or returns_nothing(node.target):
            return
        is_new = False
        for number, item in enumerate(result) if isinstance(result, (tuple, list)) else [(None, result)]:
            if isinstance(item, Tensor) and _place(item) not in self._nodes:
                is_new = True
                self._enter(item, node if number is None else self._graph.call_function(operator.getitem, (node, number)))
        if not is_new and not writes_by_schema(node.target):
            self._graph.erase_node(node)

    def _enter(self, tensor: Tensor, node: fx.Node, *, outlives: bool = False) -> fx.Node:
        self._nodes[_place(tensor)] = node
        if (memory := identify_memory(tensor)) not in self._memories:
            self._memories[memory] = _Memory(StorageWeakRef(tensor.untyped_storage()), node, tensor.dtype, outlives)
        return node

    def finish(self, results: Sequence[Tensor]) -> Recording:
        """The recording of a run with these results.

        Raises:
            CannotRecord: if the run cannot be repeated.
        """
        if self.refusal:
            raise CannotRecord(self.refusal)
        self._graph.output(tuple(map(self._find, results)))
        self._graph.eliminate_dead_code(lambda node: node.op != "call_function" or _has_effects(node.target))
        return Recording(self._graph, self._outside, is_random=self._is_random)


def _has_effects(target: Any) -> bool:
    """Whether a call matters even if its results are not used: it writes, or it returns nothing and may raise an error."""
    return target is not operator.getitem and (writes_by_schema(target) or returns_nothing(target))


def _memory(tensor: Tensor) -> int:
    """The identity of a tensor's memory.

    Raises:
        CannotRecord: if the tensor has no memory of its own or defines its own operations.
    """
    if type(tensor) not in PLAIN or tensor.layout is not torch.strided:
        raise CannotRecord(f"a tensor is a {type(tensor).__name__} of layout {tensor.layout}")
    return identify_memory(tensor)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """The memory of a tensor, and how the tensor reads it."""
    return _memory(tensor), *view_of_memory(tensor)


def _has_mask(args: tuple[Any, ...]) -> bool:
    return any(index.dtype in (torch.bool, torch.uint8) for index in tensors_in(args[1]))


class Recording:
    """The operations of a run.

    Args:
        graph: the operations. Its arguments are the inputs and then the tensors from outside.
        outside: tensors that the run read and did not make: the model's, which hold their present values, and constants.
        is_random: whether an operation may draw random numbers.
    """

    def __init__(self, graph: fx.Graph, outside: list[Tensor], *, is_random: bool) -> None:
        self._graph = graph
        self._outside = outside
        self.is_random = is_random

    @cached_property
    def _run(self) -> Callable[..., tuple[Tensor, ...]]:
        """The operations as a function. `fx.GraphModule` would keep its source for ever."""
        code = self._graph.python_code("self")
        scope = dict(code.globals)
        exec(code.src, scope)
        return partial(scope["forward"], None)

    def equals(self, other: Recording) -> bool:
        """Whether another run had the same operations, and the same constants. The inputs may have had other values."""
        return (
            str(self._graph) == str(other._graph)
            and len(self._outside) == len(other._outside)
            and all(map(_are_same, self._outside, other._outside))
        )

    def repeat(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The results of the run for other inputs of the same shapes, memory layouts, types and devices."""
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            without_autocast(),
            without_function_modes(),
            random_state({t.device for t in (*inputs, *self._outside)}) if self.is_random else nullcontext(),
        ):
            return self._run(*inputs, *self._outside)


def _are_same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)
