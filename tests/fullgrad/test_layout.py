"""Samples stay apart, and the image plane is found again, whatever a network does to its dimensions."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fg_lightning import FullGrad, full_gradients
from fg_lightning.fullgrad.layout import Layout
from fg_lightning.fullgrad.tape import Tape

# torch itself says so when forward-mode differentiation is first used.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:FullGrad draws"),  # of networks made of what scrambles places
]

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


CHOSEN = torch.tensor([1, 0])


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
    "last state of an lstm": (
        lambda x, lstm: lstm(x.mean(3).transpose(1, 2))[1][0].transpose(0, 1),
        lambda: nn.LSTM(C, 3, batch_first=True),
    ),
    "last state of a gru, batch second": (
        lambda x, gru: gru(x.mean(3).permute(2, 0, 1))[1].transpose(0, 1),
        lambda: nn.GRU(C, 3),
    ),
    "lstm cell": (lambda x, cell: torch.cat(cell(x.mean((2, 3)), (x.amax((2, 3)), x[:, :, 0, 0])), 1), lambda: nn.LSTMCell(C, C)),
    "bilinear": (lambda x, layer: layer(x.mean((2, 3)), x[:, :, 0, 0]), lambda: nn.Bilinear(C, C, 3)),
    "cosine similarity": (lambda x: F.cosine_similarity(x, const(C, H, W)), None),
    "cosine similarity of two": (lambda x: F.cosine_similarity(x.flatten(2), x[:, :, :1, 0].exp(), dim=2), None),
    "variance and mean": (lambda x: torch.stack(torch.var_mean(x, 1)).prod(0), None),
    "norm of matrices": (lambda x: torch.linalg.norm(x, dim=1).exp(), None),
    "diagonal": (lambda x: x.diagonal(dim1=2, dim2=3).exp(), None),
    "hstack": (lambda x: torch.hstack([x, x * x, const(1, 1, H, W).expand(len(x), -1, -1, -1)]).exp(), None),
    "vstack with samples second": (lambda x: torch.vstack([x.transpose(0, 1), x.exp().transpose(0, 1)]).transpose(0, 1), None),
    "index_add": (lambda x: x.index_add(1, CHOSEN, x[:, 2:].exp()).exp(), None),
    "index_add to a constant": (
        lambda x: const(1, 2, H, W).repeat(len(x), 1, 1, 1).index_add(1, CHOSEN[:1], x[:, :1]).exp(),
        None,
    ),
    "index_copy": (lambda x: x.index_copy(2, CHOSEN, x[:, :, 2:4].exp()).exp(), None),
    "index_fill": (lambda x: x.index_fill(3, CHOSEN, 2.0).exp(), None),
    "scatter": (lambda x: x.scatter(1, x.detach().argsort(1), x.exp()).exp(), None),
    "scatter_add": (lambda x: x.scatter_add(1, x.detach().argsort(1), x.exp()).exp(), None),
    "fft over columns": (lambda x: torch.fft.irfft(torch.fft.rfft(x) * const(H, W // 2 + 1)).exp(), None),
    "fft, channels last": (lambda x: torch.fft.ifft2(torch.fft.fft2(x.permute(0, 2, 3, 1), dim=(1, 2))).real.exp(), None),
    "windows of padded, rolled rows": (
        lambda x: windows_reversed(_padded_rolled_windows(x).softmax(1).exp(), len(x), H + 2, W + 2),
        None,
    ),
    "patch merging": (lambda x: F.linear(_merged(x), const(3, 4 * C), const(3)), None),
    "patches with samples between": (lambda x: _merged(x).view(len(x) * 2, -1, 2, 2 * C).softmax(1).view(len(x), -1).exp(), None),
    "unfold and fold": (lambda x: F.fold(F.unfold(x, 3, padding=1).exp(), (H, W), 3, padding=1), None),
    "tokens first": (lambda x: (tokens(x).transpose(0, 1).exp() + const(H * W, 1, C)).mean(0), None),
    "loop over samples": (lambda x: torch.stack([sample.exp() * sample for sample in x]), None),
}


def _merged(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H / 2, W / 2, 4 C] by one view, as timm's Swin merges its patches."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)


def _padded_rolled_windows(x: Tensor) -> Tensor:
    return windows(F.pad(x, (0, 2, 0, 2)).roll((1, -2), (3, 2)))


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
RUN_ALONE = {"loop over samples"}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_batch_runs_once(name: str) -> None:
    model, calls = network(name), []
    model.before.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    full_gradients(model, images(), target=1)
    assert calls == ([N, *[1] * N] if name in RUN_ALONE else [N])


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
    "one channel, which is left out": lambda x: x[:, :1].reshape(len(x), H, W),
    "padded": lambda x: F.pad(x, (1, 3, 0, 2)),
    "padded, channels last": lambda x: F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 3, 0, 2)),
    "padded by reflection": lambda x: F.pad(x, (1, 3, 0, 2), mode="reflect"),
    "padded and cut back": lambda x: F.pad(x, (1, 3, 0, 2))[:, :, :H, 1 : 1 + W],
    "padded and cut by a negative pad": lambda x: F.pad(F.pad(x, (1, 3, 0, 2)), (-1, -3, 0, -2)),
    "windows of padded, rolled rows": _padded_rolled_windows,
    "windows of padded, rolled rows, reversed": lambda x: windows_reversed(_padded_rolled_windows(x), len(x), H + 2, W + 2).roll(
        (-1, 2), (3, 2)
    )[:, :, :H, :W],
    "cut into windows by unfold": lambda x: x.unfold(2, 2, 2).unfold(3, 3, 3),
    "patch merging, not yet merged": _merged,
    "tokens behind one that depends on the input": lambda x: torch.cat([x.mean((2, 3))[:, None], tokens(x)], 1),
    "tokens behind one, by hstack": lambda x: torch.hstack([const(len(x), 1, C).float(), tokens(x)]),
    "written to along the channels": lambda x: x.index_add(1, torch.tensor([1]), x[:, :1] * 0),
    "rolled": lambda x: x.roll((1, -2), (3, 2)),
    "rolled there and back": lambda x: windows_reversed(windows(x.roll((1, -2), (3, 2))), len(x)).roll((-1, 2), (3, 2)),
    "windows of rolled rows": lambda x: windows(x.roll((1, -2), (3, 2))),
    "windows of other sizes": lambda x: windows_reversed(windows(x), len(x)).view(len(x), C, 2, H // 2, W).transpose(2, 3),
}


def _average(size: int) -> Tensor:
    """A kernel that leaves every image where it is, on the whole."""
    return torch.full((C, C, size, size), 1 / (C * size * size))


def layout_behind(function: Callable[[Tensor], Tensor], images: Tensor) -> Layout:
    """How the term of a bias lies that is added to what a function makes of images."""
    leaf = images.clone().requires_grad_()
    with Tape(x := leaf.clone(), lambda term, bias, gradient: None, {}) as tape:
        y = function(x) + 1.0
    assert tape.mixed_by is None
    layout = tape.hearing.terms[-1].layout
    assert layout.shape == tuple(y.shape)
    return layout


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", ON_PLANE)
def test_every_place_is_found_at_its_row_and_column(name: str, n: int) -> None:
    function = ON_PLANE[name]
    sample, _, row, column = torch.meshgrid(*(torch.arange(float(size)) for size in (n, C, H, W)), indexing="ij")

    layout = layout_behind(function, sample)
    assert layout.on_plane(2)
    for index in (sample, row, column):
        plane = layout.to_plane(function(index), n, 2)
        assert torch.equal(plane, index[:, :1].expand(n, plane.shape[1], H, W))


COARSE: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "patches merged": (lambda x: _merge_patches(x), 2),
    "patches merged twice": (lambda x: _merge_patches(_merge_patches(x).permute(0, 3, 1, 2)), 4),
    "patches merged, cut into windows, merged": (
        lambda x: _merge_patches(windows_reversed(windows(_merge_patches(x).permute(0, 3, 1, 2)), len(x), 4, 6)),
        4,
    ),
    "patches merged and rolled": (lambda x: _merge_patches(x).roll((1, -2), (2, 1)), 2),
    "patches of a rolled image merged": (lambda x: _merge_patches(x.roll((4, -2), (3, 2))), 2),
    "patches of a padded image merged": (lambda x: _merge_patches(F.pad(x, (0, 4, 2, 0))), 2),
    "patches merged, then a convolution": (lambda x: F.conv2d(_merge_patches(x).permute(0, 3, 1, 2), _average(2), stride=2), 4),
    "space to depth, then a convolution": (
        lambda x: F.conv2d(_merged(x).permute(0, 3, 1, 2), torch.full((4 * C, 4 * C, 1, 1), 1 / (4 * C))),
        2,
    ),
    "largest of each window": (lambda x: x.view(*x.shape[:2], x.shape[2] // 2, 2, -1, 2).amax((3, 5)), 2),
    "one of each window": (lambda x: x.view(*x.shape[:2], x.shape[2] // 2, 2, -1, 2)[:, :, :, 1, :, 0], 2),
    "every other row and column": (lambda x: x[:, :, ::2, 1::2], 2),
    "average pooling": (lambda x: F.avg_pool2d(x, 2), 2),
    "patches of F.unfold": (lambda x: F.linear(F.unfold(x, 2, stride=2).transpose(1, 2), torch.full((3, 4 * C), 1 / (4 * C))), 2),
    "patches of Tensor.unfold": (lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)), 2),
    "stages that carry a class token on": (lambda x: _two_stages_with_a_class_token(x), 2),
}


def _merge_patches(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H / 2, W / 2, C], every entry the mean of its patch."""
    merged = _merged(x)
    return F.linear(merged, torch.full((C, merged.shape[-1]), 1 / merged.shape[-1]))


def _two_stages_with_a_class_token(x: Tensor) -> Tensor:
    stage = torch.cat([const(1, 1, C).float().expand(len(x), -1, -1), tokens(x)], 1)
    token, places = stage[:, :1], stage[:, 1:].transpose(1, 2).reshape(x.shape)
    return torch.cat([token, tokens(F.conv2d(places, _average(2), stride=2))], 1)


@pytest.mark.parametrize("name", COARSE)
def test_what_was_mixed_into_channels_leaves_a_coarser_plane(name: str) -> None:
    function, size = COARSE[name]
    h, w = 8, 12
    sample, _, row, column = torch.meshgrid(*(torch.arange(float(length)) for length in (2, C, h, w)), indexing="ij")
    layout = layout_behind(function, sample)
    assert layout.on_plane(2)
    for index in (sample, row // size, column // size):
        plane = layout.to_plane(function(index), 2, 2)
        expected = index[:, :1, ::size, ::size]
        # float32 means of at most 16 equal numbers
        torch.testing.assert_close(plane, expected.expand_as(plane), rtol=1e-5, atol=1e-5)
        assert plane.shape[2:] == (h // size, w // size)


CUT: dict[str, tuple[Callable[[Tensor], Tensor], slice, slice]] = {
    "upper rows": (lambda x: x[:, :, :5], slice(0, 5), slice(0, W)),
    "one row": (lambda x: x[:, :, 2:3], slice(2, 3), slice(0, W)),
    "columns, narrow": (lambda x: x.narrow(3, 2, 3), slice(0, H), slice(2, 5)),
    "a stripe": (lambda x: x.chunk(4, 2)[3], slice(6, 8), slice(0, W)),
    "a crop, channels last": (lambda x: x.permute(0, 2, 3, 1)[:, 1:7, 2:], slice(1, 7), slice(2, W)),
    "a crop of a crop": (lambda x: x[:, :, 2:][:, :, 1:4], slice(3, 6), slice(0, W)),
    "a crop of what was padded": (lambda x: F.pad(x, (2, 2, 2, 2))[:, :, 4:9, :4], slice(2, 7), slice(0, 2)),
    "a crop by a negative pad": (lambda x: F.pad(x, (-1, -2, 0, -3)), slice(0, 5), slice(1, 4)),
    "tokens of a crop": (lambda x: tokens(x[:, :, 3:]), slice(3, H), slice(0, W)),
    "windows of a crop": (lambda x: windows(x[:, :, 2:6]), slice(2, 6), slice(0, W)),
    "a crop, padded again": (lambda x: F.pad(x[:, :, 2:6], (0, 0, 2, 2)), slice(2, 6), slice(0, W)),
}


@pytest.mark.parametrize("name", CUT)
def test_what_a_slice_took_away_is_zero_on_the_plane(name: str) -> None:
    function, rows, columns = CUT[name]
    row, column = torch.meshgrid(torch.arange(1.0, H + 1), torch.arange(1.0, W + 1), indexing="ij")
    layout = layout_behind(function, torch.zeros(2, C, H, W))
    assert layout.on_plane(2)
    for index in (row, column):
        expected = torch.zeros(H, W)
        expected[rows, columns] = index[rows, columns]
        plane = layout.to_plane(function(index.expand(2, C, H, W)), 2, 2)
        assert torch.equal(plane, expected.expand_as(plane))


ATTENTION_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda t: t @ t.transpose(1, 2),
    "bmm": lambda t: torch.bmm(t, t.transpose(1, 2)),
    "einsum": lambda t: torch.einsum("nqc,nkc->nqk", t, t),
}


@pytest.mark.parametrize("name", ATTENTION_MAPS)
def test_an_attention_map_lies_where_its_queries_lie(name: str) -> None:
    layout = layout_behind(lambda x: ATTENTION_MAPS[name](tokens(x)), torch.zeros(2, C, H, W))
    row = torch.arange(H).repeat_interleave(W)
    plane = layout.to_plane(row[:, None].expand(2, H * W, H * W), 2, 2)
    assert torch.equal(plane, torch.arange(H)[:, None].expand(2, H * W, H, W))


OFF_PLANE: dict[str, Callable[[Tensor], Tensor]] = {
    "sum over the columns": lambda x: x.sum(3),
    "one row": lambda x: x[:, :, 2],
    "linear over tokens": lambda x: F.linear(x.flatten(2), const(5, H * W).float()),
    "rows turned around": lambda x: x.flip(2),
    "channels and columns rolled into one": lambda x: x.transpose(2, 3).flatten(2).roll(1, 2),
    "two crops in the other order": lambda x: torch.cat([x[:, :, 3:], x[:, :, :3]], 2),
    "a crop of rolled rows": lambda x: x.roll(1, 2)[:, :, 2:6],
    "places in a window, over all windows": lambda x: x.view(len(x), C, 2, H // 2, 2, W // 2).mean((2, 4)),
    "the first of the windows": lambda x: x.view(len(x), C, 2, H // 2, W)[:, :, 0],
    "windows of a window": lambda x: x.view(len(x), C, 2, 2, H // 4, W).mean(3),
    "flat": lambda x: F.linear(x.flatten(1), const(5, C * H * W).float()),
    "pooled and squeezed": lambda x: x.mean((2, 3)),
}


@pytest.mark.parametrize("name", OFF_PLANE)
def test_what_lies_on_no_plane_is_not_taken_for_one(name: str) -> None:
    assert not layout_behind(OFF_PLANE[name], torch.zeros(2, C, H, W)).on_plane(2)


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
    "assignment in another order": (lambda x: _assigned_in_another_order(x), "setitem"),
    "layer norm over the batch": (lambda x: F.layer_norm(x.movedim(0, -1), (N,)).movedim(-1, 0), "layer_norm"),
    "pad of the batch": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1], "pad"),
    "pairs of samples": (lambda x: F.cosine_similarity(x.flatten(1)[None], x.flatten(1)[:, None], dim=-1), "cosine_similarity"),
    "scatter over the batch": (lambda x: x.scatter(0, x.detach().argsort(0), x.exp()), "scatter"),
    "index_add over the batch": (lambda x: x.index_add(0, torch.tensor([1]), const(1, C, H, W)), "index_add"),
    "each image twice": (lambda x: x.repeat_interleave(2, 0)[:N], "repeat_interleave"),
    "unfold over the batch": (lambda x: x.unfold(0, N, 1)[0].movedim(-1, 0).flip(0), "unfold"),
    "sorted over the batch": (lambda x: x.sort(0).values, "sort"),
}


def _assigned_across(x: Tensor) -> Tensor:
    y = x.clone()
    y[0] = x[1]
    return y


def _assigned_in_another_order(x: Tensor) -> Tensor:
    y = x.clone()
    y[torch.arange(len(x) - 1, -1, -1)] = x.exp()
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
    model = network("loop over samples")  # whose batch is told apart by running each image alone
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
            alone = torch.stack([sample.exp() for sample in x])  # whose batch is told apart by running each image alone
            return (alone.mean((2, 3)) * condition).sum(1) * scale

    condition = torch.rand(N, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5
    together = full_gradients(Conditioned(), images(), additional_forward_args=(condition, 2.0))
    for i in range(N):
        alone = full_gradients(Conditioned(), images()[i : i + 1], additional_forward_args=(condition[i : i + 1], 2.0))
        # float64 rounding
        torch.testing.assert_close(together.input_term[i], alone.input_term[0], rtol=1e-9, atol=1e-10)
