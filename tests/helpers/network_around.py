"""A network around a function that is tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

EXACT = 1e-10  # float64 sums of a few hundred numbers


class Between(nn.Module):
    """A convolution, what is tried, and a linear head."""

    def __init__(self, inner: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)
        self.inner = inner
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.stem(x) * 1).mean((2, 3)))


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# --- backward passes of users -----------------------------------------------------------------------------------------------


def custom(backward: Callable[..., Any], forward: Callable[..., Any] = lambda z: z.sin() + z) -> Callable[..., Tensor]:
    """A function with this backward pass: (gradient, operands) -> the operands' gradients."""

    class Custom(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *operands: Tensor) -> Tensor:
            ctx.save_for_backward(*operands)
            return forward(*operands)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            return backward(gradient, *ctx.saved_tensors)

    return Custom.apply
