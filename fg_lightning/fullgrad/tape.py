"""Meets every operation of a forward pass, follows the samples and places into its output, and lets its biases wait there.

The model runs on detached parameters (see record.py), so that `requires_grad` says exactly what depends on the input. A
`TorchFunctionMode` sees every call, whether it comes from a module, from torch.nn.functional or from an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from threading import get_ident
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from fg_lightning.fullgrad.bias_hooks import BiasHooks, Visitor, layout_of, name_operation
from fg_lightning.fullgrad.hidden_writes import Aliases, storage_of
from fg_lightning.fullgrad.layout import Layout
from fg_lightning.fullgrad.linearization import linearize
from fg_lightning.fullgrad.operation import Operation, map_tensors, operation_name, tensors_in, works_in_place
from fg_lightning.fullgrad.operations.table import RULES, base_layout, follow
from fg_lightning.fullgrad.torch_internals import Hidden, opened, run_custom_function, shown


class Tape(TorchFunctionMode):
    """Meets every torch call inside it and hooks the outputs that have a bias.

    Attributes:
        bias_hooks: where the biases wait for their gradients.
        fallback_ops: operations whose bias came from the general fallback.
    """

    def __init__(
        self, images: Tensor, visitor: Visitor, modules: dict[int, str], readings: Mapping[str, Callable[..., Any]] | None = None
    ) -> None:
        super().__init__()
        self.n = images.shape[0]
        self.fallback_ops: list[str] = []
        self.bias_hooks = BiasHooks(visitor, self.n)
        self._aliases = Aliases(lambda text, tensor: self.bias_hooks.miss(self._placed(text), tensor))
        self._wants_gradients = True  # unless the forward says otherwise
        self._readings = readings or {}
        self._names = modules
        self._running: list[str] = [""]
        self._thread = get_ident()  # hooks and patches are met by all threads
        self._opening: set[FunctionType] = set()
        self._mixed: dict[int, Tensor] = {}  # overwritten so that the samples in it cannot be told apart, by its storage
        self._mark(images, Layout.of_images(images))

    @property
    def missing_ops(self) -> list[str]:
        """Operations on the way to the output whose bias could not be computed; known after the backward pass."""
        return self.bias_hooks.missing_ops

    def mixed_on_the_way_to(self, output: Tensor) -> str | None:
        """The first operation behind which the samples of an output [N] could not be told apart, None if they always could.

        What else the model computes may mix them.
        """
        self._aliases.look_again()
        if self.n == 1:
            return None
        layout = self._layout_of(output)
        if layout is None:
            return _mixed_by(output) or self._placed("an operation")
        return None if layout.is_in_order else self._placed("an operation that changes the order of the samples")

    # --- which module is running

    @contextmanager
    def following_modules(self) -> Iterator[None]:
        """Know by hooks on all modules which of the model's is running; none of them is on the model."""

        def enter(module: nn.Module, args: Any) -> None:
            if self._is_own_thread():
                self._running.append(self._names.get(id(module), self._running[-1]))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if self._is_own_thread():
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
            (self._wants_gradients,) = args
            return None  # a backbone frozen by torch.no_grad() counts like any other
        if operation_name(function) in _QUESTIONS:
            return function(*args, **kwargs)
        op = Operation(function, args, kwargs)
        written = self._aliases.about_to_write(op)
        if op.in_place:
            self.bias_hooks.secure(op.args[0])
        result = self._run(op) if op.dependent else self._run_on_constants(op)
        self._aliases.note(op)
        if written:
            self._aliases.has_written(op, written)
        return result

    def _run_on_constants(self, op: Operation) -> Any:
        """Run what does not depend on the input, or what the forward does to a leaf that autograd is not to know of."""
        if not self._wants_gradients and _overwrites_a_free_leaf(op):
            with torch.no_grad():
                return op.function(*op.args, **op.kwargs)
        result = op.function(*op.args, **op.kwargs)
        _notice_free(result)
        return result

    def _run(self, op: Operation) -> Any:
        function = op.function
        if op.name == "data" and function.__name__ == "__set__":
            result = function(*op.args, **op.kwargs)
            if op.depends(op.args[0]):
                self._aliases.swapped(op.args[0])
            return result
        if not self._wants_gradients and _overwrites_a_free_leaf(op):
            return self._run_on_constants(op)
        if isinstance(function, FunctionType) and function not in self._opening:
            self._opening.add(function)
            if op.name == "register_hook" and len(op.args) == 2:
                op.args = (
                    op.args[0],
                    self.bias_hooks.watch_gradient_hook(op.args[1], self._placed("a gradient hook (register_hook)")),
                )
            if op.name in ("grad", "backward") and len(op.args) <= _BEFORE_RETAIN_GRAPH[op.name]:
                op.kwargs = op.kwargs | {"retain_graph": True}  # what the forward is done with, the backward pass goes through
            try:
                with self:
                    return opened(function)(*op.args, **op.kwargs)
            finally:
                self._opening.discard(function)
        if op.name in self._readings:
            with self:
                result = self._readings[op.name](*op.args, **op.kwargs)
                if result is not NotImplemented:
                    return op.args[0].copy_(result) if op.in_place else result
        return self._record(op)

    def meeting_what_torch_hides(self) -> AbstractContextManager[None]:
        """Meet custom autograd functions, vmap and torch.func.grad as operations of their own, and what is in checkpoints."""
        return shown(self._is_own_thread, self._meet, self._forward_of)

    def _is_own_thread(self) -> bool:
        return get_ident() == self._thread

    def _is_watching(self) -> bool:
        """Whether calls here and now are met: not in another thread, nor inside an operation that is met as a whole."""
        return _get_current_function_mode() is self

    def _forward_of(self, cls: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
        return partial(self._run_custom_function, cls, forward) if self._is_watching() else forward

    def _run_custom_function(self, cls: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return run_custom_function(cls, forward, args, kwargs, self._running[-1], self._uncover)

    def _uncover(self, hidden: Hidden) -> None:
        """Record a custom function, now that its outputs know where they come from."""
        op = Operation(hidden.function.apply, hidden.inputs, {}, hidden.function.__name__)
        op.is_custom = True
        self._running.append(hidden.module)
        for output in hidden.outputs:
            del output._fg_hidden  # type: ignore[attr-defined]
            if hasattr(output, "_fg_layout"):  # an input, overwritten: the hooks of what it was stay with that one's history
                output._backward_hooks = None
        for operand in op.dependent:
            self._recognise(operand, op)
        self._add(op, hidden.outputs)
        self._running.pop()

    def _meet(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
        if not self._is_watching():
            return function(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            op = Operation(function, args, kwargs, name)
            return self._record(op) if op.dependent else function(*op.args, **op.kwargs)

    def _record(self, op: Operation) -> Any:
        """Run an operation and hook its outputs."""
        rule = RULES.get(op.name, linearize)
        if op.in_place and getattr(rule, "reads_overwritten", _never)(op):
            op.keep_overwritten()
        if rule is linearize or op.name in _RANDOM:
            op.keep_random_state()
        for operand in op.dependent:
            self._recognise(operand, op)
        result = op.function(*op.args, **op.kwargs)
        if rule is linearize and not op.in_place and len(tensors_in(result)) > 1:
            result = map_tensors(_apart, result)
        self._add(op, [op.args[0]] if op.in_place else tensors_in(result))
        return result

    def _recognise(self, operand: Tensor, op: Operation) -> None:
        if hasattr(operand, "_fg_hidden"):
            self._uncover(operand._fg_hidden)
        elif not hasattr(operand, "_fg_layout"):
            made_by = "a view" if operand.grad_fn is None else operand.grad_fn.name()
            hidden = self._placed(f"{made_by}, which torch did not show, before {op.name}")
            self._mark(operand, None, hidden)
            self.bias_hooks.miss(hidden, operand)

    def _add(self, op: Operation, outputs: Iterable[Tensor]) -> None:
        """Follow the samples and places into the outputs of a call that was run, and hook those that have a bias."""
        if op.in_place:
            op.args[0].__dict__.pop("_fg_free", None)  # something that depends on the input was written to it
        op.has_run(outputs)
        if op.in_place:
            self._aliases.has_changed(op.args[0])
        mixed_by = next((_mixed_by(t) for t in op.dependent if self._layout_of(t) is None), "") or self._placed(op.name)
        for index, output in enumerate(op.outputs):
            layout = follow(op, self._layout_of, index, self.n)
            self._mark(output, layout, mixed_by)
            if op.in_place:
                self._mark_base(output, layout, mixed_by, op.wrote_into_constant)
        if all(layout_of(output) is None for output in op.outputs):
            return  # nothing of it can count
        try:
            biases = RULES.get(op.name, linearize)(op)
        except Exception:  # whatever a rule or a second run of the operation stumbles over: the operation is named
            for output in op.outputs:
                self.bias_hooks.miss(self._placed(op.name), output)
            return
        if op.linearised:
            self.fallback_ops.append(self._placed(op.name))
        for bias in biases:
            self.bias_hooks.wait(op, bias, self._running[-1])

    def _layout_of(self, tensor: Tensor) -> Layout | None:
        if self._mixed and storage_of(tensor) in self._mixed:
            tensor._fg_mixed_by = _mixed_by(self._mixed[storage_of(tensor)])  # type: ignore[attr-defined]
            return None
        return layout_of(tensor)

    def _mark(self, tensor: Tensor, layout: Layout | None, mixed_by: str = "") -> None:
        if layout is None and self.n == 1:
            layout = Layout.unknown(tensor.shape)
        tensor._fg_layout = layout  # type: ignore[attr-defined]
        if layout is None:
            tensor._fg_mixed_by = mixed_by  # type: ignore[attr-defined]

    def _mark_base(self, written: Tensor, layout: Layout | None, mixed_by: str, was_constant: bool) -> None:
        """What holds of a tensor that was written through a view, and of all that shares its memory."""
        base = written._base
        if layout is None and self.n > 1:
            self._mixed[storage_of(written)] = written  # which keeps the memory from being used for anything else
        if base is not None and was_constant and not hasattr(base, "_fg_layout"):
            self._mark(base, layout and base_layout(written, layout, base, self.n), mixed_by)
            if layout_of(base) is None:
                self._mixed[storage_of(base)] = base

    def _placed(self, operation: str) -> str:
        return name_operation(operation, self._running[-1])


def _apart(output: Tensor) -> Tensor:
    """One of several outputs as a tensor of its own, since another may be made of it, as an LSTM cell's h is of its c."""
    is_view_of_another = output._is_view() and hasattr(output._base, "_fg_layout")
    return output.clone() if output.requires_grad and not is_view_of_another else output


def _notice_free(result: Any) -> None:
    """Mark what a forward made of leaves, which requires gradients and does not depend on the input."""
    for tensor in tensors_in(result):
        if tensor.requires_grad and not tensor.is_leaf and not hasattr(tensor, "_fg_layout") and not hasattr(tensor, "_fg_hidden"):
            tensor._fg_free = True  # type: ignore[attr-defined]


def _overwrites_a_free_leaf(op: Operation) -> bool:
    """Whether a call does what autograd allows under no_grad only, such as a step of an optimiser inside the forward."""
    return works_in_place(op.function) and any(t.is_leaf and t.requires_grad for t in tensors_in(op.args[:1]))


def _mixed_by(tensor: Tensor) -> str:
    return getattr(tensor, "_fg_mixed_by", "")


def _never(op: Operation) -> bool:
    return False


_RANDOM = frozenset({"alpha_dropout", "feature_alpha_dropout", "scaled_dot_product_attention"})
"""Operations whose rule may have to run them again, on the same random numbers."""

_BEFORE_RETAIN_GRAPH = {"grad": 3, "backward": 2}
"""How many arguments of torch.autograd.grad and Tensor.backward stand before retain_graph."""

_QUESTIONS = frozenset({"shape", "size", "dim", "ndim", "numel", "device", "dtype", "stride", "is_contiguous", "requires_grad"})
"""What a model asks of a tensor without computing anything."""
