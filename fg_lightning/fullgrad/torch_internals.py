"""Every private name of torch that is read or patched, each with its reason. All of them were seen in torch 2.14.1.

Torch also has faults, in backward passes that depend on how a gradient lies in memory; `avoid_faults` works around them.

Batch norm on a CPU reads its operand and its gradient in one order. If they lie in different orders, and a dimension of size 1
hides it (one image, or tokens as [N, C, L, 1]), the result is wrong by as much as its own size. That holds for training and
evaluation, float32 and float64, and for instance norm. A contiguous gradient does not help if the operand is not contiguous.
A gradient that overlaps itself breaks `slice_scatter` and `select_scatter`, which write to it, and `gelu` refuses it. All of them
are right for a gradient that lies as the operation's output does.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, partial
from types import FunctionType
from typing import Any
from unittest.mock import patch

import torch
import torch._functorch.apis as functorch_apis
import torch._functorch.eager_transforms as eager_transforms
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionMeta
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _pop_mode_temporarily
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import CheckpointFunction

from fg_lightning.fullgrad.operation import map_tensors, operation_name, tensors_in

# --- function modes

SET_GRAD_ENABLED = torch._C._set_grad_enabled
"""What torch.no_grad, torch.enable_grad and torch.set_grad_enabled call, and a function mode meets."""


def without_function_modes() -> AbstractContextManager[None]:
    """Calls in this context are met by no function mode. Torch has no public name for it that covers modes."""
    return torch._C.DisableTorchFunction()


def is_current_mode(mode: TorchFunctionMode) -> bool:
    """Whether a mode meets the calls here and now; it does not in another thread, nor while one of its calls is run."""
    return _get_current_function_mode() is mode


def count_function_modes() -> int:
    """Number of function modes that are active, such as that of torch.set_default_device."""
    return torch._C._len_torch_function_stack()


# --- tensors


def base_of(tensor: Tensor) -> Tensor | None:
    """The tensor that another is a view of. A write through one changes both, and gradients of both uses meet in the base's."""
    return tensor._base


def is_view(tensor: Tensor) -> bool:
    """Whether autograd knows a tensor as a view."""
    return tensor._is_view()


def storage_of(tensor: Tensor) -> int:
    """The memory of a tensor, as a number. No mode meets the question, since it would take it for one of the model's."""
    with without_function_modes():
        try:
            return tensor.untyped_storage().data_ptr()
        except RuntimeError:  # a sparse tensor has several
            return id(tensor)


def add_gradient_hook(tensor: Tensor, hook: Callable[[Tensor], Tensor | None]) -> None:
    """What `tensor.register_hook(hook)` does, without a handle by which to remove the hook: that takes most of its time."""
    hooks: dict[Any, Callable[[Tensor], Tensor | None]] | None = tensor._backward_hooks
    if hooks is None:
        tensor._backward_hooks = hooks = OrderedDict()
        if tensor.grad_fn is not None:
            tensor.grad_fn._register_hook_dict(tensor)
    hooks[object()] = hook


def drop_gradient_hooks(tensor: Tensor) -> None:
    """Let a tensor that got a new history have no hooks; those that it had stay with the old one."""
    tensor._backward_hooks = None


@cache
def saves_operand(function: Callable[..., Any]) -> bool:
    """Whether autograd copies the operand of an in-place function (SiLU does), so that there is no need to do it again."""
    operand = torch.full((1,), 0.5).requires_grad_()
    try:
        saved = getattr(function(operand.clone()).grad_fn, "_saved_self", None)
    except (TypeError, RuntimeError):  # it takes more than its operand
        return False
    return isinstance(saved, Tensor) and torch.equal(saved, operand)


def saved_operand(output: Tensor) -> Tensor:
    """What autograd saved of the operand that an in-place function overwrote."""
    return output.grad_fn._saved_self  # type: ignore[union-attr]


# --- modules

MODULE_TABLES = ("_modules", "_buffers", "_parameters")
"""The dictionaries in which a module holds what is registered. Its own access to them may be overridden or hide an item."""


def tensor_tables(module: nn.Module) -> tuple[Any, Any]:
    """The dictionaries of a module's own parameters and buffers; of a TorchScript module what stands for them there."""
    return module._parameters, module._buffers


def child_table(module: nn.Module) -> Any:
    """The dictionary of a module's own children."""
    return module._modules


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """What `named_modules()` returns, in one loop instead of nested generators, one in the other for each level."""
    known: set[int] = set()
    found: dict[str, nn.Module] = {}
    ahead = [("", model)]
    while ahead:
        name, module = ahead.pop()
        if id(module) in known:
            continue
        known.add(id(module))
        found[name] = module
        if children := module._modules:
            prefix = f"{name}." if name else ""
            ahead += [(prefix + key, child) for key, child in reversed(list(children.items())) if child is not None]
    return found


def registered_tensors(model: nn.Module) -> list[Tensor]:
    """All parameters and buffers."""
    return tensors_of(modules_by_name(model).values())


def tensors_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The modules' own parameters and buffers."""
    tables = [table for module in modules for table in tensor_tables(module) if table]
    return [t for table in tables for t in table.values() if t is not None]


def unwrap_model(model: nn.Module) -> nn.Module:
    """The network in what runs it on several devices, compiles it, or, as Fabric does, converts its inputs."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrap_model(model.module)
    for name in ("_orig_mod", "_forward_module"):  # of torch.compile, of Fabric.setup
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return unwrap_model(inner)
    return model


def share_as_parameter(values: Tensor) -> nn.Parameter:
    """A parameter on the memory of other values, without gradients; what `nn.Parameter(values, False)` calls after its checks."""
    return Tensor._make_subclass(nn.Parameter, values, False)  # type: ignore[return-value]


def without_parametrization_cache() -> AbstractContextManager[Any]:
    """Weights that a parametrization makes of constants must not be found in the cache of `parametrize.cached` afterwards."""
    return patch.object(parametrize, "_cache_enabled", 0)


def has_compiled() -> bool:
    """Whether torch may have compiled something; importing its compiler in order to ask takes seconds."""
    return "torch._dynamo" in sys.modules


@cache
def writes_by_schema(function: Callable[..., Any]) -> bool:
    """Whether it is one of torch.ops, or a list's version of an in-place operation, that writes to an operand."""
    overloads = [getattr(function, name) for name in function.overloads()] if hasattr(function, "overloads") else [function]
    is_mutable = any(getattr(getattr(overload, "_schema", None), "is_mutable", False) for overload in overloads)
    return is_mutable or getattr(function, "__name__", "").startswith("_foreach")


# --- faults

FAULTY = frozenset(
    "batch_norm instance_norm native_batch_norm batch_norm_impl_index native_batch_norm_legit native_batch_norm_legit_no_training "
    "slice_scatter select_scatter gelu".split()
)
"""By name, operations whose backward pass is wrong for some gradients."""


def avoid_faults(function: Callable[..., Any], result: Any) -> None:
    """Give an operation that was run its gradients in a memory layout that its backward pass handles."""
    if operation_name(function) not in FAULTY:
        return
    for output in tensors_in(result):
        if output.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(output):
            add_gradient_hook(output, partial(_lay_out, output.shape, output.stride()))


def _lay_out(shape: torch.Size, strides: tuple[int, ...], gradient: Tensor | None) -> Tensor | None:
    """A gradient with these strides; itself if it has them, or None if there is none, as behind an output without derivative."""
    if gradient is None or gradient.stride() == strides:
        return gradient
    return torch.empty_strided(shape, strides, dtype=gradient.dtype, device=gradient.device).copy_(gradient)


# --- what torch hides from a function mode: functions in Python, checkpoints, vmap, custom functions

Meet = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], str], Any]


@cache
def open_function(function: FunctionType) -> FunctionType:
    """A function of torch in Python without its check for overrides, so that a mode meets the calls inside it instead."""

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
def open_functional(is_alone: Callable[[], bool]) -> Iterator[None]:
    """Run the functions of torch.nn.functional without their check for overrides, so that a mode meets only the calls inside them.

    A mode would meet each of them first, and then what it calls. Functions called with tensors of other classes, which may
    override them, keep their check.

    Args:
        is_alone: whether the thread that asks is the one that runs them so, and no mode of the user may want to meet them.
    """

    def check(original: Callable[..., bool], *tensors: Any) -> bool:
        return not (is_alone() and all(map(_is_plain, tensors))) and original(*tensors)

    def check_all(original: Callable[..., bool], tensors: Any) -> bool:
        return not (is_alone() and all(map(_is_plain, tensors))) and original(tensors)

    names = {"has_torch_function_unary": check, "has_torch_function_variadic": check, "has_torch_function": check_all}
    with ExitStack() as stack:
        for module in (torch.nn.functional, torch.functional):
            changed = {name: partial(new, vars(module)[name]) for name, new in names.items() if name in vars(module)}
            stack.enter_context(patch.dict(vars(module), changed))
        yield


def _is_plain(value: Any) -> bool:
    """Whether a value is none of a class that may override functions of torch."""
    kind = type(value)
    return kind is Tensor or kind is nn.Parameter or not hasattr(kind, "__torch_function__")


@contextmanager
def show_hidden_functions(is_own_thread: Callable[[], bool], meet: Meet, wrap_forward: Callable[[Any, Any], Any]) -> Iterator[None]:
    """Show custom autograd functions, vmap and torch.func.grad, which no function mode meets.

    A checkpointed part is run without its checkpoint: the tape keeps what it would save. Other threads use torch unchanged.

    Args:
        is_own_thread: whether the thread that asks is the one that is shown them.
        meet: is called instead of vmap and grad, with (function, arguments, keyword arguments, name).
        wrap_forward: given a custom function and its forward, returns what is called instead.
    """

    def transform(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__.removesuffix("_impl")
        return lambda *args, **kwargs: meet(function, args, kwargs, name)

    def attribute(cls: Any, name: str) -> Any:
        value = type.__getattribute__(cls, name)
        # Autograd looks up the forward of a function each time it applies it, wherever `apply` comes from.
        return wrap_forward(cls, value) if name == "forward" else value

    with ExitStack() as stack:
        stack.enter_context(without_checkpoints(is_own_thread))
        stack.enter_context(patch.object(functorch_apis, "vmap_impl", transform(vars(functorch_apis)["vmap_impl"])))
        stack.enter_context(patch.object(eager_transforms, "grad_impl", transform(eager_transforms.grad_impl)))
        stack.enter_context(patch.object(FunctionMeta, "__getattribute__", attribute))
        yield


@contextmanager
def without_checkpoints(is_own_thread: Callable[[], bool]) -> Iterator[None]:
    """Run a checkpointed part without its checkpoint; other threads use torch unchanged.

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


def _nothing_around() -> Generator[None]:
    """A checkpoint that neither drops nor recomputes anything around its function."""
    yield


def run_custom_function(
    cls: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], copy: Callable[[Tensor], Tensor]
) -> tuple[Any, tuple[Any, ...]]:
    """Run the forward of an autograd function without the current function mode; the mode below it meets the calls.

    Args:
        cls: the function.
        forward: its own.
        args: of the forward.
        kwargs: of the forward.
        copy: an operand as it is before the function may overwrite it.

    Returns:
        The result, and the inputs as they were.
    """
    inputs = args if cls.setup_context is not Function.setup_context else args[1:]
    with without_function_modes():
        given = {id(t): (t._version, copy(t)) for t in tensors_in(inputs)}
    with _pop_mode_temporarily():
        result = forward(*args, **kwargs)
    with without_function_modes():
        marked = {id(t) for t in getattr(args[0], "dirty_tensors", None) or ()}
        dirty = marked | {id(t) for t in tensors_in(inputs) if t._version != given[id(t)][0]}
        # An input that is returned as it is (a gradient hook, a straight-through estimator) must be told from itself.
        result = map_tensors(lambda t: t.view_as(t) if id(t) in given and id(t) not in dirty else t, result)
    return result, map_tensors(lambda t: given[id(t)][1] if id(t) in dirty else t, inputs)
