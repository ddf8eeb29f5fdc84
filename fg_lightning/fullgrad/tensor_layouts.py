"""What is known of every tensor of a forward pass: its layout, and on which image it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar
from weakref import ref

from torch import Tensor

from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout
from fg_lightning.fullgrad.operation import Operation
from fg_lightning.fullgrad.torch_internals import base_of, storage_of, without_function_modes

T = TypeVar("T")


class TensorTable(Generic[T]):
    """Values by tensor. A tensor is found by its identity, and the table does not keep it alive."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[T, ref[Tensor]]] = {}

    def __setitem__(self, tensor: Tensor, value: T) -> None:
        key, entries = id(tensor), self._entries
        entries[key] = value, ref(tensor, lambda _: entries.pop(key, None))  # which runs before the id is used again

    def get(self, tensor: Tensor) -> T | None:
        entry = self._entries.get(id(tensor))
        return entry[0] if entry else None

    def __contains__(self, tensor: Tensor | None) -> bool:
        return id(tensor) in self._entries

    def discard(self, tensor: Tensor) -> None:
        self._entries.pop(id(tensor), None)


Planes = tuple[frozenset[int], ...]
"""The image inputs on whose plane the places of a tensor lie, for each copy of the batch in it; one set if it is that of all."""


class TensorLayouts(TensorTable["tuple[Layout | None, str]"]):
    """The layouts of the tensors of a forward pass, or the operations behind which their samples could not be told apart.

    Args:
        images: the image inputs, each [N, C, *S].

    Attributes:
        num_images: number of samples.
    """

    def __init__(self, images: Sequence[Tensor]) -> None:
        super().__init__()
        self.num_images = len(images[0])
        self._mixed: dict[int, Tensor] = {}  # by its memory, a tensor in which samples were mixed; it keeps the memory in use
        self._planes: TensorTable[Planes] | None = TensorTable() if len(images) > 1 else None
        for number, image in enumerate(images):
            self.mark(image, Layout.of_images(image, number))
            if self._planes is not None:
                self._planes[image] = (frozenset({number}),)

    def mark(self, tensor: Tensor, layout: Layout | None, mixed_by: str = "") -> None:
        """Enter a tensor that depends on the input.

        Args:
            tensor: any.
            layout: None if its samples cannot be told apart.
            mixed_by: the operation and module behind which they could not.
        """
        if layout is None and self.num_images == 1:
            layout = Layout.unknown(tensor.shape)
        self[tensor] = layout, "" if layout else mixed_by

    def mark_copy(self, copy: Tensor, tensor: Tensor) -> None:
        """Enter a tensor that lies as another does."""
        self.mark(copy, self.find(tensor), self.mixed_by(tensor))
        if self._planes is not None:
            self._planes[copy] = self._planes_of(tensor)

    def mark_memory_mixed(self, tensor: Tensor) -> None:
        """Enter a tensor that was overwritten so that its samples cannot be told apart, in it and in all that shares its memory."""
        self._mixed[storage_of(tensor)] = tensor

    def find(self, tensor: Tensor) -> Layout | None:
        """The layout of a tensor; None if it was not entered or its samples cannot be told apart."""
        if self._mixed and (written := self._mixed.get(storage_of(tensor))) is not None:
            self[tensor] = None, self.mixed_by(written)
        entry = self._entries.get(id(tensor))
        return entry[0][0] if entry else None

    def mixed_by(self, tensor: Tensor) -> str:
        """The operation behind which the samples of a tensor could not be told apart; empty if they can be."""
        entry = self._entries.get(id(tensor))
        return entry[0][1] if entry else ""

    def clear(self) -> None:
        self._entries.clear()
        self._mixed.clear()

    # --- several image inputs

    def planes(self, tensor: Tensor) -> Planes | None:
        """On which images the places of a tensor lie; None if there is one image input."""
        return None if self._planes is None else self._planes_of(tensor)

    def _planes_of(self, tensor: Tensor) -> Planes:
        assert self._planes is not None
        return self._planes.get(tensor) or (frozenset(),)

    def follow_images(self, op: Operation, *, aligns: bool) -> None:
        """Follow the planes of several image inputs through an operation whose outputs were marked.

        Args:
            op: the operation.
            aligns: whether it brings the places of its operands together, as a sum does. Otherwise the output lies where the first
                operand lies that has its places.
        """
        if self._planes is None:
            return
        with without_function_modes():
            for output in op.outputs:
                layout = self.find(output)
                planes = self._output_planes(op, output, layout, aligns=aligns) if layout and layout.images else (frozenset(),)
                self._planes[output] = planes
                if op.in_place and (base := base_of(output)) is not None and base in self:
                    self._planes[base] = _unite([self._planes_of(base), planes])

    def _output_planes(self, op: Operation, output: Tensor, layout: Layout, *, aligns: bool) -> Planes:
        operands = [(t, of_operand) for t in op.dependent if (of_operand := self.find(t)) is not None]
        if not aligns or len(operands) == 1:
            operands = [pair for pair in operands if set(pair[1].images) & set(layout.images)][:1]
        else:
            operands = [pair for pair in operands if _is_aligned(pair[1], layout)]
        if not operands:
            return (frozenset(),)
        num_copies = _num_copies(layout, self.num_images)
        if num_copies > 1 and op.name in JOINING and (joined := self._join(op)) and len(joined) == num_copies:
            return _collapse(joined)
        of_operands = [self._planes_of(t) for t, _ in operands]
        if all(len(planes) in (1, num_copies) for planes in of_operands):
            return _unite(of_operands)
        (operand, of_operand), *rest = operands
        chosen = _chosen_copies(operand, of_operand, output, num_copies, self.num_images)
        if rest or chosen is None or len(of_operands[0]) <= chosen[-1]:
            return (frozenset().union(*(plane for planes in of_operands for plane in planes)),)
        return _collapse(tuple(of_operands[0][copy] for copy in chosen))

    def _join(self, op: Operation) -> Planes:
        """The planes of all parts of a batch that is put together of several, one behind the other."""
        joined: Planes = ()
        for part in op.argument(0, "tensors"):
            layout, planes = self.find(part), self._planes_of(part)
            joined += planes * (_num_copies(layout, self.num_images) if layout and len(planes) == 1 else 1)
        return joined


JOINING = frozenset({"cat", "concat", "concatenate", "vstack", "row_stack", "stack"})
"""Operations that can put batches one behind the other."""


def select_copies(layout: Layout, planes: Planes, image: int, num_samples: int) -> tuple[Layout, list[int]] | None:
    """The copies of the batch that lie on an image.

    Args:
        layout: of a tensor with several copies.
        planes: of the copies.
        image: number of the image input.
        num_samples: number of samples.

    Returns:
        The layout of these copies alone, and their indices in the first dimension; None if they do not fill entries of it.
    """
    copies = [number for number, plane in enumerate(planes) if image in plane]
    first, *rest = layout.dims
    if not copies or first.size not in (len(planes), len(planes) * num_samples):
        return None
    size = first.size // len(planes)
    factors = (Factor(None, len(copies)), *(first.factors[1:] if size > 1 else ()))
    entries = [copy * size + sample for copy in copies for sample in range(size)]
    return Layout((Dim(factors), *rest)), entries


def _num_copies(layout: Layout, num_samples: int) -> int:
    """How often the batch lies in a tensor, copy by copy, as its first factors tell."""
    copies = 1
    for factor in (factor for dim in layout.dims for factor in dim.factors):
        if factor.axis == SAMPLE and factor.size == num_samples:
            return copies
        if factor.axis is not None:
            break
        copies *= factor.size
    return layout.shape[0] if num_samples == 1 and layout.dims[0].is_plain() else 1  # one sample needs no factor


def _chosen_copies(operand: Tensor, layout: Layout, view: Tensor, num_copies: int, num_samples: int) -> range | None:
    """Which copies of an operand a view shows; None if it is no view of whole copies in the first dimension."""
    if base_of(view) is None or storage_of(view) != storage_of(operand) or not operand.stride(0):
        return None
    of_operand = _num_copies(layout, num_samples)
    if layout.shape[0] not in (of_operand, of_operand * num_samples):
        return None
    step = operand.stride(0) * (layout.shape[0] // of_operand)
    first, beside = divmod(int(view.storage_offset()) - int(operand.storage_offset()), step)
    return None if beside else range(first, first + num_copies)


def _is_aligned(layout: Layout, output: Layout) -> bool:
    """Whether an operand has places wherever the output has them, counted from the last dimension."""
    pairs = zip(reversed(output.dims), (*reversed(layout.dims), *[None] * len(output.dims)), strict=False)
    return all(own is not None and own.size == dim.size and bool(own.places) for dim, own in pairs if dim.places)


def _unite(planes: list[Planes]) -> Planes:
    """The planes of several tensors together, copy by copy."""
    width = max(map(len, planes))
    united = (frozenset().union(*(of_one[copy if len(of_one) > 1 else 0] for of_one in planes)) for copy in range(width))
    return _collapse(tuple(united))


def _collapse(planes: Planes) -> Planes:
    """One set if all copies have the same."""
    return planes[:1] if len(set(planes)) == 1 else planes
