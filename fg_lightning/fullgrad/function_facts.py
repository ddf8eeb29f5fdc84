"""What is known of a function of torch before it is called, worked out once: the tape asks at every call."""

from __future__ import annotations

from functools import cache
from types import BuiltinFunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType
from typing import Any, NamedTuple

from torch import Tensor, nn

from fg_lightning.fullgrad.hidden_writes import NOTED
from fg_lightning.fullgrad.operation import operation_name
from fg_lightning.fullgrad.operations import OPERATIONS


class Facts(NamedTuple):
    """What is known of a function of torch before it is called.

    Attributes:
        name: of its operation.
        is_question: whether it tells of a tensor and computes nothing.
        is_noted: whether it may give away the memory of a tensor.
        is_direct: whether it calls nothing that a mode could meet, so that it may be run past all modes. Functions in Python do,
            and so do those without a layout rule, of which backward passes are run that may be the user's.
    """

    name: str
    is_question: bool
    is_noted: bool
    is_direct: bool


@cache
def facts_of(function: Any) -> Facts:
    name = operation_name(function)
    is_question, rules = name in _QUESTIONS, OPERATIONS.get(name)
    is_native = isinstance(function, (BuiltinFunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType))
    is_direct = is_native and (is_question or (rules is not None and rules.layout is not None))
    return Facts(name, is_question, name in NOTED, is_direct)


PLAIN = frozenset({Tensor, nn.Parameter})
"""Classes of tensors that override nothing."""

_QUESTIONS = frozenset({"shape", "size", "dim", "ndim", "numel", "device", "dtype", "stride", "is_contiguous", "requires_grad"})
"""What a model asks of a tensor without computing anything."""

RANDOM = frozenset({"alpha_dropout", "feature_alpha_dropout", "scaled_dot_product_attention"})
"""Operations whose rule may run them again, on the same random numbers."""

BEFORE_RETAIN_GRAPH = {"grad": 3, "backward": 2}
"""How many arguments of torch.autograd.grad and Tensor.backward stand before retain_graph."""


class HiddenFunction(NamedTuple):
    """A custom autograd function that was run in a module, to be recorded once something uses its outputs."""

    function: Any
    inputs: tuple[Any, ...]
    outputs: list[Tensor]
    module: str
