"""How a bias waits for the gradient at its output, and reaches a visitor together with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor

from fg_lightning.fullgrad.hidden_writes import storage_of
from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout
from fg_lightning.fullgrad.linearization import Bias, Kind, Pointwise, Summed
from fg_lightning.fullgrad.operation import Operation


@dataclass(frozen=True, slots=True)
class Term:
    """Which bias it is: the module in whose forward the operation ran (qualified name), the operation, and how its values lie.

    They lie as the operation's output does, or are one for each sample, [N], where no more is known than their sum.
    """

    module: str
    operation: str
    kind: Kind
    layout: Layout

    def __str__(self) -> str:
        return name_operation(self.operation, self.module)


def name_operation(operation: str, module: str) -> str:
    """An operation and the module in whose forward it ran, in words."""
    return f"{operation} in {module or 'the model itself'}"


Visitor = Callable[[Term, Union[Tensor, Pointwise], Tensor], None]
"""Called with (term, bias, gradient) during the backward pass; the bias is broadcastable to the gradient, of the term's layout."""


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


class BiasHooks:
    """Hooks outputs, so that a visitor gets each bias when its gradient comes.

    Args:
        visitor: see `Visitor`.
        n: how many samples there are.

    Attributes:
        terms: what it hears of, in forward order.
    """

    def __init__(self, visitor: Visitor, n: int) -> None:
        self.terms: list[Term] = []
        self._visitor = visitor
        self._n = n
        self._missing: list[str] = []
        self._heard: set[str] = set()
        self._is_on = False
        self._readers: dict[int, list[_Deferred]] = defaultdict(list)

    def secure(self, overwritten: Tensor) -> None:
        """Have all biases that are computed from a tensor which is about to be overwritten."""
        for deferred in self._readers.pop(storage_of(overwritten), ()):
            deferred.secure()

    @property
    def missing_ops(self) -> list[str]:
        """What `miss` was told of and a gradient reached, in forward order."""
        return [text for text in self._missing if text in self._heard]

    def miss(self, text: str, tensor: Tensor) -> None:
        """Name what was not seen before a tensor, if the tensor counts for the explained output."""
        self._missing.append(text)

        def hook(gradient: Tensor | None) -> None:
            if gradient is not None and self._is_on and bool(gradient.any()):
                self._heard.add(text)

        tensor.register_hook(hook)

    def watch_gradient_hook(self, hook: Callable[[Tensor], Tensor | None], text: str) -> Callable[[Tensor], Tensor | None]:
        """A hook of the model's own on a tensor's gradient, named where it changes that gradient: no rule knows of the change."""
        self._missing.append(text)

        def watching(gradient: Tensor) -> Tensor | None:
            changed = hook(gradient)
            if changed is not None and self._is_on and not torch.equal(changed.to(gradient), gradient):
                self._heard.add(text)
            return changed

        return watching

    def wait(self, op: Operation, bias: Bias, module: str) -> None:
        """Hook the output, so that the visitor gets the bias when the gradient comes."""
        output = op.outputs[bias.output]
        layout = layout_of(output)
        if layout is None:
            return  # the samples are mixed already: this run counts for nothing
        if isinstance(bias.value, Summed):
            self._wait_for_sum(op, bias.kind, output, bias.value, module)
            return
        deferred = _Deferred(bias.value)
        for read in (bias.value,) if isinstance(bias.value, Tensor) else op.held:
            self._readers[storage_of(read)].append(deferred)
        term = self._term(module, op, bias.kind, layout)
        self._hook(op, output, lambda gradient: self._visitor(term, deferred.take(), gradient))

    def _wait_for_sum(self, op: Operation, kind: Kind, output: Tensor, bias: Summed, module: str) -> None:
        """Hook the output of which no more than the bias's contribution to each sample will be known."""
        layouts = [layout_of(t) for t in (output, *op.dependent)]
        term = self._term(module, op, kind, Layout((Dim((Factor(SAMPLE, self._n),)),)))

        def hear(gradient: Tensor) -> None:
            of_output, *of_operands = (
                layout.per_sample(entries, self._n)  # type: ignore[union-attr]  # the output's samples are known from theirs
                for layout, entries in zip(layouts, bias.contributions(gradient), strict=True)
            )
            self._visitor(term, of_output - sum(of_operands), torch.ones_like(of_output))

        self._hook(op, output, hear)

    def _term(self, module: str, op: Operation, kind: Kind, layout: Layout) -> Term:
        self.terms.append(Term(module, op.name, kind, layout))
        return self.terms[-1]

    def _hook(self, op: Operation, output: Tensor, hear: Callable[[Tensor], None]) -> None:
        places: Callable[[Tensor], Tensor] | None = None
        # A view of a tensor that nobody else sees is hooked there: overwritten later, it would get a history of its own.
        if output._is_view() and (op.in_place or not hasattr(output._base, "_fg_layout")):
            output, places = _base_and_places(output)

        def hook(gradient: Tensor | None) -> None:
            if gradient is not None and self._is_on:  # of several outputs, one may not be used
                hear(places(gradient) if places else gradient)

        output.register_hook(hook)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Let the gradients that come in here reach the visitor; a forward may ask for gradients of its own."""
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False

    def close(self) -> None:
        """Forget the visitor and all biases: a model that keeps a tensor of its forward keeps the hooks, which keep this.

        A visitor may lead back to the model, and Python finds no cycle that goes through autograd's graph.
        """
        self._visitor = _unheard
        self._readers.clear()


def _unheard(term: Term, bias: Tensor | Pointwise, gradient: Tensor) -> None:
    """The visitor of a run that is over."""


def layout_of(tensor: Tensor) -> Layout | None:
    return getattr(tensor, "_fg_layout", None)


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
