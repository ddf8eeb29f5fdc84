"""view, reshape, flatten: the factors of the dimensions stay in order and are dealt out anew."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout, Tokens, plain
from fg_lightning.fullgrad.movement.mover import LayoutOf, first_layout


def regrouped(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """view, reshape, flatten, unflatten: the factors stay in order and are dealt out to the new dimensions."""
    queue = _merged([f for dim in first_layout(call, layout_of).dims for f in dim.factors])
    dims: list[Dim] = []
    for i, size in enumerate(output.shape):
        before = list(queue)
        dim = _dealt(queue, size)
        if dim is None:
            if any(f.axis == SAMPLE and f.size > 1 for f in before):
                return None
            return Layout((*dims, *map(plain, output.shape[i:])))  # within a sample, rows that are read as longer or shorter ones
        dims.append(dim)
    return Layout(tuple(dims))  # factors of size 1 may be left over: [N, C, 1, 1] -> [N, C] has no plane any more


def _merged(factors: list[Factor]) -> list[Factor]:
    """Neighbours that are one run of an axis as one factor, such as a window's place and the places in it."""
    merged: list[Factor] = []
    for factor in factors:
        if factor == Factor(None, 1):
            continue
        last = merged[-1] if merged else None
        continues = last is not None and last.axis == factor.axis
        if last is not None and continues and (factor.axis is None or last.step == factor.size * factor.step):
            merged[-1] = replace(factor, size=last.size * factor.size)
        else:
            merged.append(factor)
    return merged


def _dealt(queue: list[Factor], size: int) -> Dim | None:
    """Takes factors that make up `size` from the front of the queue, splitting the last one where it has to."""
    taken: list[Factor] = []
    need = size
    while queue and size:
        head = queue[0]
        if need == 1 and (taken or head.size > 1):
            break
        if need % head.size == 0:
            taken.append(head)
            queue.pop(0)
            need //= head.size
        elif head.size % need == 0 and not isinstance(head.axis, Tokens):
            inner = head.size // need
            taken.append(replace(head, size=need, step=1 if head.axis is None else head.step * inner))
            queue[0] = replace(head, size=inner)
            need = 1
        else:
            return None
    return Dim(tuple(taken) or (Factor(None, 1),)) if need == 1 else plain(0) if size == 0 else None
