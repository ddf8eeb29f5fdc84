"""Meets every operation of a forward pass and hooks its output, so that each bias and its gradient reach a visitor.

The model runs on detached parameters (see record.py), so that `requires_grad` says exactly what depends on the input. A
`TorchFunctionMode` sees every call, whether it comes from a module, from torch.nn.functional or from an operator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from threading import get_ident
from types import FunctionType
from typing import Any, Union
from unittest.mock import patch

import torch
import torch._functorch.apis as functorch_apis
import torch._functorch.eager_transforms as eager_transforms
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionMeta
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import CheckpointFunction

from fg_lightning.fullgrad.biases import RULES
from fg_lightning.fullgrad.call import Call, map_tensors, operation_name, tensors_in
from fg_lightning.fullgrad.layout import Layout
from fg_lightning.fullgrad.linearisation import Bias, Kind, NotDifferentiable, Pointwise, linearise
from fg_lightning.fullgrad.movement import follow


@dataclass(frozen=True, slots=True)
class Term:
    """Which bias it is: the module in whose forward the operation ran (qualified name), the operation, and how its output lies."""

    module: str
    operation: str
    kind: Kind
    layout: Layout


Visitor = Callable[[Term, Union[Tensor, Pointwise], Tensor], None]
"""Called with (term, bias, gradient) during the backward pass; the bias is broadcastable to the gradient, the output's shape."""


class _Deferred:
    """A bias that is computed when its gradient comes, or before one of the values it is computed from is overwritten."""

    def __init__(self, value: Tensor | Pointwise | Callable[[], Tensor]) -> None:
        self._value = value

    def secure(self) -> None:
        """Have the bias before what it is computed from, or is itself a view of, is overwritten."""
        self._value = self._value.clone() if isinstance(self._value, Tensor) else self._value()

    def take(self) -> Tensor | Pointwise:
        """The bias, let go of here: a gradient comes once."""
        value, self._value = self._value, _TAKEN
        return value if isinstance(value, (Tensor, Pointwise)) else value()


_TAKEN = torch.empty(0)


@dataclass(frozen=True, slots=True)
class _Hidden:
    """A custom autograd function that was run, to be recorded once something uses its outputs."""

    function: Any
    inputs: tuple[Any, ...]
    outputs: list[Tensor]
    module: str


@cache
def _opened(function: FunctionType) -> FunctionType:
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


class Tape(TorchFunctionMode):
    """Meets every torch call inside it and hooks the outputs that have a bias.

    Attributes:
        terms: the biases met, in forward order.
        unaccounted: operations whose bias could not be computed.
        linearised: operations whose bias came from the general fallback.
        mixed_by: the first operation behind which the samples could not be told apart, None if they always could.
    """

    def __init__(
        self, images: Tensor, visitor: Visitor, modules: dict[int, str], readings: Mapping[str, Callable[..., Any]] | None = None
    ) -> None:
        super().__init__()
        self.n = images.shape[0]
        self.terms: list[Term] = []
        self.unaccounted: list[str] = []
        self.linearised: list[str] = []
        self.mixed_by: str | None = None
        self._visitor = visitor
        self._readings = readings or {}
        self._names = modules
        self._running: list[str] = [""]
        self._opening: set[FunctionType] = set()
        self._readers: dict[int, list[_Deferred]] = defaultdict(list)
        self._mark(images, Layout.of_images(images))

    # --- which module is running

    @contextmanager
    def following_modules(self) -> Iterator[None]:
        """Know by hooks on all modules which of the model's is running; none of them is on the model."""

        thread = get_ident()  # the hooks are called for the modules of all threads

        def enter(module: nn.Module, args: Any) -> None:
            if get_ident() == thread:
                self._running.append(self._names.get(id(module), self._running[-1]))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if get_ident() == thread:
                self._running.pop()

        handles = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # --- meeting an operation

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch._C._set_grad_enabled:
            return None  # a backbone frozen by torch.no_grad() counts like any other
        if operation_name(function) in _QUESTIONS:
            return function(*args, **kwargs)
        call = Call(function, args, kwargs)
        if call.in_place:
            for deferred in self._readers.pop(_storage(call.args[0]), ()):
                deferred.secure()
        if not call.dependent:
            return function(*call.args, **call.kwargs)
        if isinstance(function, FunctionType) and function not in self._opening:
            self._opening.add(function)
            try:
                with self:
                    return _opened(function)(*call.args, **call.kwargs)
            finally:
                self._opening.discard(function)
        if call.name in self._readings:
            with self:
                result = self._readings[call.name](*call.args, **call.kwargs)
                if result is not NotImplemented:
                    return call.args[0].copy_(result) if call.in_place else result
        return self._record(call)

    @contextmanager
    def meeting_what_torch_hides(self) -> Iterator[None]:
        """Meet custom autograd functions, vmap and torch.func.grad, which no function mode sees, as operations of their own.

        A checkpointed part is run as if it were not: what it would save is what the tape keeps.
        """

        def unchecked(run: Callable[..., Any], _preserve_rng_state: bool, *inputs: Any) -> Any:
            return run(*inputs)

        def around(*_: Any, **__: Any) -> Iterator[None]:
            yield  # a checkpoint that neither drops nor recomputes anything around its function

        def transform(function: Callable[..., Any]) -> Callable[..., Any]:
            name = function.__name__.removesuffix("_impl")
            return lambda *args, **kwargs: self._meet(function, args, kwargs, name)

        def attribute(cls: Any, name: str) -> Any:
            value = type.__getattribute__(cls, name)
            # Autograd looks up the forward of a function whenever it applies it, however `apply` was come by.
            return partial(self._run_custom_function, cls, value) if name == "forward" and self._is_watching() else value

        with ExitStack() as stack:
            stack.enter_context(patch.object(CheckpointFunction, "apply", unchecked))
            for generator in ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl"):
                if hasattr(checkpoints, generator):  # its name depends on torch's version
                    stack.enter_context(patch.object(checkpoints, generator, around))
            stack.enter_context(patch.object(functorch_apis, "vmap_impl", transform(vars(functorch_apis)["vmap_impl"])))
            stack.enter_context(patch.object(eager_transforms, "grad_impl", transform(eager_transforms.grad_impl)))
            stack.enter_context(patch.object(FunctionMeta, "__getattribute__", attribute))
            yield

    def _is_watching(self) -> bool:
        """Whether calls here and now are met: not in another thread, nor inside an operation that is met as a whole."""
        return _get_current_function_mode() is self

    def _run_custom_function(self, cls: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The forward of an autograd function; its outputs get their history after it, so that their biases must wait."""
        with torch._C.DisableTorchFunction():
            # An input that is returned as it is (a gradient hook, a straight-through estimator) must be told from itself.
            given = {id(t) for t in tensors_in(args)}
            result = map_tensors(lambda t: t.view_as(t) if id(t) in given else t, forward(*args, **kwargs))
        inputs = args if cls.setup_context is not Function.setup_context else args[1:]
        hidden = _Hidden(cls, inputs, tensors_in(result), self._running[-1])
        for output in hidden.outputs:
            output._fg_hidden = hidden  # type: ignore[attr-defined]
        return result

    def _uncover(self, hidden: _Hidden) -> None:
        """Record a custom function, now that its outputs know where they come from."""
        call = Call(hidden.function.apply, hidden.inputs, {}, hidden.function.__name__)
        call.is_custom = True
        self._running.append(hidden.module)
        for output in hidden.outputs:
            del output._fg_hidden  # type: ignore[attr-defined]
        for operand in call.dependent:
            self._recognise(operand, call)
        self._add(call, hidden.outputs)
        self._running.pop()

    def _meet(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
        if not self._is_watching():
            return function(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            call = Call(function, args, kwargs, name)
            return self._record(call) if call.dependent else function(*call.args, **call.kwargs)

    def _record(self, call: Call) -> Any:
        """Run an operation and hook its outputs."""
        rule = RULES.get(call.name, linearise)
        if call.in_place and getattr(rule, "reads_overwritten", _never)(call):
            call.keep_overwritten()
        if rule is linearise or call.name in _RANDOM:
            call.keep_random_state()
        for operand in call.dependent:
            self._recognise(operand, call)
        result = call.function(*call.args, **call.kwargs)
        self._add(call, [call.args[0]] if call.in_place else tensors_in(result))
        return result

    def _recognise(self, operand: Tensor, call: Call) -> None:
        if hasattr(operand, "_fg_hidden"):
            self._uncover(operand._fg_hidden)
        elif not hasattr(operand, "_fg_layout"):
            made_by = "a view" if operand.grad_fn is None else operand.grad_fn.name()
            self.unaccounted.append(self._placed(f"{made_by}, which torch did not show, before {call.name}"))
            self._mark(operand, None)

    def _add(self, call: Call, outputs: Iterable[Tensor]) -> None:
        """Follow the samples and places into the outputs of a call that was run, and hook those that have a bias."""
        call.has_run(outputs)
        for index, output in enumerate(call.outputs):
            self._mark(output, follow(call, _layout_of, index, self.n), call.name)
            base = output._base
            if call.in_place and base is not None and not hasattr(base, "_fg_layout"):
                self._mark(base, None, call.name)  # a constant that was written to through a view
        if not call.outputs:
            return
        try:
            biases = RULES.get(call.name, linearise)(call)
        except NotDifferentiable:
            self.unaccounted.append(self._placed(call.name))
            return
        if call.linearised:
            self.linearised.append(self._placed(call.name))
        for bias in biases:
            self._await(call, bias)

    def _mark(self, tensor: Tensor, layout: Layout | None, operation: str = "") -> None:
        if layout is None:
            if self.n > 1 and self.mixed_by is None:
                self.mixed_by = self._placed(operation or "an operation")
            layout = Layout.unknown(tensor.shape) if self.n == 1 else None
        tensor._fg_layout = layout  # type: ignore[attr-defined]

    def _placed(self, operation: str) -> str:
        return f"{operation} in {self._running[-1] or 'the model itself'}"

    def _await(self, call: Call, bias: Bias) -> None:
        """Hook the output, so that the visitor gets the bias when the gradient comes."""
        output = call.outputs[bias.output]
        layout = _layout_of(output)
        if layout is None:
            return  # the samples are mixed already: this run counts for nothing
        deferred = _Deferred(bias.value)
        for read in (bias.value,) if isinstance(bias.value, Tensor) else call.held:
            self._readers[_storage(read)].append(deferred)
        term = Term(self._running[-1], call.name, bias.kind, layout)
        self.terms.append(term)
        # A view of a tensor that nobody else sees is hooked there: overwritten later, it would get a history of its own.
        if output._is_view() and (call.in_place or not hasattr(output._base, "_fg_layout")):
            base, places = _base_and_places(output)
            base.register_hook(lambda gradient: self._visitor(term, deferred.take(), places(gradient)))
        else:
            output.register_hook(lambda gradient: self._visitor(term, deferred.take(), gradient))

    def close(self) -> None:
        """Forget the visitor and all biases: a model that keeps a tensor of its forward keeps the hooks, which keep this.

        A visitor may lead back to the model, and Python finds no cycle that goes through autograd's graph.
        """
        self._visitor = _unheard
        self._readers.clear()


def _never(call: Call) -> bool:
    return False


def _unheard(term: Term, bias: Tensor | Pointwise, gradient: Tensor) -> None:
    """The visitor of a run that is over."""


_RANDOM = frozenset({"alpha_dropout", "feature_alpha_dropout", "scaled_dot_product_attention"})
"""Operations whose rule may have to run them again, on the same random numbers."""

_QUESTIONS = frozenset({"shape", "size", "dim", "ndim", "numel", "device", "dtype", "stride", "is_contiguous", "requires_grad"})
"""What a model asks of a tensor without computing anything."""


def _layout_of(tensor: Tensor) -> Layout | None:
    return getattr(tensor, "_fg_layout", None)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _base_and_places(view: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The tensor that a view was written through to, and how to read the view's places off the gradient at it.

    What comes after may use either of the two, and both uses meet in the base's gradient only.
    """
    base = view._base
    assert base is not None
    shape, strides, offset = view.shape, view.stride(), view.storage_offset() - base.storage_offset()
    base_shape, base_strides = base.shape, base.stride()

    def places(gradient: Tensor) -> Tensor:
        if gradient.stride() != base_strides:
            gradient = torch.empty_strided(base_shape, base_strides, dtype=gradient.dtype, device=gradient.device).copy_(gradient)
        return gradient.as_strided(shape, strides, gradient.storage_offset() + offset)

    return base, places
