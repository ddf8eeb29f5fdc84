"""Backward passes of torch that are wrong for gradients in certain memory layouts. They were seen in torch 2.14.1.

- Batch norm and instance norm on a CPU read operand and gradient in the same memory order. If their orders differ, and a dimension
  of size 1 hides it (one image, or tokens as [N, C, L, 1]), the result is wrong by as much as its own size. This holds for training
  and evaluation, float32 and float64. A contiguous gradient does not help if the operand is not contiguous.
- `slice_scatter` and `select_scatter` write to their gradient, which fails if its entries overlap in memory. `gelu` raises an error
  for such a gradient.

All of them are right for a gradient with the memory layout of the operation's output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fg_lightning.fullgrad.operation import operation_name, tensors_in
from fg_lightning.fullgrad.torch_internals import add_gradient_hook, is_transformed

FAULTY = frozenset(
    "batch_norm instance_norm native_batch_norm batch_norm_impl_index native_batch_norm_legit native_batch_norm_legit_no_training "
    "slice_scatter select_scatter gelu".split()
)
"""Names of operations whose backward pass is wrong for some gradients."""


def avoid_faults(function: Callable[..., Any], result: Any) -> None:
    """Brings the gradients of an operation that was run into a memory layout that its backward pass handles."""
    if operation_name(function) not in FAULTY:
        return
    for output in tensors_in(result):
        if output.requires_grad and not is_transformed(output):
            add_gradient_hook(output, partial(_lay_out, output.shape, output.stride()))


def _lay_out(shape: torch.Size, strides: tuple[int, ...], gradient: Tensor | None) -> Tensor | None:
    """A gradient with these strides: itself if it has them. None stays None, as for an output without a derivative."""
    if gradient is None or gradient.stride() == strides:
        return gradient
    return torch.empty_strided(shape, strides, dtype=gradient.dtype, device=gradient.device).copy_(gradient)
