"""Rules of products of operands, with or without an addend: convolution, linear, matmul, einsum and similar operations."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fg_lightning.fullgrad.layout import SAMPLE, Dim, Layout, plain
from fg_lightning.fullgrad.linearization import Bias, BiasRule, Deferred, Pointwise, reads_overwritten
from fg_lightning.fullgrad.operation import Operation
from fg_lightning.fullgrad.operations.layout_rules import LayoutOf, align, first_layout, ignores_constants


def bilinear_plus(*, addend: tuple[int, str] | None, factors: tuple[tuple[int, str], tuple[int, str]]) -> BiasRule:
    """For factor_1 * factor_2 + addend, where `*` is any bilinear product: convolution, linear, matrix products."""

    def degree_of(op: Operation) -> int:
        return sum(op.depends(op.argument(*factor)) for factor in factors)

    def addend_read(op: Operation) -> Tensor | None:
        """The addend. None if beta is 0 (torch then does not read it), or the sum is linear in all dependent operands."""
        added = None if addend is None or op.kwargs.get("beta", 1) == 0 else op.argument(*addend)
        return None if op.depends(added) and degree_of(op) == 1 else added

    @reads_overwritten(lambda op: addend_read(op) is not None)
    def rule(op: Operation) -> list[Bias]:
        degree, added = degree_of(op), addend_read(op)
        shift = None if added is None else _scale_addend(op, op.value(added))
        biases = []
        if shift is not None and not op.depends(added):
            biases.append(Bias("explicit", shift))
        if degree != 1:
            product = op.result() if shift is None else op.result() - shift
            biases.append(Bias("implicit" if degree else "explicit", Deferred(partial(torch.mul, other=1 - degree), (product,))))
        return biases

    return rule


def _scale_addend(op: Operation, addend: Tensor) -> Tensor:
    """The addend as the operation adds it: over the channels for a convolution, times beta for a matrix product."""
    if op.name.startswith("conv"):
        return addend.reshape(-1, *(1,) * (op.argument(1, "weight").ndim - 2))  # the image may have no batch dimension
    beta = op.kwargs.get("beta", 1)
    return addend if beta == 1 else beta * addend


@reads_overwritten(lambda op: all(op.depends(factor) for factor in op.args[:2]))
def multiply(op: Operation) -> list[Bias]:
    """x * y: b = -x y if both depend on the input. It is computed from the factors, which the backward pass keeps anyway."""
    a, b = op.args[:2]
    if not (op.depends(a) and op.depends(b)):
        return []
    a, b = op.value(a), op.value(b)
    return [Bias("implicit", Pointwise(_minus_product, (a, b)))]


def _minus_product(a: Tensor, b: Tensor) -> Tensor:
    return torch.mul(a, b).neg_()


@ignores_constants
def linear_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    layout = first_layout(op, layout_of)
    if len(op.dependent) > 1 or layout.dims[-1].has(SAMPLE):
        return None
    return Layout((*layout.dims[:-1], plain(output.shape[-1])))


def matmul_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """[..., M, K] x [..., K, P] -> [..., M, P], with or without an addend. A vector has no M, or no P."""
    first = 1 if op.name in ("addmm", "baddbmm", "addmv") else 0
    a, b = op.argument(first, "input"), op.argument(first + 1, "other")
    left, right = layout_of(a) if op.depends(a) else None, layout_of(b) if op.depends(b) else None
    if (left and left.dims[-1].has(SAMPLE)) or (right and right.dims[-2 if b.ndim > 1 else -1].has(SAMPLE)):
        return None
    product = _matrices(left, right, output, a.ndim > 1, b.ndim > 1)
    added = layout_of(op.args[0]) if first and op.depends(op.args[0]) else None
    return align([product, added], output.shape) if product and added else product or added


def _matrices(left: Layout | None, right: Layout | None, output: Tensor, has_rows: bool, has_columns: bool) -> Layout | None:
    """The layout of a product of two matrices, stacks of matrices, or vectors."""
    kept = has_rows + has_columns
    sides = [(left, has_rows), (right, has_columns)]
    batched = [replace(x, dims=(*x.dims[: -2 if is_matrix else -1], *[plain(1)] * kept)) for x, is_matrix in sides if x]
    layout = align(batched, output.shape)
    if layout is None or not batched:
        return None
    rows = [left.dims[-2] if left else plain(output.shape[-kept])] if has_rows else []
    columns = [right.dims[-1] if right else plain(output.shape[-1])] if has_columns else []
    if left and has_rows and columns and not columns[0].has(SAMPLE):  # an entry of an attention matrix lies where its query lies
        columns = [plain(columns[0].size)]
    return Layout((*layout.dims[: len(layout.dims) - kept], *rows, *columns))


def outer_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """outer, inner, tensordot: the dimensions that are not summed over, first of the first operand, then of the second."""
    first, second = op.argument(0, "input"), op.argument(1, "vec2" if op.name == "outer" else "other")
    summed = {"outer": ((), ()), "inner": ((-1,), (-1,))}.get(op.name) or op.args[2:4]
    dims: list[Dim] = []
    for operand, gone in zip((first, second), summed, strict=True):
        layout = layout_of(operand) if op.depends(operand) else Layout(tuple(map(plain, operand.shape)))
        assert layout is not None  # checked by `output_layout`
        gone = {d % operand.ndim for d in gone}
        if any(layout.dims[d].has(SAMPLE) for d in gone):
            return None
        kept = [dim for d, dim in enumerate(layout.dims) if d not in gone]
        is_placed = any(dim.places for dim in dims)  # a pair lies where its first element lies
        dims += [plain(dim.size) if is_placed and not dim.has(SAMPLE) else dim for dim in kept]
    return Layout(tuple(dims))


def cell_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Cells of LSTM, GRU and RNN, and F.bilinear: [..., C] and [..., D] -> [..., E], row by row."""
    layouts = [layout for t in op.dependent if (layout := layout_of(t))]
    if any(layout.dims[-1].has(SAMPLE) for layout in layouts):
        return None
    return align([replace(layout, dims=(*layout.dims[:-1], plain(output.shape[-1]))) for layout in layouts], output.shape)


def similarity_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """cosine_similarity, pairwise_distance: two tensors are broadcast, and one dimension is removed or gets size 1."""
    shape = torch.broadcast_shapes(op.argument(0, "x1").shape, op.argument(1, "x2").shape)
    layout = align([layout_of(t) for t in op.dependent], shape)
    along = (op.argument(2, "dim", 1) if op.name == "cosine_similarity" else -1) % len(shape)
    if layout is None or layout.dims[along].has(SAMPLE):
        return None
    kept = (plain(1),) if output.ndim == len(shape) else ()
    return Layout((*layout.dims[:along], *kept, *layout.dims[along + 1 :]))


def cdist_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """cdist: [..., P, M] and [..., R, M] -> [..., P, R]. A distance lies where its first row lies."""
    layouts = [layout_of(t) if op.depends(t) else None for t in (op.argument(0, "x1"), op.argument(1, "x2"))]
    if any(layout is None or layout.dims[-1].has(SAMPLE) for layout in layouts if layout):
        return None
    batched = [replace(side, dims=(*side.dims[:-2], plain(1), plain(1))) for side in layouts if side]
    rest = align(batched, output.shape)
    rows = layouts[0].dims[-2] if layouts[0] else plain(output.shape[-2])
    columns = layouts[1].dims[-2] if layouts[1] else plain(output.shape[-1])
    if layouts[0] and not columns.has(SAMPLE):
        columns = plain(columns.size)
    return rest and Layout((*rest.dims[:-2], rows, columns))


def matrix_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Linear algebra, matrix by matrix: [..., M, K] -> [..., *result of one matrix]."""
    layouts = [layout_of(t) for t in op.dependent]
    if any(layout is None or len(layout.dims) < 2 or any(dim.has(SAMPLE) for dim in layout.dims[-2:]) for layout in layouts):
        return None
    batch = max(len(layout.dims) for layout in layouts if layout) - 2
    rest = align([replace(layout, dims=layout.dims[:-2]) for layout in layouts if layout], output.shape[:batch])
    return rest and Layout((*rest.dims, *map(plain, output.shape[batch:])))


def einsum_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """einsum: each letter of the result comes from the first operand that has it. A summed letter must not contain samples."""
    equation, operands = op.args[0], op.args[1] if isinstance(op.args[1], (tuple, list)) else op.args[1:]
    if not isinstance(equation, str):
        return None
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow:
        result = "..." * ("..." in inputs) + "".join(sorted(c for c in set(inputs) - set(",.") if inputs.count(c) == 1))
    terms = inputs.split(",")
    counts = [t.ndim - len(term.replace("...", "")) for term, t in zip(terms, operands, strict=True)]
    unused = [chr(code) for code in range(ord("A"), ord("z")) if chr(code).isalpha() and chr(code) not in equation]
    dots = "".join(unused[: max(counts)])  # the dimensions of "...", aligned at the last
    terms = [term.replace("...", dots[len(dots) - count :]) for term, count in zip(terms, counts, strict=True)]
    result = result.replace("...", dots)
    dims: dict[str, Dim] = {}
    for letters, operand in zip(terms, operands, strict=True):
        layout = layout_of(operand) if op.depends(operand) else None
        for letter, dim in zip(letters, layout.dims if layout else (), strict=False):
            if dim.has(SAMPLE) and (letter not in result or dims.get(letter, dim).samples != dim.samples):
                return None
            if letter not in dims or dims[letter].is_plain():
                dims[letter] = dim
    placed: list[Dim] = []
    seen: set[tuple[Any, int]] = set()
    for letter, size in zip(result, output.shape, strict=True):
        dim = dims.get(letter, plain(size))
        places = {(axis.number, piece.step) for axis, piece in dim.places}
        placed.append(plain(size) if places & seen and not dim.has(SAMPLE) else dim)  # attention lies where its queries lie
        seen |= places
    return Layout(tuple(placed))
