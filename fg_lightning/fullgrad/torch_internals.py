"""Every private name of torch that the package reads or patches, each with its reason. They were tested with torch 2.14.1."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, partial
from threading import get_ident
from types import FunctionType
from typing import Any
from unittest.mock import patch

import torch
import torch._functorch.apis as functorch_apis
import torch._functorch.eager_transforms as eager_transforms
import torch.nn.modules.module as torch_modules
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionMeta
from torch.multiprocessing.reductions import StorageWeakRef as StorageWeakRef
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _pop_mode_temporarily
from torch.utils import _python_dispatch as dispatch
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import CheckpointFunction

from fg_lightning.fullgrad.operation import map_tensors, tensors_in

# --- function modes

SET_GRAD_ENABLED = torch._C._set_grad_enabled
"""The function that torch.no_grad, torch.enable_grad and torch.set_grad_enabled call. A function mode meets it."""


def without_function_modes() -> AbstractContextManager[None]:
    """A context whose calls no function mode meets. Torch has no public name for it that covers modes."""
    return torch._C.DisableTorchFunction()


def is_current_mode(mode: TorchFunctionMode) -> bool:
    """Whether a mode meets the present calls. It does not in another thread, nor while it handles a call."""
    return _get_current_function_mode() is mode


def count_function_modes() -> int:
    """Number of function modes that are active, such as that of torch.set_default_device."""
    return torch._C._len_torch_function_stack()


def is_watched() -> bool:
    """Whether a mode or a global hook of modules, such as a profiler's, meets the calls of this thread."""
    hooks = (torch_modules._global_forward_pre_hooks, torch_modules._global_forward_hooks, torch_modules._global_backward_hooks)
    return bool(torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack() or any(hooks))


def without_autocast() -> AbstractContextManager[None]:
    """A context without autocast on any device. `torch.autocast` turns it off for one kind of device and takes longer."""
    return torch._C._DisableAutocast()


def unrecorded() -> AbstractContextManager[None]:
    """A context whose operations no dispatch mode meets, such as that of `RunRecorder`."""
    return dispatch._disable_current_modes()


# --- tensors


def base_of(tensor: Tensor) -> Tensor | None:
    """The tensor of which this one is a view. A write to one changes both. The base's gradient includes the uses of both."""
    return tensor._base


def is_view(tensor: Tensor) -> bool:
    """Whether autograd treats a tensor as a view."""
    return tensor._is_view()


def storage_of(tensor: Tensor) -> int:
    """The address of a tensor's memory. No mode meets this call, because it would treat it as the model's."""
    with without_function_modes():
        try:
            return tensor.untyped_storage().data_ptr()
        except RuntimeError:  # a sparse tensor has several
            return id(tensor)


def add_gradient_hook(tensor: Tensor, hook: Callable[[Tensor], Tensor | None]) -> None:
    """Does the same as `tensor.register_hook(hook)` without a handle to remove the hook, which takes most of its time."""
    hooks: dict[Any, Callable[[Tensor], Tensor | None]] | None = tensor._backward_hooks
    if hooks is None:
        tensor._backward_hooks = hooks = OrderedDict()
        if tensor.grad_fn is not None:
            tensor.grad_fn._register_hook_dict(tensor)
    hooks[object()] = hook


def drop_gradient_hooks(tensor: Tensor) -> None:
    """Removes the hooks from a tensor that got a new history. Its earlier hooks stay with its earlier history."""
    tensor._backward_hooks = None


@cache
def saves_operand(function: Callable[..., Any]) -> bool:
    """Whether autograd saves a copy of the operand of an in-place function, as for SiLU. Then no second copy is needed."""
    operand = torch.full((1,), 0.5).requires_grad_()
    try:
        saved = getattr(function(operand.clone()).grad_fn, "_saved_self", None)
    except (TypeError, RuntimeError):  # it needs more arguments
        return False
    return isinstance(saved, Tensor) and torch.equal(saved, operand)


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor stands for another one inside vmap or torch.func.grad, where it can have no hooks."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def saved_operand(output: Tensor) -> Tensor:
    """The copy that autograd saved of an operand, which an in-place function then overwrote."""
    return output.grad_fn._saved_self  # type: ignore[union-attr]


# --- modules

MODULE_TABLES = ("_modules", "_buffers", "_parameters")
"""The dictionaries of a module's registered items. Its own methods may be overridden, or hide an item."""


def tensor_tables(module: nn.Module) -> tuple[Any, Any]:
    """The dictionaries of a module's own parameters and buffers. A TorchScript module has other objects in their place."""
    return module._parameters, module._buffers


def child_table(module: nn.Module) -> Any:
    """The dictionary of a module's own children."""
    return module._modules


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """The items of `named_modules()`, computed in one loop, which is faster than a nested generator for each level."""
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


def has_hooks(model: nn.Module) -> bool:
    """Whether a forward or backward pass runs hooks, other than those of torch that compute a weight (`weight_norm`)."""
    return any(
        not type(hook).__module__.startswith("torch.nn.utils")
        for module in modules_by_name(model).values()
        for hooks in (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks, module._backward_pre_hooks)
        for hook in hooks.values()
    )


def unwrap_model(model: nn.Module) -> nn.Module:
    """The network inside a wrapper that runs it on several devices, compiles it, or converts its inputs, as Fabric's does."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrap_model(model.module)
    for name in ("_orig_mod", "_forward_module"):  # of torch.compile, of Fabric.setup
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return unwrap_model(inner)
    return model


def share_as_parameter(values: Tensor) -> nn.Parameter:
    """A parameter without gradients on the memory of other values. `nn.Parameter(values, False)` calls this after its checks."""
    return Tensor._make_subclass(nn.Parameter, values, False)  # type: ignore[return-value]


def without_parametrization_cache() -> AbstractContextManager[Any]:
    """Keeps weights that a parametrization computes from constants out of the cache of `parametrize.cached`."""
    return patch.object(parametrize, "_cache_enabled", 0)


@contextmanager
def without_autocast_inside() -> Iterator[None]:
    """Keeps autocast off that code in this thread enters itself, as accelerate lets a forward do."""
    enter_autocast, thread = torch.autocast.__enter__, get_ident()

    def enter(context: torch.autocast) -> Any:
        entered = enter_autocast(context)
        if get_ident() == thread:
            torch.set_autocast_enabled(context.device, False)  # the context puts back what was before it
        return entered

    with patch.object(torch.autocast, "__enter__", enter):
        yield


def has_compiled() -> bool:
    """Whether torch may have compiled something. The compiler itself is not imported for this, because that takes seconds."""
    return "torch._dynamo" in sys.modules


@cache
def writes_by_schema(function: Callable[..., Any]) -> bool:
    """Whether a function of torch.ops, or an in-place operation on lists (`_foreach_...`), writes to an operand."""
    overloads = [getattr(function, name) for name in function.overloads()] if hasattr(function, "overloads") else [function]
    is_mutable = any(getattr(getattr(overload, "_schema", None), "is_mutable", False) for overload in overloads)
    return is_mutable or getattr(function, "__name__", "").startswith("_foreach")


# --- operations below autograd


DispatchMode = dispatch.TorchDispatchMode
"""A mode that meets the operations below autograd and autocast."""


def is_operation(function: Any) -> bool:
    """Whether a dispatch mode meets a plain operation, and not a function of operations."""
    return isinstance(function, torch._ops.OpOverload)


def written_operands(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes to."""
    written = []
    for number, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(args[number] if number < len(args) else kwargs.get(argument.name))
    return tensors_in(written)


def returns_nothing(operation: Any) -> bool:
    """Whether an operation has no results, such as a check that may raise an error."""
    return not operation._schema.returns


def identify_memory(tensor: Tensor) -> int:
    """A number of a tensor's memory. It is not used again while a `StorageWeakRef` refers to the memory."""
    return tensor.untyped_storage()._cdata


# --- what torch hides from a function mode: functions in Python, checkpoints, vmap, custom functions

Meet = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], str], Any]


@cache
def open_function(function: FunctionType) -> FunctionType:
    """A copy of a Python function of torch without its check for overrides, so that a mode meets the calls inside it instead."""

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
    """Runs the functions of torch.nn.functional without their check for overrides, so that a mode meets only the calls inside them.

    Otherwise a mode meets each function first, and then its calls. The check stays for tensors of other classes, which may override
    the function.

    Args:
        is_alone: whether the calling thread is the one that skips the checks, and no mode of the user is active.
    """

    def check(original: Callable[..., bool], *tensors: Any) -> bool:
        return not (is_alone() and all(map(_is_plain, tensors))) and original(*tensors)

    def check_all(original: Callable[..., bool], tensors: Any) -> bool:
        return not (is_alone() and all(map(_is_plain, tensors))) and original(tensors)

    names = {"has_torch_function_unary": check, "has_torch_function_variadic": check, "has_torch_function": check_all}
    with ExitStack() as stack:
        for module in (torch.nn.functional, torch.functional):
            changed: dict[str, Any] = {
                name: partial(new, vars(module)[name]) for name, new in names.items() if name in vars(module)
            }
            # One name after the other: patch.dict would empty the module for a moment, while other threads use it.
            stack.enter_context(patch.multiple(module, **changed))
        yield


def _is_plain(value: Any) -> bool:
    """Whether the class of a value cannot override functions of torch."""
    kind = type(value)
    return kind is Tensor or kind is nn.Parameter or not hasattr(kind, "__torch_function__")


@contextmanager
def show_hidden_functions(is_own_thread: Callable[[], bool], meet: Meet, wrap_forward: Callable[[Any, Any], Any]) -> Iterator[None]:
    """Reveals custom autograd functions, vmap and torch.func.grad, which no function mode meets.

    A checkpointed part runs without its checkpoint, because the tape needs the tensors that it would drop. Other threads use torch
    unchanged.

    Args:
        is_own_thread: whether the calling thread is the one that they are revealed to.
        meet: is called instead of vmap and grad, with (function, arguments, keyword arguments, name).
        wrap_forward: takes a custom function and its forward, and returns the function that is called instead.
    """

    def transform(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__.removesuffix("_impl")
        return lambda *args, **kwargs: meet(function, args, kwargs, name)

    def attribute(cls: Any, name: str) -> Any:
        value = type.__getattribute__(cls, name)
        # Autograd looks up the forward each time it applies a function, even if the user saved `apply` elsewhere.
        return wrap_forward(cls, value) if name == "forward" else value

    with ExitStack() as stack:
        stack.enter_context(without_checkpoints(is_own_thread))
        stack.enter_context(patch.object(functorch_apis, "vmap_impl", transform(vars(functorch_apis)["vmap_impl"])))
        stack.enter_context(patch.object(eager_transforms, "grad_impl", transform(eager_transforms.grad_impl)))
        stack.enter_context(patch.object(FunctionMeta, "__getattribute__", attribute))
        yield


@contextmanager
def without_checkpoints(is_own_thread: Callable[[], bool]) -> Iterator[None]:
    """Runs checkpointed parts without their checkpoints. Other threads use torch unchanged.

    Args:
        is_own_thread: whether the calling thread is the one that runs without them.
    """

    def unchecked(run: Callable[..., Any], preserve_rng_state: bool, *inputs: Any) -> Any:
        return run(*inputs) if is_own_thread() else checkpointed(run, preserve_rng_state, *inputs)

    def nothing_around(around: Callable[..., Generator[None]]) -> Callable[..., Generator[None]]:
        return lambda *args, **kwargs: _nothing_around() if is_own_thread() else around(*args, **kwargs)

    checkpointed = CheckpointFunction.apply
    with ExitStack() as stack:
        stack.enter_context(patch.object(CheckpointFunction, "apply", unchecked))
        for name in ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl"):
            if hasattr(checkpoints, name):  # depends on the version of torch
                stack.enter_context(patch.object(checkpoints, name, nothing_around(getattr(checkpoints, name))))
        yield


def _nothing_around() -> Generator[None]:
    """The context of a checkpoint that neither drops nor recomputes anything."""
    yield


def run_custom_function(
    cls: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], copy: Callable[[Tensor], Tensor]
) -> tuple[Any, tuple[Any, ...]]:
    """Runs the forward of an autograd function without the current function mode. The mode below it meets the calls.

    Args:
        cls: the autograd function.
        forward: its forward.
        args: arguments of the forward.
        kwargs: keyword arguments of the forward.
        copy: copies an operand before the function may overwrite it.

    Returns:
        The result, and the inputs with the values that they had before.
    """
    inputs = args if cls.setup_context is not Function.setup_context else args[1:]
    with without_function_modes():
        given = {id(t): (t._version, copy(t)) for t in tensors_in(inputs)}
    with _pop_mode_temporarily():
        result = forward(*args, **kwargs)
    with without_function_modes():
        marked = {id(t) for t in getattr(args[0], "dirty_tensors", None) or ()}
        dirty = marked | {id(t) for t in tensors_in(inputs) if t._version != given[id(t)][0]}
        # If the forward returns an input itself (a gradient hook, a straight-through estimator), the output must be another object.
        result = map_tensors(lambda t: t.view_as(t) if id(t) in given and id(t) not in dirty else t, result)
    return result, map_tensors(lambda t: given[id(t)][1] if id(t) in dirty else t, inputs)
