"""Homogeneous operations, products and convolutions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.helpers.operations.definition import cases, const, in_place, positive, z

HOMOGENEOUS = cases(
    {
        "relu": (lambda x: x.relu(), z(2, 3)),
        "relu_": (in_place(lambda x: torch.relu_(x)), z(2, 3)),
        "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), z(2, 3)),
        "rrelu": (lambda x: F.rrelu(x, training=True), z(4, 5)),
        "abs": (lambda x: abs(x), z(2, 3)),
        "absolute": (lambda x: x.absolute(), z(2, 3)),
        "max_pool1d": (lambda x: F.max_pool1d(x, 2), z(1, 2, 4)),
        "max_pool2d": (lambda x: F.max_pool2d(x, 2), z(1, 2, 4, 4)),
        "max_pool3d": (lambda x: F.max_pool3d(x, 2), z(1, 1, 4, 4, 4)),
        "max_pool1d_with_indices": (lambda x: F.max_pool1d(x, 2, return_indices=True), z(1, 2, 4)),
        "max_pool2d_with_indices": (lambda x: F.max_pool2d(x, 2, return_indices=True), z(1, 2, 4, 4)),
        "max_pool3d_with_indices": (lambda x: F.max_pool3d(x, 2, return_indices=True), z(1, 1, 4, 4, 4)),
        "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x, 2), z(1, 2, 5)),
        "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, 2), z(1, 2, 5, 5)),
        "adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(x, 2), z(1, 1, 4, 4, 4)),
        "fractional_max_pool2d": (lambda x: F.fractional_max_pool2d(x, 2, output_size=2), z(1, 2, 5, 5)),
        "fractional_max_pool3d": (lambda x: F.fractional_max_pool3d(x, 2, output_size=2), z(1, 1, 5, 5, 5)),
        "max_unpool1d": (lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2), z(1, 2, 4)),
        "max_unpool2d": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), z(1, 2, 4, 4)),
        "max_unpool3d": (lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2), z(1, 1, 4, 4, 4)),
        "amax": (lambda x: x.amax(1), z(2, 3)),
        "amin": (lambda x: x.amin((0, 1)), z(2, 3)),
        "aminmax": (lambda x: torch.aminmax(x), z(2, 3)),
        "sort": (lambda x: x.sort(1), z(2, 3)),
        "topk": (lambda x: x.topk(2, 1), z(2, 3)),
        "kthvalue": (lambda x: x.kthvalue(2, 1), z(2, 3)),
        "median": (lambda x: (x.median(), x.median(1)), z(2, 3)),
        "cummax": (lambda x: x.cummax(1), z(2, 3)),
        "cummin": (lambda x: x.cummin(1), z(2, 3)),
        "mode": (lambda x: x.mode(1), z(2, 3)),
        "std": (lambda x: (x.std(), x.std(1, correction=0)), z(2, 3)),
        "norm": (lambda x: (x.norm(), x.norm(dim=1), torch.norm(x, p=3)), z(2, 3)),
        "linalg_vector_norm": (lambda x: torch.linalg.vector_norm(x, 3, dim=1), z(2, 3)),
        "norm that counts": (lambda x: (x.norm(p=0), x.sum()), z(2, 3)),
        "norm to infinity": (lambda x: x.norm(p=math.inf), z(2, 3)),
        "linalg_norm": (lambda x: torch.linalg.norm(x), z(2, 3)),
        "linalg_matrix_norm": (lambda x: torch.linalg.matrix_norm(x), z(2, 3)),
        "normalize": (lambda x: F.normalize(x, dim=1), z(2, 3)),
        "maximum": (lambda x, y: torch.maximum(x, y), z(2, 3), z(2, 3)),
        "minimum": (lambda x, y: torch.minimum(x, y), z(2, 3), z(2, 3)),
        "fmax": (lambda x, y: torch.fmax(x, y), z(2, 3), z(2, 3)),
        "fmin": (lambda x, y: torch.fmin(x, y), z(2, 3), z(2, 3)),
        "max of two": (lambda x, y: torch.max(x, y), z(2, 3), z(2, 3)),
        "min of two": (lambda x, y: torch.min(x, y), z(2, 3), z(2, 3)),
        "max with a constant": (lambda x: torch.max(x, other=const(2, 3)), z(2, 3)),
        "maximum with a constant": (lambda x: torch.maximum(const(2, 3), x), z(2, 3)),
        "minimum with a constant": (lambda x: torch.minimum(x, const(3)), z(2, 3)),
        "fmax with a constant": (lambda x: torch.fmax(x, const(3)), z(2, 3)),
        "max": (lambda x: (x.max(), x.max(1), torch.max(x, dim=0)), z(2, 3)),
        "min": (lambda x: (x.min(), x.min(1)), z(2, 3)),
    }
)

PRODUCTS = cases(
    {
        "x * y": (lambda x, y: x * y, z(2, 3), z(2, 3)),
        "x * x": (lambda x: x * x, z(2, 3)),
        "x * c": (lambda x: x * const(2, 3), z(2, 3)),
        "2 * x": (lambda x: 2 * x, z(2, 3)),
        "mul by keyword": (lambda x, y: torch.mul(x, other=y), z(2, 3), z(3)),
        "multiply, broadcast": (lambda x, y: torch.multiply(x, y), z(2, 3), z(2, 1)),
        "x.mul_(y)": (in_place(lambda x, y: x.mul_(y)), z(2, 3), z(2, 3)),
        "x *= c": (in_place(lambda x: x.mul_(const(3))), z(2, 3)),
        "c.mul_(x)": (lambda x: const(2, 3).clone().mul_(x), z(2, 3)),
        "x / y": (lambda x, y: x / y, z(2, 3), positive(2, 3)),
        "x / 2": (lambda x: x / 2, z(2, 3)),
        "2 / x": (lambda x: 2 / x, positive(2, 3)),
        "c / x": (lambda x: const(2, 3) / x, positive(2, 3)),
        "div by keyword": (lambda x, y: torch.div(x, other=y), z(2, 3), positive(2, 3)),
        "div, rounded": (lambda x: torch.div(x, 0.3, rounding_mode="floor"), z(2, 3)),
        "x.div_(y)": (in_place(lambda x, y: x.div_(y)), z(2, 3), positive(2, 3)),
        "x.div_(c)": (in_place(lambda x: x.div_(const(3))), z(2, 3)),
        "x ** 3": (lambda x: x**3, z(2, 3)),
        "x ** 1": (lambda x: x**1, z(2, 3)),
        "x ** c": (lambda x: x ** const(3), positive(2, 3)),
        "x ** y": (lambda x, y: x**y, positive(2, 3), z(2, 3)),
        "2 ** x": (lambda x: 2**x, z(2, 3)),
        "c ** x": (lambda x: torch.pow(const(2, 3).abs(), x), z(2, 3)),
        "pow by keyword": (lambda x: torch.pow(x, exponent=1.5), positive(2, 3)),
        "x.pow_(2)": (in_place(lambda x: x.pow_(2)), z(2, 3)),
        "square": (lambda x: x.square(), z(2, 3)),
        "square_": (in_place(lambda x: x.square_()), z(2, 3)),
        "var": (lambda x: (x.var(), x.var(1), torch.var(x, dim=0, correction=0)), z(2, 3)),
        "sqrt": (lambda x: x.sqrt(), positive(2, 3)),
        "sqrt_": (in_place(lambda x: x.sqrt_()), positive(2, 3)),
        "rsqrt": (lambda x: x.rsqrt(), positive(2, 3)),
        "reciprocal": (lambda x: x.reciprocal(), positive(2, 3)),
        **{name: (getattr(torch, name), z(2, 3)) for name in ("sign", "sgn", "floor", "ceil", "round", "trunc")},
        "einsum of one": (lambda x: torch.einsum("ij->ji", x), z(2, 3)),
        "einsum with a constant": (lambda x: torch.einsum("ij,jk->ik", x, const(3, 2)), z(2, 3)),
        "einsum of two": (lambda x, y: torch.einsum("bij,bkj->bik", x, y), z(2, 2, 3), z(2, 2, 3)),
        "einsum of three": (lambda x, y, w: torch.einsum("ij,jk,kl->il", [x, y, w]), z(2, 3), z(3, 2), z(2, 2)),
        "einsum of one twice": (lambda x: torch.einsum("ij,ij->i", x, x), z(2, 3)),
        "prelu": (lambda x: F.prelu(x, const(3)), z(2, 3)),
        "prelu with a dependent slope": (lambda x, w: F.prelu(x, w), z(2, 3), z(3)),
        "dot": (lambda x, y: (x.dot(y), x.dot(const(4))), z(4), z(4)),
        "inner": (lambda x, y: torch.inner(x, y), z(2, 3), z(2, 3)),
        "outer": (lambda x, y: torch.outer(x, y), z(2), z(3)),
        "prod": (lambda x: (x.prod(), x.prod(1)), z(2, 3)),
        "cumprod": (lambda x: x.cumprod(1), z(2, 3)),
        "matmul": (lambda x, y: x @ y, z(2, 2, 3), z(2, 3, 2)),
        "matmul with a constant on the left": (lambda x: const(4, 2) @ x, z(2, 3)),
        "matmul by keyword": (lambda x, y: torch.matmul(x, other=y), z(2, 3), z(3, 2)),
        "mm": (lambda x, y: torch.mm(x, y), z(2, 3), z(3, 2)),
        "bmm": (lambda x, y: (x.bmm(y), x.bmm(const(2, 3, 2))), z(2, 2, 3), z(2, 3, 2)),
        "mv": (lambda x, y: x.mv(y), z(2, 3), z(3)),
        "mm by keyword": (lambda x, y: torch.mm(x, mat2=y), z(2, 3), z(3, 2)),
        "bmm by keyword": (lambda x, y: torch.bmm(x, mat2=y), z(2, 2, 3), z(2, 3, 2)),
        "mv by keyword": (lambda x, y: torch.mv(x, vec=y), z(2, 3), z(3)),
        "addmm": (lambda x: torch.addmm(const(2), x, const(3, 2)), z(2, 3)),
        "addmm, beta and alpha": (lambda x, y: torch.addmm(const(2), x, y, beta=0.5, alpha=3), z(2, 3), z(3, 2)),
        "addmm, all dependent": (lambda c, x, y: torch.addmm(c, x, y, beta=0.5, alpha=3), z(2, 2), z(2, 3), z(3, 2)),
        "addmm, only the addend": (lambda c: torch.addmm(c, const(2, 3), const(3, 2), alpha=3), z(2, 2)),
        "x.addmm_": (in_place(lambda c, x: c.addmm_(x, const(3, 2), beta=2)), z(2, 2), z(2, 3)),
        "baddbmm": (lambda x, y: torch.baddbmm(const(2, 2, 2), x, y, beta=0.5, alpha=3), z(2, 2, 3), z(2, 3, 2)),
        "baddbmm, addend dependent": (lambda c, x: torch.baddbmm(c, x, const(2, 3, 2), beta=2), z(2, 2, 2), z(2, 2, 3)),
        "addmm by keyword": (lambda x: torch.addmm(const(2), mat1=x, mat2=const(3, 2)), z(2, 3)),
        "addmm, all by keyword": (lambda x, y: torch.addmm(input=const(2), mat1=x, mat2=y), z(2, 3), z(3, 2)),
        "baddbmm by keyword": (lambda x, y: torch.baddbmm(const(1, 2, 2), batch1=x, batch2=y), z(2, 2, 3), z(2, 3, 2)),
        "addmv by keyword": (lambda x, v: torch.addmv(const(2), mat=x, vec=v), z(2, 3), z(3)),
        "c.addmm_": (lambda x: const(2, 2).clone().addmm_(x, const(3, 2)), z(2, 3)),
        "c.baddbmm_": (lambda x, y: const(2, 2, 2).clone().baddbmm_(x, y, beta=3), z(2, 2, 3), z(2, 3, 2)),
        "x.baddbmm_, all dependent": (in_place(lambda c, x, y: c.baddbmm_(x, y, beta=3)), z(2, 2, 2), z(2, 2, 3), z(2, 3, 2)),
        "baddbmm that ignores its addend": (
            lambda x, y: torch.baddbmm(torch.full((2, 2, 2), math.nan).double(), x, y, beta=0, alpha=3),
            z(2, 2, 3),
            z(2, 3, 2),
        ),
        "addmm that ignores its addend": (
            lambda x: torch.addmm(torch.full((2, 2), math.nan).double(), x, const(3, 2), beta=0),
            z(2, 3),
        ),
        "addbmm": (lambda x, y: torch.addbmm(const(2, 2), x, y, beta=2), z(2, 2, 3), z(2, 3, 2)),
        "addmv": (lambda x, v: torch.addmv(const(2), x, v, beta=2), z(2, 3), z(3)),
        "linear": (lambda x: (F.linear(x, const(4, 3)), F.linear(x, const(4, 3), const(4))), z(2, 3)),
        "linear by keyword": (lambda x: F.linear(x, weight=const(4, 3), bias=const(4)), z(2, 3)),
        "linear, dependent weight": (lambda x, w: F.linear(x, w, const(4)), z(2, 3), z(4, 3)),
        "linear, only the weight": (lambda w: F.linear(const(2, 3), w, const(4)), z(4, 3)),
        "linear, only the bias": (lambda b: F.linear(const(2, 3), const(4, 3), b), z(4)),
        "linear, all dependent": (lambda x, w, b: F.linear(x, w, b), z(2, 3), z(4, 3), z(4)),
        "dynamic convolution": (lambda x, w, b: F.conv2d(x, w, b, padding=1), z(1, 2, 3, 3), z(2, 2, 3, 3), z(2)),
        "dynamic filter, constant bias": (lambda x, w: F.conv2d(x, w, const(2)), z(1, 2, 3, 3), z(2, 2, 2, 2)),
        "filter_response": (lambda w: F.conv2d(const(1, 2, 3, 3), w, const(2)), z(2, 2, 2, 2)),
    }
)

CONVOLUTIONS = cases(
    {
        f"{name}{d}d, {'with' if bias else 'without'} bias": (
            lambda x, name=name, d=d, bias=bias: getattr(F, f"{name}{d}d")(
                x, const(4, 2, *(2,) * d), const(4 if name == "conv" else 2) if bias else None, stride=2, padding=1
            ),
            z(1, 2 if name == "conv" else 4, *(3,) * d),
        )
        for name in ("conv", "conv_transpose")
        for d in (1, 2, 3)
        for bias in (False, True)
    }
)
