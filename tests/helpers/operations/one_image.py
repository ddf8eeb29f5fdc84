"""Operations on a single image [1, C, *S], which is where torch cannot tell one order of dimensions from another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import ops

from tests.helpers.operations.definition import Case, const, z

SHAPES = [(1, 8, 6), (1, 8, 4, 8), (1, 8, 4, 1), (1, 8, 1, 4), (2, 8, 4, 1), (1, 4, 3, 2, 4), (1, 4, 1, 2, 2)]

Operation = Callable[[Tensor], Any]


def constant(x: Tensor, *shape: int) -> Tensor:
    return const(*shape).to(x.dtype)


def statistics(x: Tensor, seed: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance, weight and bias for each channel."""
    own = (const(x.shape[1], seed=seed + i).to(x.dtype) for i in range(4))
    mean, variance, weight, bias = own
    return mean, variance.abs() + 0.3, weight, bias


def with_statistics(function: Callable[..., Any]) -> Operation:
    return lambda x: function(x, *statistics(x))


def convolution(name: str, groups: int, stride: int, size: int) -> Operation:
    def apply(x: Tensor) -> Tensor:
        d, c = x.ndim - 2, x.shape[1]
        n = c if groups == 0 else groups  # 0 for a filter for each channel
        shape = (c, 2 * c // n) if name == "conv_transpose" else (2 * c, c // n)
        weight = constant(x, *shape, *(size,) * d)
        return getattr(F, f"{name}{d}d")(x, weight, constant(x, 2 * c), stride=stride, padding=size // 2, groups=n)

    return apply


def of_dimension(name: str, *args: Any, **kwargs: Any) -> Operation:
    """`avg_pool` as avg_pool1d, avg_pool2d or avg_pool3d."""
    return lambda x: getattr(F, f"{name}{x.ndim - 2}d")(x, *args, **kwargs)


aten = torch.ops.aten

NORMS: dict[str, Operation] = {
    "batch_norm": with_statistics(lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b)),
    "batch_norm without weights": with_statistics(lambda x, m, v, w, b: F.batch_norm(x, m, v)),
    "batch_norm by its own statistics": with_statistics(lambda x, m, v, w, b: F.batch_norm(x, None, None, w, b, training=True)),
    "native_batch_norm": with_statistics(lambda x, m, v, w, b: torch.native_batch_norm(x, w, b, m, v, False, 0.1, 1e-5)[0]),
    "_batch_norm_impl_index": with_statistics(
        lambda x, m, v, w, b: torch._batch_norm_impl_index(x, w, b, m, v, False, 0.1, 1e-5, True)[0]
    ),
    "_native_batch_norm_legit_no_training": with_statistics(
        lambda x, m, v, w, b: aten._native_batch_norm_legit_no_training(x, w, b, m, v, 0.1, 1e-5)[0]
    ),
    "_native_batch_norm_legit": with_statistics(
        lambda x, m, v, w, b: aten._native_batch_norm_legit.no_stats(x, w, b, True, 0.1, 1e-5)[0]
    ),
    "instance_norm": with_statistics(lambda x, m, v, w, b: F.instance_norm(x, weight=w, bias=b)),
    "instance_norm by running statistics": with_statistics(
        lambda x, m, v, w, b: F.instance_norm(x, m, v, w, b, use_input_stats=False)
    ),
    "group_norm": with_statistics(lambda x, m, v, w, b: F.group_norm(x, 2, w, b)),
    "group_norm of one group": lambda x: F.group_norm(x, 1),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "layer_norm over all": lambda x: F.layer_norm(x, x.shape[1:]),
    "layer_norm over channels": lambda x: F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1),
    "rms_norm": lambda x: F.rms_norm(x, x.shape[-1:]),
    "local_response_norm": lambda x: F.local_response_norm(x, 3),
}

ELEMENTWISE: dict[str, Operation] = {
    **{name: getattr(F, name) for name in "relu leaky_relu elu celu selu silu gelu mish softplus logsigmoid hardsigmoid".split()},
    **{name: getattr(F, name) for name in "hardswish hardtanh relu6 hardshrink softshrink tanhshrink softsign".split()},
    **{name: getattr(torch, name) for name in "sigmoid tanh exp sin abs square erf sinc".split()},
    "gelu by tanh": partial(F.gelu, approximate="tanh"),
    "prelu": lambda x: F.prelu(x, constant(x, x.shape[1])),
    "masked_fill": lambda x: x.masked_fill(torch.ones(x.shape).tril(1) > 0, 0.0),
    "where": lambda x: torch.where(torch.ones(x.shape).tril(1) > 0, x, 0.0),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "x * x": lambda x: x * x,
    "x / c": lambda x: x / constant(x, *x.shape).exp(),
}

ALONG: dict[str, Operation] = {
    "softmax": lambda x: (x.softmax(1), x.softmax(-1)),
    "log_softmax": lambda x: (x.log_softmax(1), x.log_softmax(-1)),
    "glu": lambda x: F.glu(x, 1),
    "cumulated": lambda x: (x.cumsum(1), x.cumsum(-1), x.cumprod(-1), x.logcumsumexp(1), x.cummax(1)[0]),
    "sorted": lambda x: (x.sort(1)[0], x.topk(2, 1)[0], x.kthvalue(2, 1)[0], x.median(1)[0], x.mode(1)[0]),
    "extrema": lambda x: (x.amax(1), x.amin(-1), x.max(1)[0], x.min(-1)[0]),
    "norms": lambda x: (x.norm(dim=1), x.norm(p=1, dim=1), x.norm(p=3, dim=1), x.norm(p=float("inf"), dim=1)),
    "normalize": lambda x: F.normalize(x, dim=1),
    "moments": lambda x: (x.mean(1), x.sum(-1), x.nansum(1), x.std(1), x.var(1)),
    "renorm": lambda x: x.renorm(2, 1, 0.5),
    "moved": lambda x: (
        x.flip(1),
        x.roll(1, -1),
        x.movedim(1, -1),
        x.diagonal(0, 1, 2),
        x.tril(),
        x.flatten(1),
        x.unflatten(1, (2, -1)),
    ),
    "repeated": lambda x: (
        x.repeat(1, 2, *(1,) * (x.ndim - 2)),
        x.repeat_interleave(2, 1),
        torch.cat([x, x], 1),
        torch.stack([x, x], 1),
    ),
    "picked": lambda x: (
        x[:, [1, 0, 1]],
        x[:, ::2],
        x[..., None, 0],
        x.index_select(1, torch.tensor([1, 0, 1])),
        *x.chunk(2, 1),
        x[:, 0],
    ),
    "gathered": lambda x: x.gather(1, torch.zeros(x.shape, dtype=torch.long)),
    "scattered": lambda x: (
        x.scatter(1, torch.zeros(x.shape, dtype=torch.long), x),
        x.index_add(1, torch.tensor([0]), x[:, :1]),
        x.index_copy(1, torch.tensor([0]), x[:, 1:2]),
        x.slice_scatter(x[:, :2], 1, 1, 3),
        x.select_scatter(x[:, 0], 1, 1),
    ),
    "channel_shuffle": lambda x: torch.channel_shuffle(x, 2),
    "padded": lambda x: (F.pad(x, (1, 1), value=2.0), F.pad(x, (1, 0) * (x.ndim - 2), mode="replicate")),
}

PRODUCTS: dict[str, Operation] = {
    "einsum": lambda x: torch.einsum("nc...,cd->nd...", x, constant(x, x.shape[1], 5)),
    "matmul": lambda x: (x @ constant(x, x.shape[-1], 3), x.mT @ constant(x, x.shape[-2], 3), x @ x.mT),
    "linear": lambda x: F.linear(x, constant(x, 3, x.shape[-1]), constant(x, 3)),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x.sin()),
    "cdist": lambda x: torch.cdist(x, x.flip(1)),
    "fft": lambda x: (torch.view_as_real(torch.fft.rfft(x)), torch.view_as_real(torch.fft.fft2(x))),
    **{
        f"{name}, {groups or 'as many'} groups, stride {stride}, size {size}": convolution(name, groups, stride, size)
        for name, groups, stride, size in product(("conv", "conv_transpose"), (1, 2, 0), (1, 2), (3, 1))
    },
}

WINDOWS: dict[str, Operation] = {
    "avg_pool": of_dimension("avg_pool", 3, 1, 1),
    "max_pool": of_dimension("max_pool", 3, 1, 1),
    **{f"adaptive_avg_pool to {size}": of_dimension("adaptive_avg_pool", size) for size in (1, 2, 3)},
    **{f"adaptive_max_pool to {size}": of_dimension("adaptive_max_pool", size) for size in (1, 2, 3)},
    "interpolate": lambda x: [F.interpolate(x, scale_factor=size) for size in (0.5, 1.5, 2) if size >= 1 or min(x.shape[2:]) > 1],
    "interpolate linearly": lambda x: F.interpolate(x, scale_factor=1.5, mode=("linear", "bilinear", "trilinear")[x.ndim - 3]),
}

PLANES: dict[str, Operation] = {
    "interpolate bicubically": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "interpolate with antialiasing": lambda x: F.interpolate(x, size=(3, 1), mode="bilinear", antialias=True),
    "unfold": lambda x: F.unfold(x, 3, padding=1),
    "grid_sample": lambda x: F.grid_sample(x, (constant(x, 1, 5, 3, 2) / 3).expand(len(x), -1, -1, -1), align_corners=False),
    "roi_align": lambda x: ops.roi_align(x, x.new_tensor([[0, 0.2, 0.3, 3.4, 2.9]]), 2),
    "deform_conv2d": lambda x: ops.deform_conv2d(
        x, constant(x, len(x), 18, *x.shape[2:]), constant(x, 3, x.shape[1], 3, 3), padding=1
    ),
}


def _fitting() -> Iterator[tuple[str, Case]]:
    for shape in SHAPES:
        tables = NORMS | ELEMENTWISE | ALONG | PRODUCTS | WINDOWS | (PLANES if len(shape) == 4 else {})
        for name, function in tables.items():
            yield f"{name} of {shape}", Case(function, (z(*shape),))


ONE_IMAGE = dict(_fitting())
