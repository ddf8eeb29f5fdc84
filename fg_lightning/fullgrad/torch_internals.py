"""Faults of torch's backward passes that depend on how a gradient lies in memory, and how they are avoided.

Batch norm on a CPU (as of torch 2.14) reads its operand and its gradient in one order. Where they lie in different orders, and a
dimension of size 1 hides it (one image, or tokens as [N, C, L, 1]), the result is wrong by as much as its own size. That holds for
training and evaluation, float32 and float64, and for instance norm. A contiguous gradient does not help if the operand is not.
A gradient that overlaps itself breaks `slice_scatter` and `select_scatter`, which write to it, and `gelu` refuses it.
All of them are right for a gradient that lies as the operation's output does.

What torch hides from a function mode, and how it is shown: its functions in Python, checkpoints, vmap, custom functions.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from types import FunctionType
from typing import Any
from unittest.mock import patch

import torch
import torch._functorch.apis as functorch_apis
import torch._functorch.eager_transforms as eager_transforms
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionMeta
from torch.overrides import _pop_mode_temporarily
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import CheckpointFunction

from fg_lightning.fullgrad.operation import map_tensors, operation_name, tensors_in

FAULTY = frozenset(
    "batch_norm instance_norm native_batch_norm batch_norm_impl_index native_batch_norm_legit native_batch_norm_legit_no_training "
    "slice_scatter select_scatter gelu".split()
)
"""By name, operations whose backward pass is wrong for some gradients."""


def avoid_faults(function: Callable[..., Any], result: Any) -> None:
    """See to it that an operation that was run gets its gradients as its backward pass can take them."""
    if operation_name(function) not in FAULTY:
        return
    for output in tensors_in(result):
        if output.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(output):
            output.register_hook(partial(_laid_out, output.shape, output.stride()))


def _laid_out(shape: torch.Size, strides: tuple[int, ...], gradient: Tensor | None) -> Tensor | None:
    """A gradient with these strides; itself if it has them, or if none comes, as behind what cannot be differentiated."""
    if gradient is None or gradient.stride() == strides:
        return gradient
    return torch.empty_strided(shape, strides, dtype=gradient.dtype, device=gradient.device).copy_(gradient)


Meet = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], str], Any]


@dataclass(frozen=True, slots=True)
class Hidden:
    """A custom autograd function that was run, to be recorded once something uses its outputs."""

    function: Any
    inputs: tuple[Any, ...]
    outputs: list[Tensor]
    module: str


@cache
def opened(function: FunctionType) -> FunctionType:
    """A function of torch written in Python with its check for overrides taken out, so that the calls inside it are met instead."""

    def no_override(*_: Any) -> bool:
        return False

    scope = dict(function.__globals__)
    for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
        if name in scope:
            scope[name] = no_override
    body = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


@contextmanager
def shown(is_own_thread: Callable[[], bool], meet: Meet, forward_of: Callable[[Any, Any], Any]) -> Iterator[None]:
    """Shows custom autograd functions, vmap and torch.func.grad, which no function mode sees, as operations of their own.

    A checkpointed part is run as if it were not: what it would save is what the tape keeps. Other threads get torch as it is.

    Args:
        is_own_thread: whether the thread that asks is the one that is shown them.
        meet: what is called instead of vmap and grad, with (function, arguments, keyword arguments, name).
        forward_of: given a custom function and its forward, what is called instead of that.
    """

    def transform(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__.removesuffix("_impl")
        return lambda *args, **kwargs: meet(function, args, kwargs, name)

    def attribute(cls: Any, name: str) -> Any:
        value = type.__getattribute__(cls, name)
        # Autograd looks up the forward of a function whenever it applies it, however `apply` was come by.
        return forward_of(cls, value) if name == "forward" else value

    with ExitStack() as stack:
        stack.enter_context(without_checkpoints(is_own_thread))
        stack.enter_context(patch.object(functorch_apis, "vmap_impl", transform(vars(functorch_apis)["vmap_impl"])))
        stack.enter_context(patch.object(eager_transforms, "grad_impl", transform(eager_transforms.grad_impl)))
        stack.enter_context(patch.object(FunctionMeta, "__getattribute__", attribute))
        yield


@contextmanager
def without_checkpoints(is_own_thread: Callable[[], bool]) -> Iterator[None]:
    """Runs a checkpointed part as if it were not; other threads get torch as it is.

    Args:
        is_own_thread: whether the thread that asks is the one that runs without.
    """

    def unchecked(run: Callable[..., Any], preserve_rng_state: bool, *inputs: Any) -> Any:
        return run(*inputs) if is_own_thread() else checkpointed(run, preserve_rng_state, *inputs)

    def nothing_around(around: Callable[..., Generator[None]]) -> Callable[..., Generator[None]]:
        return lambda *args, **kwargs: _nothing_around() if is_own_thread() else around(*args, **kwargs)

    checkpointed = CheckpointFunction.apply
    with ExitStack() as stack:
        stack.enter_context(patch.object(CheckpointFunction, "apply", unchecked))
        for name in ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl"):
            if hasattr(checkpoints, name):  # it depends on torch's version
                stack.enter_context(patch.object(checkpoints, name, nothing_around(getattr(checkpoints, name))))
        yield


def run_custom_function(
    cls: Any,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    module: str,
    uncover: Callable[[Hidden], None],
) -> Any:
    """The forward of an autograd function; its outputs get their history after it, so that their biases must wait.

    Args:
        cls: the function.
        forward: its own.
        args: of the forward.
        kwargs: of the forward.
        module: in which it runs.
        uncover: records another custom function whose outputs are used here.
    """
    inputs = args if cls.setup_context is not Function.setup_context else args[1:]
    with torch._C.DisableTorchFunction():
        for operand in tensors_in(inputs):
            if hasattr(operand, "_fg_hidden"):
                uncover(operand._fg_hidden)  # before this function may overwrite it
        given = {id(t): (t._version, _copied(t)) for t in tensors_in(inputs)}
    with _pop_mode_temporarily():  # the tape's; the mode below it sees what is written to the model's parameters
        result = forward(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        marked = {id(t) for t in getattr(args[0], "dirty_tensors", None) or ()}
        dirty = marked | {id(t) for t in tensors_in(inputs) if t._version != given[id(t)][0]}
        # An input that is returned as it is (a gradient hook, a straight-through estimator) must be told from itself.
        result = map_tensors(lambda t: t.view_as(t) if id(t) in given and id(t) not in dirty else t, result)
    inputs = map_tensors(lambda t: given[id(t)][1] if id(t) in dirty else t, inputs)
    hidden = Hidden(cls, inputs, tensors_in(result), module)
    for output in hidden.outputs:
        output._fg_hidden = hidden  # type: ignore[attr-defined]
    return result


def _copied(tensor: Tensor) -> Tensor:
    """What a custom function is given, as it was before the function worked in place."""
    if not hasattr(tensor, "_fg_layout"):
        return tensor
    with torch.enable_grad():
        copied = tensor.clone()
    copied._fg_layout = tensor._fg_layout  # type: ignore[attr-defined]
    return copied


def _nothing_around() -> Generator[None]:
    """A checkpoint that neither drops nor recomputes anything around its function."""
    yield
