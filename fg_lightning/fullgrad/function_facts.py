"""Facts about each function of torch, computed once, because the tape needs them at every call."""

from __future__ import annotations

from functools import cache
from types import BuiltinFunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType
from typing import Any, NamedTuple

from torch import Tensor, nn

from fg_lightning.fullgrad.hidden_writes import EXPOSING, NOTED
from fg_lightning.fullgrad.operation import Operation, operation_name
from fg_lightning.fullgrad.operations import OPERATIONS


class Facts(NamedTuple):
    """Facts about a function of torch that are known before a call.

    Attributes:
        name: name of its operation.
        is_question: whether it only reads a property of a tensor.
        is_noted: whether it may expose the memory of a tensor.
        reads_values: whether it may turn values of tensors into Python's or NumPy's.
        is_direct: whether it makes no calls that a mode has to meet, so that it may bypass all modes. Functions in Python make such
            calls. So do operations without a layout rule: backward passes infer their layout and may run code of the user.
    """

    name: str
    is_question: bool
    is_noted: bool
    reads_values: bool
    is_direct: bool


@cache
def facts_of(function: Any) -> Facts:
    name = operation_name(function)
    is_question, rules = name in _QUESTIONS, OPERATIONS.get(name)
    is_native = isinstance(function, (BuiltinFunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType))
    is_direct = is_native and (is_question or (rules is not None and rules.layout is not None))
    return Facts(name, is_question, name in NOTED, name in _READS or name in EXPOSING, is_direct)


PLAIN = frozenset({Tensor, nn.Parameter})
"""Classes of tensors that override nothing."""

_QUESTIONS = frozenset({"shape", "size", "dim", "ndim", "numel", "device", "dtype", "stride", "is_contiguous", "requires_grad"})
"""Functions that read a property of a tensor and compute nothing."""

_READS = frozenset("item tolist bool int float index is_nonzero equal allclose repr str format tensor_split".split())
"""Functions that turn values of tensors into Python's own numbers."""


def makes_constant(op: Operation, num_results: int) -> bool:
    """Whether an operation turns values that depend on the input into a constant, such as a mask, an index or a detached copy.

    Autograd does not follow such a constant, so a model may mix samples through it although no gradient shows that.

    Args:
        op: an operation that was run.
        num_results: number of tensors in its result.
    """
    if num_results == 0:
        return op.name in _READS
    is_of_shape_alone = op.name.endswith("_like") or op.name.startswith("new_")
    return len(op.outputs) < num_results and not is_of_shape_alone


RANDOM = frozenset({"alpha_dropout", "feature_alpha_dropout", "scaled_dot_product_attention"})
"""Operations that a rule may run again, with the same random numbers."""

BEFORE_RETAIN_GRAPH = {"grad": 3, "backward": 2}
"""Number of arguments before `retain_graph` in torch.autograd.grad and Tensor.backward."""


class HiddenFunction(NamedTuple):
    """A custom autograd function that a module ran. The tape records it when an operation uses its outputs."""

    function: Any
    inputs: tuple[Any, ...]
    outputs: list[Tensor]
    module: str
