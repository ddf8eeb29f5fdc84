"""Meets every operation of a forward pass, follows samples and places into its outputs, and hooks its biases there.

The model runs on detached parameters, so that `requires_grad` tells what depends on the input. A `TorchFunctionMode` sees every
call, from a module, from torch.nn.functional or from an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import get_ident
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from fg_lightning.fullgrad.bias_hooks import BiasHooks, TermVisitor, name_operation
from fg_lightning.fullgrad.function_facts import BEFORE_RETAIN_GRAPH, PLAIN, RANDOM, Facts, HiddenFunction, facts_of, makes_constant
from fg_lightning.fullgrad.hidden_writes import HiddenWrites
from fg_lightning.fullgrad.image_planes import ImagePlanes
from fg_lightning.fullgrad.layout import Layout
from fg_lightning.fullgrad.linearization import linearize
from fg_lightning.fullgrad.model_constants import ModelConstants
from fg_lightning.fullgrad.operation import Operation, map_tensors, random_state, tensors_in
from fg_lightning.fullgrad.operations import OPERATIONS, UNKNOWN, Rules
from fg_lightning.fullgrad.operations.layout_rules import output_layout
from fg_lightning.fullgrad.operations.slicing_and_joining import base_layout
from fg_lightning.fullgrad.tensor_layouts import TensorLayouts, TensorTable
from fg_lightning.fullgrad.torch_internals import (
    SET_GRAD_ENABLED,
    base_of,
    count_function_modes,
    drop_gradient_hooks,
    is_current_mode,
    is_view,
    open_function,
    open_functional,
    run_custom_function,
    saved_operand,
    saves_operand,
    show_hidden_functions,
    without_function_modes,
)


class Tape(TorchFunctionMode):
    """Meets every torch call inside it and hooks the outputs that have a bias.

    Args:
        images: the image inputs of the model, each [N, C, *S].
        visitors: receive the terms.
        modules: qualified name of each module, by its id.
        readings: functions that replace operations, by name of the operation. Default: None, for none.
        guard: the function mode below this one. It runs the operations of the model. Default: None, for no such mode.

    Attributes:
        layouts: positions of samples and places in each tensor that depends on the images.
        bias_hooks: hold the biases until their gradients come.
        fallback_ops: operations whose bias the general fallback computed.
        first_constant: the first operation that made a constant of values that depend on the images; None if none did.
        reads_values: whether the model turned values of tensors into Python's or NumPy's.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        visitors: Sequence[TermVisitor],
        modules: dict[int, str],
        readings: Mapping[str, Callable[..., Any]] | None = None,
        guard: ModelConstants | None = None,
    ) -> None:
        super().__init__()
        self.layouts = TensorLayouts(images)
        self._planes = ImagePlanes(images, self.layouts) if len(images) > 1 else None
        self.bias_hooks = BiasHooks(visitors, self.layouts, self._planes)
        self.fallback_ops: list[str] = []
        self.first_constant: str | None = None
        self.reads_values = False
        self._hidden_writes = HiddenWrites(self._report_hidden_write)
        self._wants_gradients = True  # unless the forward turns them off
        self._readings = readings or {}
        self._guard = guard
        self._skips_modes = False  # whether operations may bypass the modes below and run through the guard
        self._is_direct = False  # whether the present operation does
        self._names = modules
        self._running: list[str] = [""]
        self._thread = get_ident()  # hooks and patches apply to all threads
        self._open_functions: set[FunctionType] = set()
        self._free: TensorTable[bool] = TensorTable()
        self._hidden: dict[int, HiddenFunction] = {}  # by the id of an output, which it holds

    @property
    def missing_ops(self) -> list[str]:
        """Operations on the way to the output whose bias could not be computed. Complete after the backward pass."""
        return self.bias_hooks.missing_ops

    def find_mixing_operation(self, output: Tensor) -> str | None:
        """The first operation that mixes the samples of an output [N], or None.

        Only operations on the way to the output count. An operation mixes samples if its layout rule cannot tell them apart.
        """
        self._hidden_writes.check_memory()
        if self.layouts.num_images == 1:
            return None
        layout = self.layouts.find(output)
        if layout is None:
            return self.layouts.mixed_by(output) or self._locate("an operation")
        return None if layout.is_in_order else self._locate("an operation that changes the order of the samples")

    def close(self) -> None:
        """Releases the visitors and all records, so that they are freed without garbage collection."""
        self.bias_hooks.close()
        del self._hidden_writes

    def _report_hidden_write(self, text: str, tensor: Tensor) -> None:
        self.bias_hooks.report_missing(self._locate(text), tensor)

    def is_free(self, tensor: Tensor) -> bool:
        """Whether a tensor that requires gradients is independent of the input: a leaf, or computed from leaves."""
        return tensor.is_leaf or tensor in self._free

    @contextmanager
    def meet_operations(self) -> Iterator[None]:
        """Meets the operations of this thread, including custom autograd functions, vmap, torch.func.grad and checkpoints."""
        self._skips_modes = self._guard is not None and count_function_modes() == 1
        with (
            self._follow_modules(),
            open_functional(lambda: self._skips_modes and self._is_own_thread() and count_function_modes() <= 2),
            show_hidden_functions(self._is_own_thread, self._meet, self._wrap_forward),
            self,
        ):
            yield

    @contextmanager
    def _follow_modules(self) -> Iterator[None]:
        """Tracks which module is running, by global hooks. The model itself gets no hooks."""

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
        facts = facts_of(function)
        is_direct = facts.is_direct and self._skips_modes and facts.name not in self._readings
        if not (is_direct and PLAIN.issuperset(types)):
            return self._meet_call(function, facts, args, kwargs or {})
        # Modes cost more than most operations, so this context turns the others off.
        with without_function_modes():
            if facts.is_question:
                return function(*args, **kwargs or {})
            self._is_direct = True
            try:
                return self._meet_call(function, facts, args, kwargs or {})
            finally:
                self._is_direct = False

    def _meet_call(self, function: Any, facts: Facts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if function is SET_GRAD_ENABLED:
            (self._wants_gradients,) = args
            return None  # a backbone under torch.no_grad() counts like any other
        if facts.is_question:
            return function(*args, **kwargs)
        with without_function_modes():  # the mode below this one is for the operations of the model, not for questions of ours
            op = Operation.meet(function, args, kwargs, is_free=self.is_free)
        targets = self._hidden_writes.save_targets(op)
        if op.in_place:
            self.bias_hooks.secure(op.args[0])
        result = self._run(op) if op.dependent else self._run_on_constants(op)
        self.reads_values = self.reads_values or facts.reads_values
        if facts.is_noted:
            self._hidden_writes.note(op)
        if targets:
            self._hidden_writes.report_changes(op, targets)
        return result

    def _call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._is_direct:
            return self._guard.run(function, args, kwargs)  # type: ignore[union-attr]
        return function(*args, **kwargs)

    def _run_on_constants(self, op: Operation) -> Any:
        """Runs an operation that does not depend on the input, or that changes a leaf without autograd's knowledge."""
        if not self._wants_gradients and op.overwrites_leaf:
            with torch.no_grad():
                return self._call(op.function, op.args, op.kwargs)
        result = self._call(op.function, op.args, op.kwargs)
        with without_function_modes():
            for tensor in tensors_in(result):
                if tensor.requires_grad and not tensor.is_leaf and tensor not in self.layouts and id(tensor) not in self._hidden:
                    self._free[tensor] = True
        return result

    def _run(self, op: Operation) -> Any:
        function = op.function
        if op.name == "data" and function.__name__ == "__set__":
            result = self._call(function, op.args, op.kwargs)
            if op.depends(op.args[0]):
                self._hidden_writes.report_assignment(op.args[0])
            return result
        if not self._wants_gradients and op.overwrites_leaf:
            return self._run_on_constants(op)
        if isinstance(function, FunctionType) and function not in self._open_functions:
            return self._run_python_function(op, function)
        if op.name in self._readings:
            with self:
                result = self._readings[op.name](*op.args, **op.kwargs)
                if result is not NotImplemented:
                    return op.args[0].copy_(result) if op.in_place else result
        return self._record(op)

    def _run_python_function(self, op: Operation, function: FunctionType) -> Any:
        """Runs a function of torch that is written in Python, and meets the calls in it."""
        args, kwargs = op.args, op.kwargs
        if op.name == "register_hook" and len(args) == 2:
            hook = self.bias_hooks.watch_gradient_hook(args[1], self._locate("a gradient hook (register_hook)"))
            args = args[0], hook
        if op.name in ("grad", "backward") and len(args) <= BEFORE_RETAIN_GRAPH[op.name]:
            kwargs = kwargs | {"retain_graph": True}  # the backward pass of the explanation needs the graph as well
        self._open_functions.add(function)
        try:
            with self:
                return open_function(function)(*args, **kwargs)
        finally:
            self._open_functions.discard(function)

    def _is_own_thread(self) -> bool:
        return get_ident() == self._thread

    def _meet(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
        if not is_current_mode(self):  # in another thread, or inside an operation that is met as a whole
            return function(*args, **kwargs)
        with without_function_modes():
            op = Operation.meet(function, args, kwargs, is_free=self.is_free, name=name)
            return self._record(op) if op.dependent else function(*op.args, **op.kwargs)

    def _record(self, op: Operation) -> Any:
        """Runs an operation and hooks its outputs."""
        rules = OPERATIONS.get(op.name, UNKNOWN)
        reads = getattr(rules.bias, "reads_overwritten", None)
        reads_overwritten = op.in_place and reads is not None and reads(op)
        overwritten = self._copy_overwritten(op) if reads_overwritten else None
        base = base_of(op.args[0]) if op.in_place else None
        was_constant = base is not None and not base.requires_grad
        state = random_state(op) if rules.bias is linearize or op.name in RANDOM else None
        for operand in op.dependent:
            self._ensure_known(operand, op)
        result = self._call(op.function, op.args, op.kwargs)
        if rules.bias is linearize and not op.in_place and len(tensors_in(result)) > 1:
            result = map_tensors(self._separate, result)
        if reads_overwritten and overwritten is None:
            overwritten = saved_operand(op.args[0])
        outputs = [op.args[0]] if op.in_place else tensors_in(result)
        if op.in_place:
            self._free.discard(op.args[0])  # it now depends on the input
        # Without a rule, a backward pass infers the layout. It may run code of the user, which the mode below has to meet.
        with without_function_modes() if rules.layout and not self._is_direct else nullcontext():
            op = op.with_outputs(outputs, self.is_free, overwritten, state)
            counts = self._mark_outputs(op, rules, was_constant)
        if self.first_constant is None and makes_constant(op, len(outputs)):
            self.first_constant = self._locate(op.name)
        if counts:
            self._hook_outputs(op, rules)
        return result

    def _copy_overwritten(self, op: Operation) -> Tensor | None:
        """A copy of the operand that an in-place operation is about to overwrite; None if autograd saves it."""
        is_saved = not is_view(op.args[0]) and saves_operand(op.function)
        return None if is_saved else op.args[0].detach().clone()

    def _separate(self, output: Tensor) -> Tensor:
        """One of several outputs as a tensor of its own. Another output may be computed from it, as an LSTM cell's h from its c."""
        is_view_of_another = is_view(output) and base_of(output) in self.layouts
        return output.clone() if output.requires_grad and not is_view_of_another else output

    def _ensure_known(self, operand: Tensor, op: Operation) -> None:
        """Records the custom function that an operand comes from, and reports an operation that torch did not show as missing."""
        if id(operand) in self._hidden:
            self._uncover(operand)
        elif operand not in self.layouts:
            made_by = "a view" if operand.grad_fn is None else operand.grad_fn.name()
            missing = self._locate(f"{made_by}, which torch did not show, before {op.name}")
            self.layouts.mark(operand, None, missing)
            self.bias_hooks.report_missing(missing, operand)

    def _mark_outputs(self, op: Operation, rules: Rules, was_constant: bool = False) -> bool:
        """Follows samples and places into the outputs of an operation. Returns whether any output's samples can be told apart.

        `was_constant` is whether the operation wrote to a view of a tensor that did not depend on the input before.
        """
        layouts = self.layouts
        if op.in_place:
            self._hidden_writes.update_memory(op.args[0])
        counts = False
        for index, output in enumerate(op.outputs):
            layout = output_layout(op, rules.layout, layouts.find, index, layouts.num_images)
            mixed_by = "" if layout else self._find_mixing_operand(op)
            layouts.mark(output, layout, mixed_by)
            if op.in_place:
                self._mark_base(output, layout, mixed_by, was_constant)
            counts = counts or layouts.find(output) is not None
        if self._planes is not None:
            self._planes.follow(op, rules.layout)
        return counts

    def _find_mixing_operand(self, op: Operation) -> str:
        """The operation that mixed the samples of an operand. If none did, the given operation itself."""
        layouts = self.layouts
        return next((layouts.mixed_by(t) for t in op.dependent if layouts.find(t) is None), "") or self._locate(op.name)

    def _hook_outputs(self, op: Operation, rules: Rules) -> None:
        """Hooks the biases of an operation that was run to its outputs."""
        try:
            biases = rules.bias(op)
        except Exception:  # after an error in a rule, or in a second run of the operation, the operation is reported as missing
            for output in op.outputs:
                self.bias_hooks.report_missing(self._locate(op.name), output)
            return
        if not biases:
            return
        if any(bias.is_fallback for bias in biases):
            self.fallback_ops.append(self._locate(op.name))
        with without_function_modes():
            for bias in biases:
                self.bias_hooks.wait(op, bias, self._running[-1])

    def _mark_base(self, written: Tensor, layout: Layout | None, mixed_by: str, was_constant: bool) -> None:
        """Marks the tensor that was written to through a view, and all tensors that share its memory."""
        base = base_of(written)
        if layout is None and self.layouts.num_images > 1:
            self.layouts.mark_memory_mixed(written)
        if base is not None and was_constant and base not in self.layouts:
            layout = layout and base_layout(written, layout, base, self.layouts.num_images)
            self.layouts.mark(base, layout, mixed_by)
            if self.layouts.find(base) is None:
                self.layouts.mark_memory_mixed(base)

    def _locate(self, operation: str) -> str:
        return name_operation(operation, self._running[-1])

    # --- custom autograd functions

    def _wrap_forward(self, cls: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
        return partial(self._run_custom_function, cls, forward) if is_current_mode(self) else forward

    def _run_custom_function(self, cls: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs the forward of a custom function. Its biases must wait: torch gives the outputs their history afterwards."""
        with without_function_modes():
            for operand in tensors_in(args):
                self._uncover(operand)  # before this function may overwrite it
        result, inputs = run_custom_function(cls, forward, args, kwargs, self._copy)
        hidden = HiddenFunction(cls, inputs, tensors_in(result), self._running[-1])
        self._hidden |= {id(output): hidden for output in hidden.outputs}
        return result

    def _copy(self, tensor: Tensor) -> Tensor:
        """A copy of an operand, made before a custom function may overwrite it."""
        if tensor not in self.layouts:
            return tensor
        with torch.enable_grad():
            copied = tensor.clone()
        self.layouts.mark(copied, self.layouts.find(tensor), self.layouts.mixed_by(tensor))
        if self._planes is not None:
            self._planes[copied] = self._planes.find(tensor)
        return copied

    def _uncover(self, output: Tensor) -> None:
        """Records the custom function that an output comes from, if it waits. Its outputs have their history now."""
        hidden = self._hidden.get(id(output))
        if hidden is None:
            return
        cls = hidden.function
        op = Operation.meet(cls.apply, hidden.inputs, {}, is_free=self.is_free, name=cls.__name__, is_custom=True)
        self._running.append(hidden.module)
        for tensor in hidden.outputs:
            self._hidden.pop(id(tensor), None)
            if tensor in self.layouts:  # an overwritten input: its earlier hooks stay with its earlier history
                drop_gradient_hooks(tensor)
        for operand in op.dependent:
            self._ensure_known(operand, op)
        op, rules = op.with_outputs(hidden.outputs, self.is_free), OPERATIONS.get(op.name, UNKNOWN)
        if self._mark_outputs(op, rules):
            self._hook_outputs(op, rules)
        self._running.pop()
