"""Hooks on output tensors, where biases wait for their gradients. Both then go to visitors, term by term."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fg_lightning.fullgrad.image_planes import ImagePlanes, Planes
from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout
from fg_lightning.fullgrad.linearization import Bias, ChannelShift, Deferred, Kind, Pointwise, Summed
from fg_lightning.fullgrad.operation import Operation
from fg_lightning.fullgrad.tensor_layouts import TensorLayouts
from fg_lightning.fullgrad.torch_internals import add_gradient_hook, base_of, is_view, storage_of


@dataclass(frozen=True, slots=True)
class Term:
    """The origin of a bias term.

    Attributes:
        module: qualified name of the module in whose forward the operation ran.
        operation: name of the operation.
        kind: "explicit" or "implicit".
        layout: the layout of its values: that of the operation's output, or of one number for each sample, [N], if only their sum
            is known.
        planes: the images on which its places lie. Default: None, for a single image input.
    """

    module: str
    operation: str
    kind: Kind
    layout: Layout
    planes: Planes | None = None

    def lies_on(self, image: int, num_axes: int) -> bool:
        """Whether its values lie on the plane of image input number `image`, which has `num_axes` spatial axes."""
        return (self.planes is None or image in self.planes.all) and self.layout.on_plane(num_axes)

    def __str__(self) -> str:
        return name_operation(self.operation, self.module)


def name_operation(operation: str, module: str) -> str:
    """An operation and its module, for messages."""
    return f"{operation} in {module or 'the model itself'}"


@runtime_checkable
class TermVisitor(Protocol):
    """Receives every term of a run and computes something from it: sums, a map or an average."""

    def visit(self, term: Term, bias: Tensor | Pointwise, gradient: Tensor) -> None:
        """Receives a bias in the backward pass, last operation first. It broadcasts to the gradient at the operation's output."""

    def visit_input(self, images: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Receives the image inputs of the model and their gradients, [N, C, *S] each, after all biases."""


class _WaitingBias:
    """A bias that is computed when its gradient comes, or earlier if an operation is about to overwrite one of its inputs."""

    def __init__(self, value: Tensor | Pointwise | Deferred | ChannelShift) -> None:
        self._value = value

    @property
    def shift(self) -> ChannelShift | None:
        """The bias if it is a channel shift, because all of these are computed together."""
        return self._value if isinstance(self._value, ChannelShift) else None

    def give(self, value: Tensor) -> None:
        """Sets the value of the bias, which was computed with others."""
        self._value = value

    def secure(self) -> None:
        """Computes the bias now: its inputs, or the memory that it is a view of, are about to be overwritten."""
        self._value = self._value.clone() if isinstance(self._value, Tensor) else self._value()

    def take(self) -> Tensor | Pointwise:
        """The bias. It is released here, because its gradient comes only once."""
        value, self._value = self._value, _TAKEN
        return value if isinstance(value, (Tensor, Pointwise)) else value()


_TAKEN = torch.empty(0)


class BiasHooks:
    """Hooks on outputs that pass each bias on to visitors when its gradient comes.

    Args:
        visitors: receive the terms. Each term goes to them in this order.
        layouts: layouts of the hooked tensors.
        planes: planes of the hooked tensors. Default: None, for a single image input.

    Attributes:
        terms: all bias terms, in forward order.
    """

    def __init__(self, visitors: Sequence[TermVisitor], layouts: TensorLayouts, planes: ImagePlanes | None = None) -> None:
        self.terms: list[Term] = []
        self._visitors = visitors
        self._num_images = layouts.num_images
        self._layouts = layouts
        self._planes = planes
        self._suspects: list[str] = []
        self._reached: list[tuple[str, Tensor]] = []  # each with whether it counts, a tensor that a GPU may still compute
        self._is_on = False
        self._shifts: defaultdict[Any, list[_WaitingBias]] = defaultdict(list)  # by groups that are computed together
        self._readers: dict[int, list[_WaitingBias]] = defaultdict(list)

    def secure(self, overwritten: Tensor) -> None:
        """Computes all biases that depend on a tensor, which is about to be overwritten."""
        for waiting in self._readers.pop(storage_of(overwritten), ()):
            waiting.secure()

    @property
    def missing_ops(self) -> list[str]:
        """The operations that `report_missing` got and that a gradient reached, in forward order."""
        reached = {text for text, counts in self._reached if bool(counts)}
        return [text for text in self._suspects if text in reached]

    def report_missing(self, text: str, tensor: Tensor) -> None:
        """Notes an operation without a bias behind a tensor. It counts only if the explained output depends on the tensor."""
        self._suspects.append(text)

        def hook(gradient: Tensor | None) -> None:
            if gradient is not None and self._is_on:
                self._reached.append((text, gradient.any()))

        add_gradient_hook(tensor, hook)

    def watch_gradient_hook(self, hook: Callable[[Tensor], Tensor | None], text: str) -> Callable[[Tensor], Tensor | None]:
        """Wraps a gradient hook of the model. If it changes the gradient, it is reported as missing: no rule covers the change."""
        self._suspects.append(text)

        def wrapper(gradient: Tensor) -> Tensor | None:
            result = hook(gradient)
            if result is not None and self._is_on:
                self._reached.append((text, (result.to(gradient) != gradient).any()))
            return result

        return wrapper

    def wait(self, op: Operation, bias: Bias, module: str) -> None:
        """Hooks the output, so that the visitors receive the bias when the gradient comes."""
        output = op.outputs[bias.output]
        layout = self._layouts.find(output)
        if layout is None:
            return  # the samples are mixed already, so that this run will be discarded
        if isinstance(bias.value, Summed):
            self._wait_for_sum(op, bias.kind, output, bias.value, module)
            return
        waiting = _WaitingBias(bias.value)
        if isinstance(bias.value, ChannelShift):
            self._shifts[bias.value.group].append(waiting)
        for read in (bias.value,) if isinstance(bias.value, Tensor) else bias.value.operands:
            self._readers[storage_of(read)].append(waiting)
        planes = None if self._planes is None else self._planes.find(output)
        term = self._term(module, op, bias.kind, layout if planes is None else layout.as_of_one_image(), planes)
        self._hook(op, output, lambda gradient: self._visit(term, waiting.take(), gradient))

    def _wait_for_sum(self, op: Operation, kind: Kind, output: Tensor, bias: Summed, module: str) -> None:
        """Hooks an output whose bias is known only by its contribution to each sample."""
        layouts = [self._layouts.find(t) for t in (output, *op.dependent)]
        term = self._term(module, op, kind, Layout((Dim((Factor(SAMPLE, self._num_images),)),)))

        def receive(gradient: Tensor) -> None:
            of_output, *of_operands = (
                layout.per_sample(entries, self._num_images)  # type: ignore[union-attr]  # the output's samples are known from theirs
                for layout, entries in zip(layouts, bias.contributions(gradient), strict=True)
            )
            self._visit(term, of_output - sum(of_operands), torch.ones_like(of_output))

        self._hook(op, output, receive)

    def _visit(self, term: Term, bias: Tensor | Pointwise, gradient: Tensor) -> None:
        for visitor in self._visitors:
            visitor.visit(term, bias, gradient)

    def _term(self, module: str, op: Operation, kind: Kind, layout: Layout, planes: Planes | None = None) -> Term:
        self.terms.append(Term(module, op.name, kind, layout, planes))
        return self.terms[-1]

    def _hook(self, op: Operation, output: Tensor, receive: Callable[[Tensor], None]) -> None:
        read: Callable[[Tensor], Tensor] | None = None
        # A view of a tensor that has no other use is hooked at that tensor: a view that is overwritten gets a history of its own.
        if is_view(output) and (op.in_place or base_of(output) not in self._layouts):
            output, read = _base_of(output)

        def hook(gradient: Tensor | None) -> None:
            if gradient is not None and self._is_on:  # one of several outputs may be unused
                receive(read(gradient) if read else gradient)

        add_gradient_hook(output, hook)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Passes on the gradients that come inside this context. A forward may compute gradients of its own before it."""
        self._compute_shifts()
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False

    def _compute_shifts(self) -> None:
        for group in self._shifts.values():
            pairs = [(waiting, shift) for waiting in group if (shift := waiting.shift) is not None]
            if pairs:
                values = ChannelShift.compute_together([shift for _, shift in pairs])
                for (waiting, _), value in zip(pairs, values, strict=True):
                    waiting.give(value)
        self._shifts.clear()

    def close(self) -> None:
        """Releases the visitors and all biases.

        A model that keeps a tensor of its forward also keeps the hooks and this object. If a visitor refers to the model, the cycle
        goes through autograd's graph, where Python's garbage collector cannot find it.
        """
        self._visitors = ()
        self._readers.clear()
        self._shifts.clear()
        self._layouts.clear()


def _base_of(view: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The base of a view, and a function that reads the view's gradient from the base's.

    Later operations may use the view or the base. Only the gradient of the base includes both uses.
    """
    base = base_of(view)
    assert base is not None
    shape, strides, offset = view.shape, view.stride(), view.storage_offset() - base.storage_offset()
    base_shape, base_strides = base.shape, base.stride()

    def read(gradient: Tensor) -> Tensor:
        if gradient.stride() != base_strides:
            gradient = torch.empty_strided(base_shape, base_strides, dtype=gradient.dtype, device=gradient.device).copy_(gradient)
        return gradient.as_strided(shape, strides, gradient.storage_offset() + offset)

    return base, read
