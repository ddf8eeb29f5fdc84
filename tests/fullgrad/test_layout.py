"""Samples stay apart, and the image plane is found again, whatever a network does to its dimensions."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fg_lightning import FullGrad, full_gradients
from fg_lightning.fullgrad import Term
from fg_lightning.fullgrad.tape import Tape

# torch itself says so when forward-mode differentiation is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")

N, C, H, W = 3, 4, 8, 6


@lru_cache
def const(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def images(n: int = N) -> Tensor:
    return torch.randn(n, C, H, W, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Network(nn.Module):
    """A function between a convolution before and a non-linear, biased readout behind it."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Conv2d(C, C, 3, padding=1)
        self.function = function
        self.inner = nn.ModuleList(modules)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.before(x))
        y = self.function(y, *self.inner)
        y = torch.sigmoid(y + 0.25).flatten(1)
        return y @ const(y.shape[1], 3)


def windows(x: Tensor, size: int = 2) -> Tensor:
    """[N, C, H, W] -> [N * windows, size * size, C], as Swin cuts them."""
    n, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1).view(n, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)


def windows_reversed(x: Tensor, n: int, h: int = H, w: int = W, size: int = 2) -> Tensor:
    c = x.shape[-1]
    x = x.view(n, h // size, w // size, size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c).permute(0, 3, 1, 2)


def window_attention(x: Tensor) -> Tensor:
    cut = windows(x)
    scores = cut @ cut.transpose(-2, -1) + const(4, 4)
    return windows_reversed(scores.softmax(-1) @ cut, len(x))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def with_class_token(x: Tensor) -> Tensor:
    return torch.cat([const(1, 1, C).expand(len(x), -1, -1), tokens(x)], dim=1) + const(1, H * W + 1, C)


def heads_in_the_batch(x: Tensor) -> Tensor:
    t = tokens(x)
    n, places, channels = t.shape
    q = t.reshape(n, places, 2, channels // 2).permute(0, 2, 1, 3).reshape(n * 2, places, channels // 2)
    scores = torch.bmm(q, q.transpose(1, 2)) / 3
    mixed = torch.bmm(scores.softmax(-1), q.exp())
    return mixed.reshape(n, 2, places, channels // 2).permute(0, 2, 1, 3).flatten(2)


def self_attention(x: Tensor, attention: nn.Module) -> Tensor:
    t = tokens(x)
    if attention.batch_first:
        return attention(t, t, t)[0]
    t = t.transpose(0, 1)
    return attention(t, t, t)[0].transpose(0, 1)


def flat_self_attention(x: Tensor) -> Tensor:
    t = tokens(x).view(len(x), -1, 2, C // 2).transpose(1, 2)
    return F.scaled_dot_product_attention(t, t, t * t).transpose(1, 2).reshape(len(x), -1, C)


SEQUENCES: dict[str, tuple[Callable[..., Tensor], Callable[[], nn.Module] | None]] = {
    "view and reshape": (lambda x: x.view(len(x), C, -1).reshape(len(x), 2, -1).tanh(), None),
    "samples split in two dimensions": (lambda x: (x.view(1, len(x), C, H, W).tanh() + 1).view(len(x), -1), None),
    "samples merged with rows": (lambda x: x.transpose(1, 2).reshape(-1, C, W).exp().view(len(x), H, C, W), None),
    "samples last": (lambda x: (x.permute(1, 2, 3, 0).contiguous().exp() + 1).movedim(-1, 0), None),
    "samples in the middle": (lambda x: (x.transpose(0, 1).sigmoid() * const(C, 1, H, W)).transpose(0, 1), None),
    "channels-last layer norm": (lambda x: F.gelu(F.layer_norm(x.permute(0, 2, 3, 1), (C,), const(C))), None),
    "channels-last linear": (lambda x: F.linear(x.permute(0, 2, 3, 1), const(5, C), const(5)).permute(0, 3, 1, 2), None),
    "windows": (lambda x: windows_reversed(windows(x).softmax(1) + 1, len(x)), None),
    "window attention": (window_attention, None),
    "heads in the batch": (heads_in_the_batch, None),
    "attention, batch first": (self_attention, lambda: nn.MultiheadAttention(C, 2, batch_first=True)),
    "attention, batch second": (self_attention, lambda: nn.MultiheadAttention(C, 2)),
    "scaled dot products": (flat_self_attention, None),
    "class token read off": (lambda x: with_class_token(x).softmax(1)[:, 0], None),
    "class token dropped": (lambda x: with_class_token(x).softmax(1)[:, 1:], None),
    "transformer layer": (
        lambda x, layer: layer(with_class_token(x))[:, 0],
        lambda: nn.TransformerEncoderLayer(C, 2, 8, batch_first=True, activation="gelu", dropout=0.0),
    ),
    "einsum": (lambda x: torch.einsum("nchw,ck->nkhw", x, const(C, 3)).exp(), None),
    "einsum of two": (lambda x: torch.einsum("nchw,ndhw->ncd", x, x.sin()), None),
    "einsum with samples last": (lambda x: torch.einsum("nchw,nchw->hwcn", x, x).permute(3, 0, 1, 2), None),
    "bmm": (lambda x: torch.bmm(x.flatten(2), x.flatten(2).transpose(1, 2)), None),
    "baddbmm": (lambda x: torch.baddbmm(const(1, C, C), x.flatten(2), tokens(x), beta=0.5, alpha=0.1), None),
    "addmm": (lambda x: torch.addmm(const(5), x.flatten(1), const(C * H * W, 5)), None),
    "cat of channels": (lambda x: torch.cat([x, x * x, const(1, 1, H, W).expand(len(x), -1, -1, -1)], 1), None),
    "cat of rows": (lambda x: torch.cat([x, x.exp()], dim=2), None),
    "stack": (lambda x: torch.stack([x, x.sin()], 1).mean(2), None),
    "stack in front": (lambda x: torch.stack([x, x.sin()]).prod(0), None),
    "chunk": (lambda x: torch.mul(*x.chunk(2, 1)), None),
    "split": (lambda x: x.split([1, 3], 1)[1].exp(), None),
    "unbind": (lambda x: x.unbind(1)[2] * x.unbind(1)[0], None),
    "roll": (lambda x: x.roll((1, 2), (2, 3)).exp() * x, None),
    "flip": (lambda x: x.flip(2, 3).exp() * x, None),
    "flip by keyword": (lambda x: x.flip(dims=(3,)).exp() * x, None),
    "mean over the plane": (lambda x: x.mean((2, 3)).exp(), None),
    "mean over channels": (lambda x: x.mean(1, keepdim=True) * x, None),
    "squeeze and excitation": (lambda x: x * F.hardsigmoid(F.adaptive_avg_pool2d(x, 1)), None),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2).exp(), None),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2).exp(), None),
    "interpolation": (lambda x: F.interpolate(x, size=(5, 7), mode="bilinear").exp(), None),
    "im2col": (lambda x: F.unfold(x, 3).exp(), None),
    "unfold": (lambda x: x.unfold(2, 2, 2).exp(), None),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1).exp(), None),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1).exp(), None),
    "sort": (lambda x: x.sort(1).values * const(C, 1, 1), None),
    "topk": (lambda x: x.flatten(2).topk(3).values.exp(), None),
    "take_along_dim": (lambda x: x.take_along_dim(x.detach().argsort(1), 1) * const(C, 1, 1), None),
    "gather": (lambda x: x.gather(1, x.detach().argsort(1)) * const(C, 1, 1), None),
    "index by a list": (lambda x: x[:, [2, 0, 1]].exp(), None),
    "one index each": (lambda x: x.flatten(1)[torch.arange(len(x)), torch.full((len(x),), 2)][:, None].exp(), None),
    "assignment": (lambda x: _assigned(x), None),
    "group norm": (lambda x: F.group_norm(x, 2, const(C), const(C)), None),
    "instance norm": (lambda x: F.instance_norm(x), None),
    "normalize": (lambda x: F.normalize(x, dim=1), None),
    "fft filter": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * const(H, W // 2 + 1)).exp(), None),
    "cumsum": (lambda x: x.cumsum(2).exp(), None),
    "standard deviation": (lambda x: x / (x.std((1, 2, 3), keepdim=True) + 1), None),
    "max over the plane": (lambda x: x.amax((2, 3)).exp(), None),
    "lstm over rows": (
        lambda x, lstm: lstm(x.mean(3).transpose(1, 2))[0],
        lambda: nn.LSTM(C, 3, batch_first=True),
    ),
    "tokens first": (lambda x: (tokens(x).transpose(0, 1).exp() + const(H * W, 1, C)).mean(0), None),
    "loop over samples": (lambda x: torch.stack([sample.exp() * sample for sample in x]), None),
}


def _assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 2.0
    y[:, 1:3] = x[:, :2] * x[:, 2:]
    return y.exp()


def network(name: str) -> Network:
    function, module = SEQUENCES[name]
    return Network(function, *([] if module is None else [module()]))


@pytest.mark.parametrize("name", SEQUENCES)
def test_terms_of_a_batch_are_those_of_its_images_alone(name: str) -> None:
    model, batch = network(name), images()
    together = full_gradients(model, batch, target=1)
    assert not together.unaccounted
    for i in range(N):
        alone = full_gradients(model, batch[i : i + 1], target=1)
        assert together.bias_terms.keys() == alone.bias_terms.keys()
        assert together.implicit_terms.keys() == alone.implicit_terms.keys()
        # float64 sums of some hundred numbers, in another order for a batch
        close = {"rtol": 1e-9, "atol": 1e-10}
        torch.testing.assert_close(together.input_gradient[i], alone.input_gradient[0], **close)
        for terms, expected in (
            (together.bias_terms, alone.bias_terms),
            (together.implicit_terms, alone.implicit_terms),
        ):
            for key, value in expected.items():
                torch.testing.assert_close(terms[key][i], value[0], **close)
    # float64 rounding, whatever the terms cancel
    assert together.residual.abs().max() < 1e-10


@pytest.mark.parametrize("name", SEQUENCES)
def test_maps_of_a_batch_are_those_of_its_images_alone(name: str) -> None:
    batch = images(2)
    method = FullGrad(network(name))
    together = method.attribute(batch, target=1)
    alone = torch.cat([method.attribute(batch[i : i + 1], target=1) for i in range(2)])
    # float64; the rescaling divides by ranges
    torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-7)


# What the table of movements does not know: each image runs alone, which is right and slower.
RUN_ALONE = {
    "repeat",
    "repeat_interleave",
    "unfold",
    "lstm over rows",
    "loop over samples",
}


@pytest.mark.parametrize("name", [name for name in SEQUENCES if name not in RUN_ALONE])
def test_a_batch_runs_once(name: str) -> None:
    model, calls = network(name), []
    model.before.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    full_gradients(model, images(), target=1)
    assert calls == [N]


# --- the plane -------------------------------------------------------------------------------------------------------------------

ON_PLANE: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "columns before rows": lambda x: x.transpose(2, 3),
    "samples last": lambda x: x.movedim(0, -1),
    "tokens": tokens,
    "tokens, samples second": lambda x: tokens(x).transpose(0, 1),
    "tokens by columns": lambda x: x.transpose(2, 3).flatten(2),
    "tokens behind a class token": lambda x: torch.cat([const(1, 1, C).float().expand(len(x), -1, -1), tokens(x)], 1),
    "tokens behind two": lambda x: torch.cat([const(1, 2, C).float().expand(len(x), -1, -1), tokens(x)], 1),
    "tokens behind one and one": lambda x: torch.cat(
        [const(len(x), 1, C).float(), torch.cat([const(len(x), 1, C).float(), tokens(x)], 1)],
        1,
    ),
    "class token sliced off": lambda x: torch.cat([const(1, 1, C).float().expand(len(x), -1, -1), tokens(x)], 1)[:, 1:],
    "one of two class tokens sliced off": lambda x: torch.cat([const(len(x), 2, C).float(), tokens(x)], 1)[:, 1:],
    "class token sliced off, unflattened": lambda x: (
        torch.cat([const(len(x), 1, C).float(), tokens(x)], 1)[:, 1:].transpose(1, 2).reshape(len(x), C, H, W)
    ),
    "windows": windows,
    "windows, reversed": lambda x: windows_reversed(windows(x), len(x)),
    "heads beside the batch": lambda x: tokens(x).view(len(x), H * W, 2, 2).transpose(1, 2).reshape(len(x) * 2, H * W, 2),
    "rows in the batch": lambda x: x.permute(0, 2, 1, 3).reshape(-1, C, W),
    "patches": lambda x: x.view(len(x), C, H // 2, 2, W // 3, 3).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2),
    "a dimension of size one": lambda x: x.unsqueeze(1).unsqueeze(-1),
    "expanded": lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1, -1),
    "one channel": lambda x: x[:, 0],
    "some channels": lambda x: x[:, 1:3],
    "chunk": lambda x: x.chunk(2, 1)[1],
    "channels cat'ed": lambda x: torch.cat([x, x], 1),
    "stacked": lambda x: torch.stack([x, x], 2),
    "channel mean": lambda x: x.mean(1),
    "einsum": lambda x: torch.einsum("nchw->wnhc", x),
    "unflatten": lambda x: x.flatten(2).unflatten(2, (H, W)),
    "squeeze": lambda x: x.mean(1, keepdim=True).squeeze(1),
    "rolled": lambda x: x.roll((1, -2), (3, 2)),
    "rolled there and back": lambda x: windows_reversed(windows(x.roll((1, -2), (3, 2))), len(x)).roll((-1, 2), (3, 2)),
    "windows of rolled rows": lambda x: windows(x.roll((1, -2), (3, 2))),
    "windows of other sizes": lambda x: windows_reversed(windows(x), len(x)).view(len(x), C, 2, H // 2, W).transpose(2, 3),
}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", ON_PLANE)
def test_every_place_is_found_at_its_row_and_column(name: str, n: int) -> None:
    function = ON_PLANE[name]
    sample, _, row, column = torch.meshgrid(*(torch.arange(float(size)) for size in (n, C, H, W)), indexing="ij")

    seen: list[Term] = []
    leaf = sample.clone().requires_grad_()
    with Tape(x := leaf.clone(), lambda term, bias, gradient: seen.append(term), {}) as tape:
        y = function(x) + 1.0
    y.sum().backward()
    assert tape.mixed_by is None
    layout = seen[0].layout  # backwards, so that the addition comes first
    assert layout.shape == tuple(y.shape)
    assert layout.on_plane(2)
    for index in (sample, row, column):
        plane = layout.to_plane(function(index), n, 2)
        assert torch.equal(plane, index[:, :1].expand(n, plane.shape[1], H, W))


OFF_PLANE: dict[str, Callable[[Tensor], Tensor]] = {
    "sum over the columns": lambda x: x.sum(3),
    "one row": lambda x: x[:, :, 2],
    "linear over tokens": lambda x: F.linear(x.flatten(2), const(5, H * W).float()),
    "rows turned around": lambda x: x.flip(2),
    "channels and columns rolled into one": lambda x: x.transpose(2, 3).flatten(2).roll(1, 2),
    "flat": lambda x: F.linear(x.flatten(1), const(5, C * H * W).float()),
    "pooled and squeezed": lambda x: x.mean((2, 3)),
}


@pytest.mark.parametrize("name", OFF_PLANE)
def test_what_lies_on_no_plane_is_not_taken_for_one(name: str) -> None:
    seen: list[Term] = []
    leaf = torch.zeros(2, C, H, W, requires_grad=True)
    with Tape(x := leaf.clone(), lambda term, bias, gradient: seen.append(term), {}):
        y = OFF_PLANE[name](x) + 1.0
    y.sum().backward()
    assert not seen[0].layout.on_plane(2)


# --- samples that mix ------------------------------------------------------------------------------------------------------------

MIXING: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "mean over the batch": (lambda x: x - x.mean(0), "mean"),
    "mean over everything": (lambda x: x - x.mean(), "mean"),
    "softmax over the batch": (lambda x: x.softmax(0), "softmax"),
    "batch statistics": (lambda x: F.batch_norm(x, None, None, training=True), "batch_norm"),
    "sum over the batch": (lambda x: x * x.sum((0, 2, 3), keepdim=True), "sum"),
    "roll over the batch": (lambda x: x + x.roll(1, 0), "roll"),
    "flip of the batch": (lambda x: x.flip(0), "flip"),
    "flip of rows and batch": (lambda x: x.flip(2, 0), "flip"),
    "cumsum over the batch": (lambda x: x.cumsum(0), "cumsum"),
    "Gram matrix over the batch": (lambda x: x.flatten(1) @ x.flatten(1).T, "matmul"),
    "einsum over the batch": (lambda x: torch.einsum("nchw,mchw->nm", x, x), "einsum"),
    "order of the batch": (lambda x: x[torch.arange(len(x) - 1, -1, -1)], "getitem"),
    "first of the batch": (lambda x: x + x[0], "getitem"),
    "linear over the batch": (lambda x: F.linear(x.movedim(0, -1), const(N, N)).movedim(-1, 0), "linear"),
    "attention over the batch": (
        lambda x: F.scaled_dot_product_attention(*(x.flatten(1)[None],) * 3)[0],
        "scaled_dot_product_attention",
    ),
    "the batch as channels": (lambda x: F.conv2d(x.transpose(0, 1), const(N, N, 1, 1)).transpose(0, 1), "conv2d"),
    "reshape across samples": (lambda x: x.transpose(0, 1).reshape(x.shape), ""),
    "assignment across samples": (lambda x: _assigned_across(x), "getitem"),
    "sorted over the batch": (lambda x: x.sort(0).values, "sort"),
}


def _assigned_across(x: Tensor) -> Tensor:
    y = x.clone()
    y[0] = x[1]
    return y


@pytest.mark.parametrize("name", MIXING)
def test_an_operation_that_mixes_samples_is_refused_by_name(name: str) -> None:
    function, operation = MIXING[name]
    model = Network(function)
    model.forward = lambda x: F.silu(model.function(model.before(x) * x)).flatten(1)[:, :3] ** 2  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=rf"mixes the samples.*{operation} in"):
        full_gradients(model, images(), target=0)
    with pytest.raises(ValueError, match=rf"mixes the samples.*{operation} in"):
        FullGrad(model).attribute(images(), target=0)


def test_batch_norm_without_running_statistics_is_refused_and_named_with_its_module() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(C, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()).double()
    with pytest.raises(ValueError, match="batch_norm in 1"):
        full_gradients(model, images(), target=0)
    alone = full_gradients(model, images(1), target=0)
    assert alone.residual.abs().max() < 1e-10  # float64 rounding


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor])
def test_each_sample_keeps_its_own_target_where_samples_run_alone(kind: Callable[[Any], Any]) -> None:
    model = network("repeat")  # whose batch is told apart by running each image alone
    targets = [2, 0, 1] if kind is not tuple else (1,)
    together = full_gradients(model, images(), target=kind(targets))
    for i, target in enumerate([2, 0, 1] if kind is not tuple else [1, 1, 1]):
        alone = full_gradients(model, images()[i : i + 1], target=target)
        # float64 rounding
        torch.testing.assert_close(together.output[i], alone.output[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(together.input_term[i], alone.input_term[0], rtol=1e-9, atol=1e-10)


def test_additional_arguments_follow_their_samples_where_samples_run_alone() -> None:
    class Conditioned(nn.Module):
        def forward(self, x: Tensor, condition: Tensor, scale: float) -> Tensor:
            repeated = x.repeat(1, 2, 1, 1)  # whose batch is told apart by running each image alone
            return (repeated.exp().mean((2, 3)) * condition).sum(1) * scale

    condition = torch.rand(N, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5
    together = full_gradients(Conditioned(), images(), additional_forward_args=(condition, 2.0))
    for i in range(N):
        alone = full_gradients(Conditioned(), images()[i : i + 1], additional_forward_args=(condition[i : i + 1], 2.0))
        # float64 rounding
        torch.testing.assert_close(together.input_term[i], alone.input_term[0], rtol=1e-9, atol=1e-10)
