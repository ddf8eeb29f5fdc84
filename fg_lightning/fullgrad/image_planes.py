"""Tracks on which of several image inputs the places of a tensor lie.

The layout of a tensor gives the positions of its places in the plane of one image. If a model combines images place by place, for
example by a sum, these are places of each image. If it puts images beside each other, for example in one batch, some entries are
places of one image and some of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout, plain
from fg_lightning.fullgrad.operation import Operation
from fg_lightning.fullgrad.operations.layout_rules import LayoutRule, broadcast_layout
from fg_lightning.fullgrad.operations.reshaping import reshape_layout
from fg_lightning.fullgrad.operations.slicing_and_joining import cat_layout, setitem_layout, stack_layout, view_layout
from fg_lightning.fullgrad.tensor_layouts import TensorLayouts, TensorTable
from fg_lightning.fullgrad.torch_internals import base_of, without_function_modes

ALIGNING = (broadcast_layout, cat_layout, stack_layout, setitem_layout)
"""Rules of operations that combine the places of their operands."""

MOVING = (view_layout, reshape_layout)
"""Rules of operations that only move entries."""


class Planes(NamedTuple):
    """The image inputs on which the places of a tensor lie, for each entry of one dimension.

    Attributes:
        dim: the dimension.
        images: a set of image inputs, by number, for each entry of it. A single set if it is the same for all entries.
    """

    dim: int
    images: tuple[frozenset[int], ...]

    @property
    def all(self) -> frozenset[int]:
        """The images on which at least one entry lies."""
        return frozenset().union(*self.images)

    @classmethod
    def by_entry(cls, dim: int, images: Iterable[frozenset[int]]) -> Planes:
        entries = tuple(images)
        return cls(0, entries[:1]) if len(set(entries)) == 1 else cls(dim, entries)

    def select(self, layout: Layout, image: int) -> tuple[Layout, list[int]] | None:
        """The entries of a tensor that lie on an image.

        Args:
            layout: layout of the tensor.
            image: number of the image input.

        Returns:
            The layout of these entries, and their indices. None if they are not whole copies of the batch.
        """
        entries = [index for index, of_entry in enumerate(self.images) if image in of_entry]
        dim = _select_copies(layout.dims[self.dim], len(entries)) if entries else None
        return None if dim is None else (Layout((*layout.dims[: self.dim], dim, *layout.dims[self.dim + 1 :])), entries)


NOWHERE = Planes(0, (frozenset(),))


class ImagePlanes(TensorTable[Planes]):
    """The planes of every tensor of a forward pass with several image inputs.

    Args:
        images: the image inputs.
        layouts: layouts of the tensors.
    """

    def __init__(self, images: Sequence[Tensor], layouts: TensorLayouts) -> None:
        super().__init__()
        self._layouts = layouts
        for number, image in enumerate(images):
            self[image] = Planes(0, (frozenset({number}),))

    def find(self, tensor: Tensor) -> Planes:
        return self.get(tensor) or NOWHERE

    def follow(self, op: Operation, rule: LayoutRule | None) -> None:
        """Follow the planes through an operation. The layouts of its outputs must be known.

        Args:
            op: the operation.
            rule: its layout rule. None if it has none.
        """
        with without_function_modes():
            for output in op.outputs:
                layout = self._layouts.find(output)
                self[output] = planes = self._of_output(op, rule, output, layout) if layout and layout.images else NOWHERE
                base = base_of(output) if op.in_place else None
                if base is not None and base in self._layouts:
                    self[base] = _unite([(self.find(base), base.ndim), (planes, output.ndim)], base)

    def _of_output(self, op: Operation, rule: LayoutRule | None, output: Tensor, layout: Layout) -> Planes:
        operands = [(t, of_operand) for t in op.dependent if (of_operand := self._layouts.find(t)) is not None]
        if rule in (cat_layout, stack_layout) and (joined := self._join(op, output)) is not None:
            return joined
        if rule in ALIGNING:
            aligned = [t for t, of_operand in operands if len(operands) == 1 or _is_aligned(of_operand, layout)]
            return _unite([(self.find(t), t.ndim) for t in aligned], output)
        # The output of any other operation lies where the first operand with the output's places lies.
        first = next(((t, own) for t, own in operands if not set(own.images).isdisjoint(layout.images)), None)
        if first is None:
            return NOWHERE
        operand, of_operand = first
        planes = self.find(operand)
        if len(planes.images) == 1:
            return planes
        if rule in MOVING and op.args and op.args[0] is operand:
            return _move(op, planes, output)
        keeps_entries = self._keeps_batch(planes, layout, of_operand) or (planes.dim == 1 and _keeps_channels(op.name))
        is_kept = keeps_entries and planes.dim < output.ndim and output.shape[planes.dim] == len(planes.images)
        return planes if is_kept else Planes(0, (planes.all,))

    def _keeps_batch(self, planes: Planes, layout: Layout, of_operand: Layout) -> bool:
        """Whether the entries belong to a batch and stay separate, according to the layouts of operand and output."""
        dim = planes.dim
        if dim >= len(layout.dims) or layout.dims[dim] != of_operand.dims[dim]:
            return False
        if self._layouts.num_images > 1:
            return layout.dims[dim].has(SAMPLE)
        num_places = sum(bool(own.places) for own in layout.dims)  # a single sample need not be in a layout
        return dim == 0 and len(layout.dims) >= 2 + num_places

    def _join(self, op: Operation, output: Tensor) -> Planes | None:
        """The planes of tensors that cat or stack joins. None for similar operations, or if some tensors are constant."""
        parts = op.argument(0, "tensors")
        if op.name not in ("cat", "stack") or not all(op.depends(part) for part in parts):
            return None
        dim = op.argument(1, "dim", op.kwargs.get("axis", 0)) % output.ndim
        images: list[frozenset[int]] = []
        for part in parts:
            planes = self.find(part)
            if op.name == "cat" and planes.dim == dim and len(planes.images) > 1:
                images += planes.images
            else:
                images += [planes.all] * (part.shape[dim] if op.name == "cat" else 1)
        return Planes.by_entry(dim, images)


def _keeps_channels(operation: str) -> bool:
    return operation == "batch_norm" or "pool" in operation or operation.startswith("upsample")


def _is_aligned(layout: Layout, output: Layout) -> bool:
    """Whether an operand has places in all dimensions in which the output has them, counted from the last dimension."""
    pairs = zip(reversed(output.dims), (*reversed(layout.dims), *[None] * len(output.dims)), strict=False)
    return all(own is not None and own.size == dim.size and bool(own.places) for dim, own in pairs if dim.places)


def _unite(planes: Sequence[tuple[Planes, int]], output: Tensor) -> Planes:
    """The union of the planes of operands that are aligned at their last dimensions. Each comes with its number of dimensions."""
    by_entry = [(of_one.dim - ndim + output.ndim, of_one.images) for of_one, ndim in planes if len(of_one.images) > 1]
    common = frozenset().union(*(of_one.images[0] for of_one, _ in planes if len(of_one.images) == 1))
    dims = {dim for dim, _ in by_entry}
    if not by_entry or len(dims) > 1 or any(len(images) != output.shape[dim] for dim, images in by_entry):
        return Planes(0, (common.union(*(of_one.all for of_one, _ in planes)),))
    entries = zip(*(images for _, images in by_entry), strict=True)
    return Planes.by_entry(dims.pop(), [common.union(*of_entry) for of_entry in entries])


def _move(op: Operation, planes: Planes, output: Tensor) -> Planes:
    """The planes of an output whose entries were moved. The operation is run on labels of the entries, and moves them likewise."""
    operand, number = op.args[0], next(i for i, own in enumerate(op.outputs) if own is output)
    known = list(dict.fromkeys(planes.images))
    labels = torch.tensor([known.index(of_entry) for of_entry in planes.images], dtype=torch.uint8, device=operand.device)
    shape = [-1 if dim == planes.dim else 1 for dim in range(operand.ndim)]
    spread = torch.empty_like(operand, dtype=torch.uint8).copy_(labels.reshape(shape))  # a view asks for strides
    moved = op.function(spread, *op.args[1:], **op.kwargs)
    moved = moved if isinstance(moved, Tensor) else moved[number]
    dims = [dim for dim in range(moved.ndim) if not torch.equal(moved, moved.narrow(dim, 0, 1).expand_as(moved))]
    if len(dims) > 1:
        return Planes(0, (planes.all,))
    along = moved.movedim(dims[0], 0).flatten(1)[:, 0] if dims else moved.flatten()[:1]
    return Planes.by_entry(dims[0] if dims else 0, [known[label] for label in along.tolist()])


def _select_copies(dim: Dim, num_entries: int) -> Dim | None:
    """A dimension reduced to some of its entries, if these are whole copies of the batch. Otherwise None."""
    if dim.is_plain():
        return plain(num_entries)
    first, last = dim.factors[0], dim.factors[-1]
    copies = first if first.axis is None else last
    num_copies, beside = divmod(num_entries * copies.size, dim.size)
    if copies.axis is not None or beside:
        return None
    left = Factor(None, num_copies)
    return Dim((left, *dim.factors[1:]) if copies is first else (*dim.factors[:-1], left))
