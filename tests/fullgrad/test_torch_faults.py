"""A gradient counts the same however it lies in memory: one image is as right as a batch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fg_lightning import FullGrad, full_gradients
from fg_lightning.attribution import METHODS
from fg_lightning.fullgrad import torch_faults
from fg_lightning.fullgrad.operation import tensors_in
from fg_lightning.fullgrad.preserve_model import preserve_model
from tests.helpers.operations import CASES
from tests.helpers.operations.definition import Case
from tests.helpers.operations.one_image import NORMS, ONE_IMAGE

# --- the search: every operation, every way for a gradient and an operand to lie


def orders(ndim: int) -> list[tuple[int, ...]]:
    """Orders of dimensions in memory: all of them, or those of networks where there are many."""
    if ndim <= 3:
        return list(permutations(range(ndim)))
    rest = tuple(range(3, ndim))
    return [tuple(range(ndim)), (0, 2, *rest, 1), (0, 2, 1, *rest), (*range(1, ndim), 0), tuple(reversed(range(ndim)))]


def laid_out(values: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same values in every order of dimensions, with strides of all sizes where there is but one place, and with gaps."""
    for order in orders(values.ndim):
        back = [order.index(i) for i in range(values.ndim)]
        moved = values.permute(order).contiguous().permute(back)
        yield f"order {order}", moved
        if 1 in values.shape:
            for stride in (0, 1, 8, 1000):
                strides = [stride if size == 1 else own for size, own in zip(values.shape, moved.stride(), strict=True)]
                yield f"order {order}, strides of {stride}", moved.as_strided(values.shape, strides)
    if values.ndim:
        gapped = torch.zeros(*values.shape[:-1], 2 * values.shape[-1], dtype=values.dtype)[..., ::2]
        yield "with gaps", gapped.copy_(values)


def gradients(shape: torch.Size, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Gradients: random ones as they may be laid out, expanded, sliced and overlapping."""
    generator = torch.Generator().manual_seed(1)
    real = torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=real).to(dtype)

    yield from laid_out(random(*shape))
    yield "all one number", random().expand(shape)
    for dim, size in enumerate(shape):
        if size > 1:
            yield f"expanded along {dim}", random(*(1 if i == dim else n for i, n in enumerate(shape))).expand(shape)
            yield f"sliced along {dim}", random(*(n + 2 * (i == dim) for i, n in enumerate(shape))).narrow(dim, 1, size)
            strides = [1 if i == dim else own for i, own in enumerate(random(*shape).stride())]
            yield f"overlapping along {dim}", random(math.prod(shape) + max(shape)).as_strided(shape, strides)


def pulled(outputs: Tensor, operands: list[Tensor], gradient: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(outputs, operands, gradient, retain_graph=True, materialize_grads=True)
    return [g.nan_to_num(0, 0, 0) for g in found]


def faults_of(case: Case, dtype: torch.dtype) -> list[str]:
    """Where gradients of an operation depend on how its operand and the gradient lie."""
    generator, found = torch.Generator().manual_seed(11), []
    values = [o.values(torch.randn(o.shape, generator=generator, dtype=torch.float64)).to(dtype) for o in case.operands]
    tolerance = 1e-9 if dtype is torch.float64 else 1e-3
    reference: tuple[list[Tensor], list[Tensor]] | None = None
    for arrangements in zip(*(laid_out(own) for own in values), strict=False):
        operands = [t.detach().requires_grad_() for _, t in arrangements]
        torch.manual_seed(5)
        try:
            results = [y for y in tensors_in(case.function(*operands)) if y.requires_grad]
        except RuntimeError:
            if reference is None:
                return []  # the operation does not take such shapes, or this precision
            continue  # a view that this layout does not allow
        reference = reference or (operands, results)
        for y, expected in zip(results, reference[1], strict=True):
            if not torch.allclose(y, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
                break  # random numbers, or memory itself: another layout is another operation
            for name, gradient in gradients(y.shape, y.dtype):
                ours = pulled(y, operands, gradient)
                right = pulled(expected, reference[0], gradient.clone(memory_format=torch.contiguous_format))
                scale = max(max(g.abs().max().item() for g in right if g.numel()), 1e-2 * gradient.abs().max().item())
                if any((a - b).abs().max() > tolerance * scale for a, b in zip(ours, right, strict=True)):
                    found.append(f"operand in {arrangements[0][0]}, gradient {name}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [*CASES, *ONE_IMAGE])
def test_gradients_do_not_depend_on_how_they_lie(name: str, dtype: torch.dtype) -> None:
    if name == "huber" and dtype is torch.float32:
        pytest.skip("torch's backward pass does not take a constant in float64")
    with preserve_model(nn.Identity(), torch.device("cpu")), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and torchvision on what they will change
        assert faults_of((CASES | ONE_IMAGE)[name], dtype) == []


@pytest.mark.parametrize("name", [f"{name} of {shape}" for name in NORMS for shape in [(1, 8, 4, 8), (2, 8, 4, 1)]])
def test_gradients_of_norms_do_not_depend_on_how_they_lie(name: str) -> None:
    with preserve_model(nn.Identity(), torch.device("cpu")):
        assert faults_of(ONE_IMAGE[name], torch.float64) == []


@pytest.mark.parametrize("name", ["slice_scatter", "select_scatter", "gelu"])
def test_gradients_that_overlap_are_taken(name: str) -> None:
    with preserve_model(nn.Identity(), torch.device("cpu")):
        assert faults_of(CASES[name], torch.float32) == []


# --- networks


class Tokens(nn.Module):
    """What stands between a convolution and tokens; tanh makes their gradient lie as they do."""

    def __init__(self, between: nn.Module, tokens: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.between, self.tokens, self.head = nn.Conv2d(3, 8, 3, 2, 1), between, tokens, nn.Linear(8, 5)
        for module in self.modules():
            if isinstance(module, (nn.modules.batchnorm._NormBase)):
                if module.running_mean is not None:
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)
                if module.weight is not None:
                    nn.init.normal_(module.weight)
                    nn.init.normal_(module.bias)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        z = self.between(self.stem(x).relu())
        return self.head(self.tokens(z).tanh().mean(tuple(range(1, self.tokens(z).ndim - 1))))


class OfTokens(nn.Module):
    """Batch norm of tokens as an image one pixel wide, or high."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.dim = nn.BatchNorm2d(8), dim

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2).tanh()
        return self.norm(tokens.transpose(1, 2).unsqueeze(self.dim)).squeeze(self.dim).unflatten(2, x.shape[2:])


TOKENS: dict[str, Callable[[Tensor], Tensor]] = {
    "tokens": lambda z: z.flatten(2).transpose(1, 2),
    "channels last": lambda z: z.permute(0, 2, 3, 1),
    "columns first": lambda z: z.permute(0, 3, 2, 1),
    "an einsum": lambda z: torch.einsum("nchw,cd->nhwd", z, torch.eye(8, dtype=z.dtype)),
}

BETWEEN: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(8),
    "batch norm without weights": lambda: nn.BatchNorm2d(8, affine=False),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "instance norm by running statistics": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "batch norm of tokens": lambda: OfTokens(-1),
    "batch norm of tokens in a row": lambda: OfTokens(2),
    "synchronised batch norm": lambda: nn.SyncBatchNorm(8),
}


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def assert_same(alone: Tensor, together: Tensor) -> None:
    assert (alone - together).abs().max() < 1e-9 * together.abs().max()  # float64, sums of some hundred numbers


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("between", BETWEEN)
def test_one_image_is_as_right_as_a_batch(between: str, tokens: str) -> None:
    network = Tokens(BETWEEN[between](), TOKENS[tokens])
    together = full_gradients(network, images(3), 0)
    assert together.completeness_error.max() < 1e-9  # float64
    exact = torch.cat([full_gradients(network, image, 0).input_gradient for image in images(3).split(1)])
    assert_same(exact, together.input_gradient)
    by_differences = difference_quotient(network, images(1))
    assert abs(by_differences - (together.input_gradient[0] * DIRECTION).sum()) < 1e-6  # central differences in float64
    assert full_gradients(network, images(1), 0).completeness_error.max() < 1e-9
    assert_same(FullGrad(network).attribute(images(1), 0), FullGrad(network).attribute(images(3), 0)[:1])


DIRECTION = torch.randn(3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def difference_quotient(network: nn.Module, image: Tensor, step: float = 1e-5) -> float:
    """The slope of the first output along a direction."""
    with torch.no_grad():
        ahead, behind = (network(image + sign * step * DIRECTION)[0, 0].item() for sign in (1, -1))
    return (ahead - behind) / (2 * step)


SEEING = [name for name in METHODS if name not in ("random", "edges", "blurred_random")]


@pytest.mark.parametrize("between", ["batch norm", "instance norm by running statistics", "batch norm of tokens"])
@pytest.mark.parametrize("name", SEEING)
def test_every_method_maps_one_image_as_in_a_batch(name: str, between: str) -> None:
    network = Tokens(BETWEEN[between](), TOKENS["tokens"])
    settings: dict[str, Any] = {"num_samples": 3} if "grad" in name and ("smooth" in name or "var" in name) else {}
    settings |= {"num_steps": 5} if name == "integrated_gradients" else {"layer": "stem"} if name == "gradcam" else {}
    method = METHODS[name](network, **settings)
    assert_same(method.attribute(images(1), target=0), method.attribute(images(3), target=0)[:1])


def test_a_gradient_that_overlaps_itself_is_taken_by_a_gelu() -> None:
    class Windows(torch.autograd.Function):
        """Sums of neighbours; its gradient is a view of what is summed, in windows."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.sum((1, 2))

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient.expand(5).contiguous().as_strided((1, 2, 2), (1, 1, 1))

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Windows.apply(F.gelu(x))[:, None]

    terms = full_gradients(Net(), torch.rand(1, 2, 2), 0)
    assert terms.completeness_error.max() < 1e-4  # float32


def test_gradients_that_lie_right_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    lay_out = torch_faults._lay_out

    def watched(shape: torch.Size, strides: tuple[int, ...], gradient: Tensor) -> Tensor:
        laid = lay_out(shape, strides, gradient)
        kept.append(laid is gradient)
        return laid

    monkeypatch.setattr(torch_faults, "_lay_out", watched)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(16, 2)
    network = nn.Sequential(*layers).eval()
    full_gradients(network, torch.rand(1, 3, 6, 6), 0)
    METHODS["gradient"](network).attribute(torch.rand(2, 3, 6, 6), target=0)
    assert kept == [True] * 4  # a norm and a GELU, twice
