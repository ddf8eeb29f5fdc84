"""Every rule of the bias table against the definition, b = h(z) - J_h(z) z, in float64."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import activation, padding, pooling
from torchvision import ops

from fg_lightning.fullgrad import tape
from fg_lightning.fullgrad.biases import RULES
from fg_lightning.fullgrad.call import Call, tensors_in
from fg_lightning.fullgrad.linearisation import (
    NotDifferentiable,
    Pointwise,
    _double_reverse_mode,
    _forward_mode,
    computed,
    linearise,
)
from fg_lightning.fullgrad.record import record

# torch itself says so when forward-mode differentiation is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")

# Both sides are float64 sums of at most some hundred numbers of size one, or a few hundred in the products.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


class Operand(NamedTuple):
    """An operand that depends on the input."""

    shape: tuple[int, ...]
    values: Callable[[Tensor], Tensor] = lambda normal: normal


def z(*shape: int) -> Operand:
    return Operand(shape)


def positive(*shape: int) -> Operand:
    return Operand(shape, lambda normal: normal.abs() + 0.5)


def within_one(*shape: int) -> Operand:
    return Operand(shape, lambda normal: 0.9 * torch.tanh(normal))


def eighths(*shape: int) -> Operand:
    """Numbers that every floating-point type holds exactly, so that a cast does not round."""
    return Operand(shape, lambda normal: (normal * 8).round() / 8)


@lru_cache
def const(*shape: int, seed: int = 7) -> Tensor:
    """A constant; the same at each run of an operation."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Case(NamedTuple):
    function: Callable[..., Any]
    operands: tuple[Operand, ...]


class Operation(nn.Module):
    """An operation on operands cut out of one input, weighed by random numbers and summed up.

    A bias that is wrong anywhere is wrong in such a sum, but for weights that happen to be orthogonal to the error.
    """

    def __init__(self, case: Case, seed: int = 0) -> None:
        super().__init__()
        self.case = case
        self.seed = seed

    def forward(self, x: Tensor) -> Tensor:
        flat, operands, start = x.flatten(), [], 0
        for operand in self.case.operands:
            size = math.prod(operand.shape)
            operands.append(flat[start : start + size].reshape(operand.shape).clone())
            start += size
        torch.manual_seed(5)  # for the operations that draw random numbers
        results = self.case.function(*operands)
        generator = torch.Generator().manual_seed(self.seed)
        total = torch.zeros((), dtype=torch.float64)
        for y in tensors_in(results):
            if y.requires_grad:
                y = torch.view_as_real(y.resolve_conj()) if y.is_complex() else y
                # Quarters, so that a cast to half precision does not round the gradient.
                weights = torch.randint(-8, 9, y.shape, generator=generator).to(torch.float64) / 4 + 0.125
                total = total + (weights * y).masked_fill(~y.isfinite(), 0).sum()
        return total.reshape(1)


def values_of(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    parts = [
        operand.values(torch.randn(operand.shape, generator=generator, dtype=torch.float64)).flatten() for operand in case.operands
    ]
    return torch.cat(parts).reshape(1, 1, -1)


def sum_of_biases(case: Case) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)

    def visit(term: Any, bias: Tensor | Pointwise, gradient: Tensor) -> None:
        bias = computed(bias)
        total.add_((gradient.conj() * bias).real.sum() if gradient.is_complex() else (gradient * bias).sum())

    recording = record(Operation(case), values_of(case), lambda output: output, visit)
    assert not recording.unaccounted
    return total


def bias_by_definition(case: Case) -> Tensor:
    x, model = values_of(case), Operation(case)
    jacobian = torch.autograd.functional.jacobian(model, x)
    return (model(x.clone().requires_grad_()) - (jacobian * x).sum()).detach().squeeze()


def check(case: Case) -> None:
    torch.testing.assert_close(sum_of_biases(case), bias_by_definition(case), **TOLERANCE)


def cases(table: dict[str, tuple[Any, ...]]) -> dict[str, Case]:
    return {name: Case(row[0], tuple(row[1:])) for name, row in table.items()}


def in_place(change: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """The operand after a change, which has been used before it as well."""

    def function(x: Tensor, *others: Tensor) -> Tensor:
        changed = x * 1.5
        before = torch.sin(changed.clone())
        change(changed, *others)
        return changed + before

    return function


def set_item(index: Any, value: Any) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor, *others: Tensor) -> None:
        x[index] = others[0] if others else value

    return in_place(change)


MASK = torch.tensor([[True, False, True], [False, True, False]])
INDEX = torch.tensor([[0, 2, 1], [1, 0, 2]])

MOVING = cases(
    {
        "view": (lambda x: x.view(3, 2), z(2, 3)),
        "reshape": (lambda x: torch.reshape(x, (6,)), z(2, 3)),
        "flatten": (lambda x: x.flatten(1), z(2, 3, 2)),
        "flatten by keyword": (lambda x: torch.flatten(x, start_dim=1), z(2, 3, 2)),
        "unflatten": (lambda x: x.unflatten(1, (2, 2)), z(2, 4)),
        "ravel": (lambda x: x.ravel(), z(2, 3)),
        "squeeze": (lambda x: x.squeeze(1), z(2, 1, 3)),
        "unsqueeze": (lambda x: x.unsqueeze(1), z(2, 3)),
        "unsqueeze_": (in_place(lambda x: x.unsqueeze_(0).squeeze_(0)), z(2, 3)),
        "permute": (lambda x: x.permute(2, 0, 1), z(2, 3, 2)),
        "transpose": (lambda x: x.transpose(0, 1), z(2, 3)),
        "swapaxes": (lambda x: x.swapaxes(0, 1), z(2, 3)),
        "movedim": (lambda x: x.movedim(0, 1), z(2, 3)),
        "moveaxis": (lambda x: torch.moveaxis(x, 0, 1), z(2, 3)),
        "t": (lambda x: x.t(), z(2, 3)),
        "T": (lambda x: x.T, z(2, 3)),
        "mT": (lambda x: x.mT, z(2, 3)),
        "H": (lambda x: x.H, z(2, 3)),
        "mH": (lambda x: x.mH, z(2, 3)),
        "adjoint": (lambda x: x.adjoint(), z(2, 3)),
        "expand": (lambda x: x.expand(4, 3), z(1, 3)),
        "expand_as": (lambda x: x.expand_as(const(4, 3)), z(1, 3)),
        "view_as": (lambda x: x.view_as(const(6)), z(2, 3)),
        "reshape_as": (lambda x: x.reshape_as(const(6)), z(2, 3)),
        "repeat": (lambda x: x.repeat(2, 2), z(2, 3)),
        "tile": (lambda x: x.tile(2, 2), z(2, 3)),
        "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), z(2, 3)),
        "narrow": (lambda x: x.narrow(1, 1, 2), z(2, 3)),
        "select": (lambda x: x.select(1, 1), z(2, 3)),
        "split": (lambda x: x.split(2, 1), z(2, 3)),
        "split_with_sizes": (lambda x: torch.split_with_sizes(x, [1, 2], 1), z(2, 3)),
        "chunk": (lambda x: x.chunk(2, 1), z(2, 4)),
        "tensor_split": (lambda x: x.tensor_split(2, 1), z(2, 3)),
        "unbind": (lambda x: x.unbind(1), z(2, 3)),
        "iteration": (lambda x: [row * row for row in x], z(2, 3)),
        "getitem": (lambda x: (x[:, 1:], x[0], x[INDEX[1, :2]], x[MASK], x[..., None]), z(2, 3)),
        "index_select": (lambda x: x.index_select(1, torch.tensor([2, 0])), z(2, 3)),
        "gather": (lambda x: x.gather(1, INDEX), z(2, 3)),
        "take": (lambda x: x.take(INDEX), z(2, 3)),
        "take_along_dim": (lambda x: x.take_along_dim(INDEX, 1), z(2, 3)),
        "diagonal": (lambda x: x.diagonal(), z(3, 3)),
        "diag": (lambda x: x.diag(), z(3, 3)),
        "tril": (lambda x: x.tril(), z(3, 3)),
        "triu": (lambda x: x.triu(1), z(3, 3)),
        "flip": (lambda x: x.flip(1), z(2, 3)),
        "fliplr": (lambda x: x.fliplr(), z(2, 3)),
        "flipud": (lambda x: x.flipud(), z(2, 3)),
        "roll": (lambda x: x.roll(1, 1), z(2, 3)),
        "rot90": (lambda x: x.rot90(), z(2, 3)),
        "unfold": (lambda x: x.unfold(1, 2, 1), z(2, 4)),
        "im2col": (lambda x: F.unfold(x, 2), z(1, 2, 3, 3)),
        "col2im": (lambda x: F.fold(x, (3, 3), 2), z(1, 8, 4)),
        "as_strided": (lambda x: x.as_strided((2, 2), (3, 1)), z(2, 3)),
        "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), z(1, 4, 2, 2)),
        "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), z(1, 1, 4, 4)),
        "channel_shuffle": (lambda x: torch.channel_shuffle(x, 2), z(1, 4, 2, 2)),
        "clone": (lambda x: x.clone(), z(2, 3)),
        "contiguous": (lambda x: x.T.contiguous(), z(2, 3)),
        "to": (lambda x: x.to(torch.float32), eighths(2, 3)),
        "type": (lambda x: x.type(torch.float32), eighths(2, 3)),
        "float": (lambda x: x.float(), eighths(2, 3)),
        "double": (lambda x: x.float().double(), eighths(2, 3)),
        "half": (lambda x: x.half(), eighths(2, 3)),
        "bfloat16": (lambda x: x.bfloat16(), eighths(2, 3)),
        "type_as": (lambda x: x.type_as(const(1).float()), eighths(2, 3)),
        "cpu": (lambda x: x.cpu() * 2, z(2, 3)),
        "alias": (lambda x: torch.ops.aten.alias(x), z(2, 3)),
        "view_as_complex and real": (lambda x: torch.view_as_real(torch.view_as_complex(x) * 1j), z(3, 2)),
        "real": (lambda x: torch.view_as_complex(x).real, z(3, 2)),
        "imag": (lambda x: torch.view_as_complex(x).imag, z(3, 2)),
        "conj": (lambda x: torch.view_as_complex(x).conj(), z(3, 2)),
        "conj_physical": (lambda x: torch.view_as_complex(x).conj_physical(), z(3, 2)),
        "resolve_conj": (lambda x: torch.view_as_complex(x).conj().resolve_conj(), z(3, 2)),
        "resolve_neg": (lambda x: torch.view_as_complex(x).conj().imag.resolve_neg(), z(3, 2)),
        "positive": (lambda x: +x, z(2, 3)),
        "torch.positive": (lambda x: torch.positive(x), z(2, 3)),
        "requires_grad_": (lambda x: x.requires_grad_() * 2, z(2, 3)),
        "requires_grad read": (lambda x: x * float(x.requires_grad), z(2, 3)),
        "atleast_1d": (lambda x: torch.atleast_1d(x.sum()), z(2, 3)),
        "atleast_2d": (lambda x: torch.atleast_2d(x), z(3)),
        "atleast_3d": (lambda x: torch.atleast_3d(x), z(2, 3)),
    }
)

AVERAGING = cases(
    {
        "sum": (lambda x: (x.sum(), x.sum(1), torch.sum(x, dim=0, keepdim=True)), z(2, 3)),
        "mean": (lambda x: (x.mean(), x.mean((0, 1))), z(2, 3)),
        "nansum": (lambda x: x.nansum(1), z(2, 3)),
        "cumsum": (lambda x: x.cumsum(1), z(2, 3)),
        "trace": (lambda x: x.trace(), z(3, 3)),
        "neg": (lambda x: -x, z(2, 3)),
        "negative": (lambda x: torch.negative(x), z(2, 3)),
        "neg_": (in_place(lambda x: x.neg_()), z(2, 3)),
        "avg_pool1d": (lambda x: F.avg_pool1d(x, 2), z(1, 2, 4)),
        "avg_pool2d": (lambda x: F.avg_pool2d(x, 2, padding=1, count_include_pad=False), z(1, 2, 4, 4)),
        "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), z(1, 1, 4, 4, 4)),
        "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 2), z(1, 2, 5)),
        "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 2), z(1, 2, 5, 5)),
        "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 2), z(1, 1, 3, 3, 3)),
        "upsample_nearest1d": (lambda x: F.interpolate(x, 5), z(1, 2, 3)),
        "upsample_nearest2d": (lambda x: F.interpolate(x, scale_factor=2), z(1, 2, 3, 3)),
        "upsample_nearest3d": (lambda x: F.interpolate(x, 3), z(1, 1, 2, 2, 2)),
        "upsample_linear1d": (lambda x: F.interpolate(x, 5, mode="linear"), z(1, 2, 3)),
        "upsample_bilinear2d": (lambda x: F.interpolate(x, 5, mode="bilinear", align_corners=True), z(1, 2, 3, 3)),
        "upsample_bicubic2d": (lambda x: F.interpolate(x, 5, mode="bicubic"), z(1, 2, 3, 3)),
        "upsample_trilinear3d": (lambda x: F.interpolate(x, 3, mode="trilinear"), z(1, 1, 2, 2, 2)),
        "upsample_bilinear2d_aa": (lambda x: F.interpolate(x, 3, mode="bilinear", antialias=True), z(1, 2, 5, 5)),
        "upsample_bicubic2d_aa": (lambda x: F.interpolate(x, 3, mode="bicubic", antialias=True), z(1, 2, 5, 5)),
        "upsample_nearest_exact2d": (lambda x: F.interpolate(x, 5, mode="nearest-exact"), z(1, 2, 3, 3)),
        **{f"fft_{name}": (getattr(torch.fft, name), z(4, 4)) for name in ("fft", "ifft", "rfft", "fft2", "ifft2", "rfft2")},
        **{f"fft_{name}": (getattr(torch.fft, name), z(4, 4)) for name in ("fftn", "ifftn", "fftshift", "ifftshift")},
        "fft_irfft": (lambda x: torch.fft.irfft(torch.fft.rfft(x) * const(4, 3)), z(4, 4)),
        "fft_irfft2": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * const(4, 3)), z(4, 4)),
        "a gate in Fourier space": (lambda x, g: torch.fft.irfft(torch.fft.rfft(x) * g), z(4, 4), z(4, 3)),
        "power spectrum": (lambda x: torch.fft.rfft(x).abs().square(), z(4, 4)),
        "dropout": (lambda x: F.dropout(x, 0.5, training=True), z(4, 5)),
        "feature_dropout": (lambda x: F.dropout2d(x, 0.5, training=True), z(2, 4, 2, 2)),
        "native_dropout": (lambda x: torch.native_dropout(x, 0.5, True)[0], z(4, 5)),
        "dropout, nothing dropped": (lambda x: F.dropout(x, 0.5, training=False), z(4, 5)),
    }
)

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
        "addmm": (lambda x: torch.addmm(const(2), x, const(3, 2)), z(2, 3)),
        "addmm, beta and alpha": (lambda x, y: torch.addmm(const(2), x, y, beta=0.5, alpha=3), z(2, 3), z(3, 2)),
        "addmm, all dependent": (lambda c, x, y: torch.addmm(c, x, y, beta=0.5, alpha=3), z(2, 2), z(2, 3), z(3, 2)),
        "addmm, only the addend": (lambda c: torch.addmm(c, const(2, 3), const(3, 2), alpha=3), z(2, 2)),
        "x.addmm_": (in_place(lambda c, x: c.addmm_(x, const(3, 2), beta=2)), z(2, 2), z(2, 3)),
        "baddbmm": (lambda x, y: torch.baddbmm(const(2, 2, 2), x, y, beta=0.5, alpha=3), z(2, 2, 3), z(2, 3, 2)),
        "baddbmm, addend dependent": (lambda c, x: torch.baddbmm(c, x, const(2, 3, 2), beta=2), z(2, 2, 2), z(2, 2, 3)),
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

ADDING = cases(
    {
        "x + y": (lambda x, y: x + y, z(2, 3), z(3)),
        "x + c": (lambda x: x + const(3), z(2, 3)),
        "c + x": (lambda x: const(2, 3) + x, z(3)),
        "x + 2": (lambda x: x + 2, z(2, 3)),
        "x + 0.1": (lambda x: x + 0.1, z(2, 3)),
        "0.1 - x": (lambda x: 0.1 - x, z(2, 3)),
        "2 + x": (lambda x: 2 + x, z(2, 3)),
        "x - c": (lambda x: x - const(3), z(2, 3)),
        "c - x": (lambda x: const(3) - x, z(2, 3)),
        "1 - x": (lambda x: 1 - x, z(2, 3)),
        "x - 1": (lambda x: x - 1, z(2, 3)),
        "x - y": (lambda x, y: x - y, z(2, 3), z(2, 3)),
        "add, alpha on the constant": (lambda x: torch.add(x, const(3), alpha=2.5), z(2, 3)),
        "add, alpha on the input": (lambda x: torch.add(const(3), x, alpha=2.5), z(2, 3)),
        "add by keyword": (lambda x: torch.add(x, other=const(3)), z(2, 3)),
        "sub, alpha on the constant": (lambda x: torch.sub(x, const(3), alpha=2.5), z(2, 3)),
        "sub, alpha on the input": (lambda x: torch.subtract(const(3), x, alpha=2.5), z(2, 3)),
        "rsub, alpha on the input": (lambda x: torch.rsub(x, const(3), alpha=2.5), z(2, 3)),
        "rsub, alpha on the constant": (lambda x: torch.rsub(const(3), x, alpha=2.5), z(2, 3)),
        "x.add_(c)": (in_place(lambda x: x.add_(const(3), alpha=2)), z(2, 3)),
        "x.add_(y)": (in_place(lambda x, y: x.add_(y)), z(2, 3), z(2, 3)),
        "c.add_(x)": (lambda x: const(2, 3).clone().add_(x), z(2, 3)),
        "x.sub_(1)": (in_place(lambda x: x.sub_(1)), z(2, 3)),
        "x + True": (lambda x: x + MASK, z(2, 3)),
        "cat": (lambda x, y: torch.cat([x, y], 1), z(2, 3), z(2, 1)),
        "cat with a constant": (lambda x: torch.cat([const(2, 1), x], dim=1), z(2, 3)),
        "concat": (lambda x: torch.concat((x, x, const(1, 3)), axis=0), z(2, 3)),
        "stack": (lambda x, y: torch.stack([x, y, const(2, 3)], 1), z(2, 3), z(2, 3)),
        "hstack": (lambda x: torch.hstack([x, const(2, 3)]), z(2, 3)),
        "vstack": (lambda x: torch.vstack([x, const(2, 3)]), z(2, 3)),
        "where": (lambda x, y: torch.where(MASK, x, y), z(2, 3), z(2, 3)),
        "where with a constant": (lambda x: (torch.where(MASK, x, 2.0), torch.where(MASK, const(2, 3), x)), z(2, 3)),
        "masked_fill": (lambda x: x.masked_fill(MASK, 3.0), z(2, 3)),
        "masked_fill_": (in_place(lambda x: x.masked_fill_(MASK, 3.0)), z(2, 3)),
        "masked_fill with a dependent value": (lambda x, v: x.masked_fill(MASK, v.sum()), z(2, 3), z(1)),
        "masked_fill with infinity": (lambda x: x.masked_fill(MASK, -math.inf), z(2, 3)),
        "masked_scatter": (lambda x: x.masked_scatter(MASK, const(3)), z(2, 3)),
        "x[:, 0] = c": (set_item((slice(None), 0), const(2)), z(2, 3)),
        "x[:, 0] = 3": (set_item((slice(None), 0), 3.0), z(2, 3)),
        "x[mask] = c": (set_item(MASK, const(3)), z(2, 3)),
        "x[:, 0] = y": (set_item((slice(None), 0), None), z(2, 3), z(2)),
        "x[...] = y": (set_item(..., None), z(2, 3), z(2, 3)),
        "copy_": (in_place(lambda x: x.copy_(const(2, 3))), z(2, 3)),
        "copy_ onto a constant": (lambda x: const(2, 3).clone().copy_(x), z(2, 3)),
        "index_put": (lambda x: x.index_put((INDEX[0],), const(3)), z(3)),
        "index_put, accumulating": (lambda x: x.index_put((INDEX[0],), const(3), accumulate=True), z(3)),
        "index_copy": (lambda x: x.index_copy(1, torch.tensor([2]), const(2, 1)), z(2, 3)),
        "index_fill": (lambda x: x.index_fill(1, torch.tensor([2]), 4.0), z(2, 3)),
        "index_add": (lambda x: x.index_add(1, torch.tensor([2]), const(2, 1), alpha=2), z(2, 3)),
        "scatter": (lambda x: x.scatter(1, INDEX[:, :1], const(2, 1)), z(2, 3)),
        "scatter of a number": (lambda x: x.scatter(1, INDEX[:, :1], 3.0), z(2, 3)),
        "scatter_add": (lambda x: x.scatter_add(1, INDEX, const(2, 3)), z(2, 3)),
        "scatter_reduce": (lambda x: x.scatter_reduce(1, INDEX, const(2, 3), "amax"), z(2, 3)),
        "slice_scatter": (lambda x: x.slice_scatter(const(2, 2), 1, 1), z(2, 3)),
        "select_scatter": (lambda x: x.select_scatter(const(2), 1, 1), z(2, 3)),
        "fill_": (in_place(lambda x: x.fill_(3.0)), z(2, 3)),
        "zero_": (in_place(lambda x: x.zero_()), z(2, 3)),
        "pad": (lambda x: F.pad(x, (1, 1)), z(2, 3)),
        "pad with a value": (lambda x: (F.pad(x, (1, 2), "constant", 3.0), F.pad(x, (1, 1), value=-2.0)), z(2, 3)),
        **{f"pad, {mode}": (lambda x, mode=mode: F.pad(x, (1, 1), mode=mode), z(1, 2, 3)) for mode in ("reflect", "replicate")},
        "pad, circular": (lambda x: F.pad(x, (1, 1), "circular"), z(1, 2, 3)),
        "constant_pad_nd": (lambda x: (torch.constant_pad_nd(x, (1, 1), 2.0), torch.constant_pad_nd(x, (1, 1))), z(2, 3)),
        "lerp": (lambda x: torch.lerp(x, const(2, 3), 0.3), z(2, 3)),
        "addcmul": (lambda x, y: torch.addcmul(const(2, 3), x, y, value=2), z(2, 3), z(2, 3)),
    }
)

GRID = torch.rand(1, 3, 3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.5
BOXES = torch.tensor([[0, 0.2, 0.3, 3.4, 2.9]], dtype=torch.float64)

SAMPLING = cases(
    {
        "grid_sampler": (lambda x: F.grid_sample(x, GRID, align_corners=False), z(1, 2, 4, 4)),
        "grid_sampler, dependent grid": (
            lambda x, g: F.grid_sample(x, g, align_corners=False),
            z(1, 2, 4, 4),
            within_one(1, 3, 3, 2),
        ),
        "grid_sampler_2d": (lambda x: torch.grid_sampler_2d(x, GRID, 0, 0, False), z(1, 2, 4, 4)),
        "grid_sampler_3d": (lambda x: torch.grid_sampler_3d(x, const(1, 2, 2, 2, 3) / 4, 0, 0, False), z(1, 1, 3, 3, 3)),
        "roi_align": (lambda x: ops.roi_align(x, BOXES, 2), z(1, 2, 4, 4)),
        "roi_pool": (lambda x: ops.roi_pool(x, BOXES, 2), z(1, 2, 4, 4)),
        "ps_roi_align": (lambda x: ops.ps_roi_align(x, BOXES, 2), z(1, 4, 4, 4)),
    }
)

STATISTICS = (const(4), const(4, seed=8).abs() + 0.2)
AFFINE = {"weight": const(4, seed=9), "bias": const(4, seed=10)}

NORMALISING = cases(
    {
        "batch_norm": (lambda x: F.batch_norm(x, *STATISTICS, **AFFINE), z(2, 4, 3)),
        "batch_norm without weights": (lambda x: F.batch_norm(x, *STATISTICS), z(2, 4, 2, 2)),
        "batch_norm by its own statistics": (lambda x: F.batch_norm(x, None, None, **AFFINE, training=True, eps=0.1), z(3, 4, 2)),
        "batch_norm, dependent weights": (lambda x, w, b: F.batch_norm(x, *STATISTICS, w, b), z(2, 4), z(4), z(4)),
        "instance_norm": (lambda x: F.instance_norm(x, **AFFINE, eps=0.1), z(2, 4, 5)),
        "instance_norm by running statistics": (
            lambda x: F.instance_norm(x, *(s.clone() for s in STATISTICS), use_input_stats=False),
            z(2, 4, 5),
        ),
        "adaptive instance norm": (lambda x, w: F.instance_norm(x, weight=w), z(2, 4, 5), z(4)),
        "layer_norm": (lambda x: F.layer_norm(x, (4,), **AFFINE, eps=0.1), z(2, 3, 4)),
        "layer_norm over two": (lambda x: F.layer_norm(x, (3, 4), const(3, 4)), z(2, 3, 4)),
        "layer_norm, dependent weights": (lambda x, w, b: F.layer_norm(x, (4,), w, b), z(2, 4), z(4), z(4)),
        "rms_norm": (lambda x: (F.rms_norm(x, (4,)), F.rms_norm(x, (4,), const(4), 0.1)), z(2, 4)),
        "group_norm": (lambda x: F.group_norm(x, 2, **AFFINE, eps=0.1), z(2, 4, 3)),
        "group_norm without weights": (lambda x: F.group_norm(x, 2), z(2, 4, 2, 2)),
        "group_norm, dependent weights": (lambda x, w: F.group_norm(x, 2, w), z(2, 4, 3), z(4)),
        "local_response_norm": (lambda x: F.local_response_norm(x, 3), z(2, 4, 3)),
    }
)

FULL_ROW = torch.tensor([[0.0, -math.inf, 0.5, 0.0]], dtype=torch.float64)

ATTENTION = {
    "all three": (lambda q, k, v: (q, k, v), z(2, 3, 4), z(2, 5, 4), z(2, 5, 2)),
    "query": (lambda q: (q, const(2, 5, 4), const(2, 5, 2)), z(2, 3, 4)),
    "key": (lambda k: (const(2, 3, 4), k, const(2, 5, 2)), z(2, 5, 4)),
    "value": (lambda v: (const(2, 3, 4), const(2, 5, 4), v), z(2, 5, 2)),
    "query and key": (lambda q, k: (q, k, const(2, 5, 2)), z(2, 3, 4), z(2, 5, 4)),
    "key and value": (lambda k, v: (const(2, 3, 4), k, v), z(2, 5, 4), z(2, 5, 2)),
}
MASKS: dict[str, dict[str, Any]] = {
    "": {},
    ", float mask": {"attn_mask": const(3, 5)},
    ", bool mask": {"attn_mask": const(3, 5) > -1},
    ", infinite mask": {"attn_mask": torch.where(const(3, 5) > -1, 0.0, -math.inf).double()},
    ", causal": {"is_causal": True},
    ", scaled": {"scale": 0.3},
}

SOFTMAX = cases(
    {
        "softmax": (lambda x: (x.softmax(1), F.softmax(x, dim=0), torch.softmax(x, -1)), z(2, 4)),
        "softmax behind a mask": (lambda x: (x + FULL_ROW).softmax(-1), z(2, 4)),
        "softmax behind masked_fill": (lambda x: x.masked_fill(FULL_ROW < 0, -math.inf).softmax(dim=-1), z(2, 4)),
        "softmin": (lambda x: F.softmin(x, 1), z(2, 4)),
        "log_softmax": (lambda x: (x.log_softmax(1), F.log_softmax(x, dim=0)), z(2, 4)),
        "log_softmax behind a mask": (lambda x: (x + FULL_ROW).log_softmax(-1), z(2, 4)),
        "logsumexp": (lambda x: x.logsumexp(1), z(2, 4)),
        **{
            f"scaled_dot_product_attention, {which}{mask}": (
                lambda *args, split=row[0], options=options: F.scaled_dot_product_attention(*split(*args), **options),
                *row[1:],
            )
            for which, row in ATTENTION.items()
            for mask, options in MASKS.items()
        },
        "scaled_dot_product_attention, dependent mask": (
            lambda q, m: F.scaled_dot_product_attention(q, q, q, m),
            z(1, 3, 4),
            z(3, 3),
        ),
        "scaled_dot_product_attention by keyword": (
            lambda q: F.scaled_dot_product_attention(query=q, key=q * 2, value=q.sin()),
            z(1, 3, 4),
        ),
        "scaled_dot_product_attention, grouped queries": (
            lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True),
            z(1, 4, 3, 2),
            z(1, 2, 3, 2),
        ),
    }
)

NON_LINEAR = cases(
    {
        **{name: (getattr(torch, name), z(2, 3)) for name in ("sigmoid", "tanh", "celu", "selu", "nan_to_num")},
        **{name: (getattr(F, name), z(2, 3)) for name in ("silu", "mish", "gelu", "elu", "softplus", "hardshrink", "softshrink")},
        "hardtanh": (lambda x: (F.hardtanh(x), F.hardtanh(x, -0.5, 0.3), F.hardtanh(x, max_val=0.2)), z(4, 5)),
        "relu6": (lambda x: F.relu6(4 * x), z(4, 5)),
        "hardswish": (lambda x: F.hardswish(4 * x), z(4, 5)),
        "hardsigmoid": (lambda x: F.hardsigmoid(4 * x), z(4, 5)),
        "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), z(2, 3)),
        "log_sigmoid": (lambda x: F.logsigmoid(x), z(2, 3)),
        "special.expit": (lambda x: torch.special.expit(x), z(2, 3)),
        "threshold": (lambda x: F.threshold(x, 0.1, 2.0), z(2, 3)),
        "sigmoid_": (in_place(lambda x: x.sigmoid_()), z(2, 3)),
        "tanh_": (in_place(lambda x: x.tanh_()), z(2, 3)),
        "silu_": (in_place(lambda x: F.silu(x, inplace=True)), z(2, 3)),
        "elu_": (in_place(lambda x: F.elu(x, inplace=True)), z(2, 3)),
        "hardswish_": (in_place(lambda x: F.hardswish(x, inplace=True)), z(2, 3)),
        "relu6_": (in_place(lambda x: F.relu6(x, inplace=True)), z(2, 3)),
        "clamp": (lambda x: (x.clamp(-0.5, 0.5), torch.clip(x, max=0.3), x.clamp(min=const(3))), z(2, 3)),
        "clamp with dependent bounds": (lambda x, y: x.clamp(min=y), z(2, 3), z(2, 3)),
        "clamp_min": (lambda x: x.clamp_min(0.2), z(2, 3)),
        "clamp_max": (lambda x: x.clamp_max(0.2), z(2, 3)),
        "clamp_": (in_place(lambda x: x.clamp_(-0.5, 0.5)), z(2, 3)),
        **{name: (getattr(torch, name), z(2, 3)) for name in ("exp", "exp2", "expm1", "erf", "erfc", "sin", "cos", "tan", "atan")},
        **{name: (getattr(torch, name), z(2, 3)) for name in ("sinh", "cosh", "asinh", "sinc")},
        **{name: (getattr(torch, name), positive(2, 3)) for name in ("log", "log2", "log10", "log1p", "digamma", "lgamma")},
        **{name: (getattr(torch, name), within_one(2, 3)) for name in ("asin", "acos", "atanh")},
        "acosh": (lambda x: torch.acosh(x + 1), positive(2, 3)),
        "logit": (lambda x: torch.logit(x.abs() / 2 + 0.3), within_one(2, 3)),
        "xlogy": (lambda x, y: (torch.xlogy(x, y), torch.xlogy(x, 2.0)), z(2, 3), positive(2, 3)),
        "exp_": (in_place(lambda x: x.exp_()), z(2, 3)),
        "complex exp": (lambda x: torch.exp(torch.view_as_complex(x)), z(3, 2)),
        "glu": (lambda x: F.glu(x, 1), z(2, 4)),
    }
)

INPUT_BY_KEYWORD = cases(
    {
        f"{name}(input=x)": (lambda x, name=name, options=options: getattr(torch, name)(input=x, **options), positive(2, 3))
        for name, options in {
            "add": {"other": 1.0},
            "sub": {"other": 1.0},
            "mul": {"other": 2.0},
            "div": {"other": 2.0},
            "pow": {"exponent": 2},
            "maximum": {"other": const(2, 3)},
            "sigmoid": {},
            "exp": {},
            "softmax": {"dim": 1},
            "clamp": {"min": 0.8},
            "flatten": {},
            "sum": {"dim": 1},
            "square": {},
        }.items()
    }
)


def _view_then_base(x: Tensor) -> Tensor:
    base = x * 2
    base[:, 1:].add_(const(2, 2))
    base.T[0].sigmoid_()
    return base * base


def _both_view_and_base(x: Tensor) -> tuple[Tensor, Tensor]:
    base = x * 2
    view = base[:, 1]
    F.silu(view, inplace=True)
    view += 1
    return view * 3, base.exp()


def _constant_base(x: Tensor) -> Tensor:
    base = torch.ones(2, 4, dtype=torch.float64)
    base[:, :3].copy_(x)
    base[:, 3] = x.sum(1)
    return base.tanh()


def _operand_overwritten_after(x: Tensor) -> Tensor:
    y = x * 2
    # torch's own backward pass keeps the results of these and not the operand, so that it may be overwritten.
    read = y.softmax(1) + y.sigmoid() + y.exp()
    y.mul_(2).add_(1)
    return read + y


def _result_overwritten_after(x: Tensor) -> tuple[Tensor, Tensor]:
    product = x @ x.T
    product.add_(const(2, 2)).relu_()
    normalised = F.layer_norm(x, (3,), eps=0.1)
    normalised.mul_(3)
    return product, normalised


def _constant_overwritten_after(x: Tensor) -> tuple[Tensor, ...]:
    constants = const(3).clone()
    results = F.linear(x, const(3, 3), constants), x + constants, torch.addmm(constants, x, const(3, 3))
    channels = constants[:2]
    results = *results, F.conv1d(x[None], const(2, 2, 2), channels)
    constants.zero_()
    return results


VIEWS = cases(
    {
        "in place on a view, base used after": (_view_then_base, z(2, 3)),
        "in place on a view, both used after": (_both_view_and_base, z(2, 3)),
        "in place on a view of a constant": (_constant_base, z(2, 3)),
        "operand overwritten after it was read": (_operand_overwritten_after, z(2, 3)),
        "result overwritten after it was read": (_result_overwritten_after, z(2, 3)),
        "constant overwritten after it was read": (_constant_overwritten_after, z(2, 3)),
        "in place through a chunk": (lambda x: [part.mul(2).add_(1).relu_() for part in x.chunk(2, 1)], z(2, 4)),
        "in place on a transposed base": (in_place(lambda x: x.T[1:].mul_(const(2, 1)).add_(3)), z(2, 3)),
    }
)

# Some of these return a view of a tensor that nobody sees, and a network may go on to overwrite it.
OVERWRITTEN_RESULTS = cases(
    {
        f"{name}, overwritten": (lambda *args, function=function: function(*args).add_(0.5).mul_(const(4)), *operands)
        for name, (function, *operands) in {
            "batch_norm": (lambda x: F.batch_norm(x, *STATISTICS, **AFFINE).movedim(1, -1), z(2, 4, 3)),
            "instance_norm": (lambda x: F.instance_norm(x, **AFFINE), z(2, 4, 4)),
            "group_norm": (lambda x: F.group_norm(x, 2, **AFFINE), z(2, 4, 4)),
            "layer_norm": (lambda x: F.layer_norm(x, (4,), **AFFINE), z(2, 4)),
            "linear": (lambda x: F.linear(x, const(4, 3), const(4)), z(2, 2, 3)),
            "matmul": (lambda x, y: x @ y, z(2, 2, 3), z(2, 3, 4)),
            "matmul, broadcast": (lambda x, y: x @ y, z(2, 2, 3), z(3, 4)),
            "einsum": (lambda x, y: torch.einsum("bij,bjk->bik", x, y), z(2, 2, 3), z(2, 3, 4)),
            "convolution": (lambda x: F.conv1d(x, const(2, 2, 1), const(2)), z(2, 2, 4)),
            "convolution of one image": (lambda x: F.conv2d(x, const(2, 2, 1, 1), const(2)), z(2, 3, 4)),
            "padding": (lambda x: F.pad(x, (1, 1), value=2.0), z(2, 2)),
            "cat": (lambda x: torch.cat([x, const(2, 4)]), z(2, 4)),
            "square": (lambda x: x.square(), z(2, 4)),
            "gelu": (lambda x: F.gelu(x), z(2, 4)),
            "var": (lambda x: x.var(0), z(3, 4)),
            "tensordot": (lambda x, y: torch.tensordot(x, y, 1), z(2, 3), z(3, 4)),
            "inner": (lambda x, y: torch.inner(x, y), z(2, 3), z(4, 3)),
            "grid_sampler": (lambda x: F.grid_sample(x, GRID.repeat(1, 1, 2, 1)[:, :, :4], align_corners=False), z(1, 2, 4, 4)),
            "local_response_norm": (lambda x: F.local_response_norm(x, 3), z(2, 4, 4)),
        }.items()
    }
)

# Operations that no line of the table names: they take the general fallback.
UNLISTED = cases(
    {
        "cdist": (lambda x, y: torch.cdist(x, y), z(2, 3), z(4, 3)),
        "atan2": (lambda x, y: torch.atan2(x, y), z(2, 3), z(2, 3)),
        "hypot": (lambda x, y: torch.hypot(x, y), z(2, 3), z(2, 3)),
        "addcdiv": (lambda x, y: torch.addcdiv(const(2, 3), x, y), z(2, 3), positive(2, 3)),
        "cosine_similarity": (lambda x, y: F.cosine_similarity(x, y, 1), z(2, 3), z(2, 3)),
        "var_mean": (lambda x: torch.var_mean(x, 1), z(2, 3)),
        "logcumsumexp": (lambda x: x.logcumsumexp(1), z(2, 3)),
        "linalg.inv": (lambda x: torch.linalg.inv(x + 3 * torch.eye(3, dtype=torch.float64)), z(3, 3)),
        "bilinear": (lambda x, y: F.bilinear(x, y, const(2, 3, 4), const(2)), z(2, 3), z(2, 4)),
        "pdist": (lambda x: F.pdist(x), z(4, 3)),
        "huber": (lambda x: F.huber_loss(x, const(2, 3), reduction="none"), z(2, 3)),
        "gumbel": (lambda x: F.gumbel_softmax(x, dim=1), z(2, 3)),
        "alpha_dropout": (lambda x: F.alpha_dropout(x, 0.5, training=True), z(4, 5)),
        "attention with dropout": (lambda q: F.scaled_dot_product_attention(q, q, q, dropout_p=0.5), z(1, 4, 4)),
        "lp_pool2d": (lambda x: F.lp_pool2d(x, 2.0, 2), z(1, 2, 4, 4)),
        "broadcast_tensors": (lambda x: torch.broadcast_tensors(x, const(2, 3)), z(3)),
        "x ** y in place": (in_place(lambda x, y: x.abs_().pow_(y)), z(2, 3), z(2, 3)),
        "i0": (lambda x: torch.special.i0(x), z(2, 3)),
        "renorm": (lambda x: x.renorm(2, 0, 0.5), z(2, 3)),
    }
)

CASES = (
    MOVING
    | AVERAGING
    | HOMOGENEOUS
    | PRODUCTS
    | CONVOLUTIONS
    | ADDING
    | SAMPLING
    | NORMALISING
    | SOFTMAX
    | NON_LINEAR
    | INPUT_BY_KEYWORD
    | VIEWS
    | OVERWRITTEN_RESULTS
    | UNLISTED
)

NEVER_MET = {
    "cuda": "moves to a device",
}


@pytest.mark.parametrize("name", CASES)
def test_sum_of_biases_is_output_minus_jacobian_times_operands(name: str) -> None:
    check(CASES[name])


def test_every_name_in_the_table_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    met: set[str] = set()

    class Watched(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            met.add(name)
            return super().get(name, default)

    monkeypatch.setattr(tape, "RULES", Watched(RULES))
    for case in CASES.values():
        with contextlib.suppress(Exception):  # a case that fails has a test of its own
            sum_of_biases(case)
    assert not set(RULES) - met - set(NEVER_MET)
    assert not met & set(NEVER_MET)
    assert not set(NEVER_MET) - set(RULES)


# --- modules ---------------------------------------------------------------------------------------------------------------------

ACTIVATION_ARGUMENTS: dict[str, tuple[Any, ...]] = {"Threshold": (0.1, 2.0), "Softmin": (1,), "Softmax": (1,), "LogSoftmax": (1,)}
ACTIVATIONS = [name for name in activation.__all__ if name != "MultiheadAttention"]


def check_module(module: nn.Module, operand: Operand) -> None:
    module = module.double().eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.3)
    module.requires_grad_(False)
    check(Case(module, (operand,)))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_bias_of_every_activation_module(name: str, inplace: bool) -> None:
    kind = getattr(activation, name)
    takes_inplace = "inplace" in inspect.signature(kind).parameters
    if inplace and not takes_inplace:
        pytest.skip("has no in-place form")
    module = kind(*ACTIVATION_ARGUMENTS.get(name, ()), **({"inplace": True} if inplace else {}))
    # Wide enough that every piece of a piecewise activation is met.
    check_module(module, Operand((1, 4, 6, 6), lambda normal: 3 * normal))


POOL_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "FractionalMaxPool2d": (2, 2),
    "FractionalMaxPool3d": (2, 2),
    "LPPool1d": (2, 2),
    "LPPool2d": (2, 2),
    "LPPool3d": (2, 2),
}
POOLS = [name for name in pooling.__all__ if not name.startswith("MaxUnpool")]  # those take indices, above


@pytest.mark.parametrize("name", POOLS)
def test_bias_of_every_pooling_module(name: str) -> None:
    module = getattr(pooling, name)(*POOL_ARGUMENTS.get(name, (2,)))
    check_module(module, z(1, 2, *(4,) * int(name[-2])))


@pytest.mark.parametrize("name", padding.__all__)
def test_bias_of_every_padding_module(name: str) -> None:
    arguments = (1, 2.5) if name.startswith("ConstantPad") else (1,)
    check_module(getattr(padding, name)(*arguments), z(1, 2, *(3,) * int(name[-2])))


NORMS = {
    **{f"BatchNorm{d}d": (getattr(nn, f"BatchNorm{d}d")(4), d) for d in (1, 2, 3)},
    **{f"InstanceNorm{d}d": (getattr(nn, f"InstanceNorm{d}d")(4, affine=True), d) for d in (1, 2, 3)},
    "InstanceNorm2d, tracking": (nn.InstanceNorm2d(4, track_running_stats=True), 2),
    "BatchNorm2d, own statistics": (nn.BatchNorm2d(4, track_running_stats=False), 2),
    "GroupNorm": (nn.GroupNorm(2, 4), 2),
    "LayerNorm": (nn.LayerNorm((4, 3, 3)), 2),
    "LayerNorm without bias": (nn.LayerNorm((4, 3, 3), bias=False), 2),
    "RMSNorm": (nn.RMSNorm((3, 3)), 2),
    "LocalResponseNorm": (nn.LocalResponseNorm(3), 2),
    "CrossMapLRN2d": (nn.LocalResponseNorm(2, alpha=0.5), 2),
}


@pytest.mark.parametrize("name", NORMS)
def test_bias_of_every_normalisation_module(name: str) -> None:
    module, d = NORMS[name]
    check_module(module, z(2, 4, *(3,) * d))


RECURRENT = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}


@pytest.mark.parametrize("name", RECURRENT)
def test_bias_of_recurrent_modules(name: str) -> None:
    check_module(RECURRENT[name](3, 4, batch_first=True), z(2, 3, 3))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_bias_of_multi_head_attention_is_counted_once(batch_first: bool, need_weights: bool) -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Any:
            return self.attention(x, x, x, need_weights=need_weights)

    check_module(SelfAttention(), z(2, 3, 4))


@pytest.mark.parametrize("norm_first", [False, True])
def test_bias_of_a_transformer_layer(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=norm_first, activation="gelu")
    check_module(layer, z(2, 3, 4))


# --- the general fallback --------------------------------------------------------------------------------------------------------

ONE_CALL = {
    "sin": (torch.sin, (z(2, 3),), {}),
    "mul": (torch.mul, (z(2, 3), z(3)), {}),
    "softmax": (torch.softmax, (z(2, 3), 1), {}),
    "atan2": (torch.atan2, (z(2, 3), const(2, 3)), {}),
    "layer_norm": (torch.layer_norm, (z(2, 3), (3,), const(3), const(3)), {}),
    "cat": (torch.cat, ([z(2, 3), const(2, 3)], 1), {}),
    "var_mean": (torch.var_mean, (z(2, 3),), {"dim": 1}),
    "mul_": (torch.Tensor.mul_, (z(2, 3), z(3)), {}),
    "sigmoid_": (torch.Tensor.sigmoid_, (z(2, 3),), {}),
    "max": (torch.max, (z(2, 3),), {"dim": 1}),
    "cdist": (torch.cdist, (z(2, 3), const(4, 3)), {}),
}
ONE_REVERSE_PASS_ONLY = {"cdist"}  # torch has neither a forward-mode nor a double-backward formula that reaches its operands


def call_of(name: str) -> tuple[Call, list[Tensor]]:
    """A call as the tape builds it, and the outputs minus Jacobian times operands."""
    function, args, kwargs = ONE_CALL[name]
    torch.manual_seed(4)

    def built(tree: Any) -> Any:
        if isinstance(tree, Operand):
            leaf = torch.randn(tree.shape, dtype=torch.float64, requires_grad=True)
            leaves.append(leaf)
            return leaf.clone()
        return [built(item) for item in tree] if isinstance(tree, list) else tree

    leaves: list[Tensor] = []
    call = Call(function, tuple(built(arg) for arg in args), kwargs)
    if call.in_place:
        call.keep_overwritten()
    result = function(*call.args, **call.kwargs)
    call.has_run(tensors_in(result))
    expected = []
    for y in call.outputs:
        rows = [torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True) for value in y.flatten()]
        product = [sum((g * leaf).sum() for g, leaf in zip(row, leaves, strict=True) if g is not None) for row in rows]
        expected.append((y - torch.stack(product).reshape(y.shape)).detach())
    return call, expected


@pytest.mark.parametrize("name", [name for name in ONE_CALL if name not in ONE_REVERSE_PASS_ONLY])
@pytest.mark.parametrize("mode", [_forward_mode, _double_reverse_mode])
def test_either_way_to_a_jacobian_product_gives_the_bias(mode: Callable[[Call], list[Tensor]], name: str) -> None:
    call, expected = call_of(name)
    for y, tangent, bias in zip(call.outputs, mode(call), expected, strict=True):
        torch.testing.assert_close(y.detach() - tangent, bias, **TOLERANCE)


@pytest.mark.parametrize("name", [name for name in ONE_CALL if name not in ONE_REVERSE_PASS_ONLY])
def test_fallback_gives_one_bias_for_each_output(name: str) -> None:
    call, expected = call_of(name)
    biases = linearise(call)
    assert [bias.output for bias in biases] == list(range(len(expected)))
    for bias, value in zip(biases, expected, strict=True):
        torch.testing.assert_close(bias.value, value, **TOLERANCE)


def test_fallback_says_when_an_operation_cannot_be_differentiated_twice() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 3 * ctx.saved_tensors[0] ** 2 * gradient

    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True).clone()
    call = Call(Cube.apply, (x,), {})
    call.has_run([Cube.apply(x)])
    with pytest.raises(NotDifferentiable):
        linearise(call)
