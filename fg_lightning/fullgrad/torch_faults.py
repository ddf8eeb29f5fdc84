"""Faults of torch's backward passes that depend on how a gradient lies in memory, and how they are avoided.

Batch norm on a CPU (as of torch 2.14) reads its operand and its gradient in one order. Where they lie in different orders, and a
dimension of size 1 hides it (one image, or tokens as [N, C, L, 1]), the result is wrong by as much as its own size. That holds for
training and evaluation, float32 and float64, and for instance norm. A contiguous gradient does not help if the operand is not.
A gradient that overlaps itself breaks `slice_scatter` and `select_scatter`, which write to it, and `gelu` refuses it.
All of them are right for a gradient that lies as the operation's output does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fg_lightning.fullgrad.call import operation_name, tensors_in

FAULTY = frozenset(
    "batch_norm instance_norm native_batch_norm batch_norm_impl_index native_batch_norm_legit native_batch_norm_legit_no_training "
    "slice_scatter select_scatter gelu".split()
)
"""By name, operations whose backward pass is wrong for some gradients."""


def avoid_faults(function: Callable[..., Any], result: Any) -> None:
    """See to it that an operation that was run gets its gradients as its backward pass can take them."""
    if operation_name(function) not in FAULTY:
        return
    for output in tensors_in(result):
        if output.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(output):
            output.register_hook(partial(_laid_out, output.shape, output.stride()))


def _laid_out(shape: torch.Size, strides: tuple[int, ...], gradient: Tensor | None) -> Tensor | None:
    """A gradient with these strides; itself if it has them, or if none comes, as behind what cannot be differentiated."""
    if gradient is None or gradient.stride() == strides:
        return gradient
    return torch.empty_strided(shape, strides, dtype=gradient.dtype, device=gradient.device).copy_(gradient)
