"""Networks that move, fold and split the samples and the image plane."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    "assignment": (lambda x: assigned(x), None),
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
        lambda x: windows_reversed(padded_rolled_windows(x).softmax(1).exp(), len(x), H + 2, W + 2),
        None,
    ),
    "patch merging": (lambda x: F.linear(patched(x), const(3, 4 * C), const(3)), None),
    "patches with samples between": (
        lambda x: patched(x).view(len(x) * 2, -1, 2, 2 * C).softmax(1).view(len(x), -1).exp(),
        None,
    ),
    "unfold and fold": (lambda x: F.fold(F.unfold(x, 3, padding=1).exp(), (H, W), 3, padding=1), None),
    "tokens first": (lambda x: (tokens(x).transpose(0, 1).exp() + const(H * W, 1, C)).mean(0), None),
    "written in place behind a view that torch hides": (lambda x: F.leaky_relu(F.instance_norm(x), inplace=True).exp(), None),
    "a constant written to through a view": (lambda x: through_a_view(x), None),
    "samples in a row": (lambda x: x.repeat_interleave(4, 0).exp().view(len(x), 4, -1).mean(1), None),
    "samples in turns": (lambda x: (x.repeat(3, 1, 1, 1).exp()).view(3, len(x), -1).prod(0), None),
    "samples in turns, chunks": (lambda x: torch.mul(*F.silu(torch.cat([x, x.flip(3)])).chunk(2)), None),
    "samples in turns, slices": (lambda x: halves(torch.cat([x, x.flip(3)], 0).exp(), len(x)), None),
    "samples in turns, split": (lambda x: sum(x.tile(3, 1, 1, 1).exp().split(len(x))), None),
    "samples in turns, mean of a view": (lambda x: x.exp().repeat(2, 1, 1, 1).flatten(1).view(2, len(x), -1).mean(0), None),
    "distances to constants": (lambda x: torch.cdist(tokens(x), const(1, 3, C)).exp(), None),
    "distances between places": (lambda x: torch.cdist(tokens(x), tokens(x).exp()[:, :5]), None),
    "distances to prototypes": (lambda x: -torch.cdist(x.flatten(1), const(5, C * H * W)), None),
    "pairwise distance": (lambda x: F.pairwise_distance(x.flatten(2), x.flatten(2).sin(), keepdim=True), None),
    "pairwise distance to a constant": (lambda x: F.pairwise_distance(x.flatten(1), const(1, C * H * W), keepdim=True), None),
    "angle": (lambda x: torch.fft.rfft2(x).angle().sin(), None),
    "complex": (lambda x: torch.complex(x, x.sin()).abs().exp(), None),
    "complex with a constant": (lambda x: (torch.complex(x, const(H, W)) * torch.complex(const(W), x)).real, None),
    "polar": (lambda x: torch.polar(x.exp(), x).imag, None),
    "view as complex and real": (lambda x: torch.view_as_real(torch.view_as_complex(x.view(len(x), -1, 2)) ** 2).exp(), None),
    "fliplr": (lambda x: x.fliplr().exp() * x, None),
    "rot90": (lambda x: x.rot90(1, (2, 3)).exp(), None),
    "fftshift": (lambda x: torch.fft.ifft2(torch.fft.fftshift(torch.fft.fft2(x), (2, 3)) * const(H, W)).real.exp(), None),
    "fftn over the plane": (lambda x: torch.fft.irfftn(torch.fft.rfftn(x, dim=(2, 3)) * const(H, 4), s=(H, W)).exp(), None),
    "broadcast_tensors": (lambda x: torch.mul(*torch.broadcast_tensors(x, x.mean(1, keepdim=True).exp())), None),
    "broadcast_to": (lambda x: x.mean(1, keepdim=True).broadcast_to(x.shape).exp(), None),
    "atleast_3d": (lambda x: torch.atleast_3d(x.mean((2, 3))).exp(), None),
    "dstack": (lambda x: torch.dstack([x.mean(3), x.mean(3).exp()]).exp(), None),
    "hsplit and column_stack": (lambda x: torch.column_stack([part.exp() for part in x.hsplit(2)] * 2), None),
    "tensor_split": (lambda x: x.tensor_split(3, 1)[0].exp(), None),
    "quantile": (lambda x: x.flatten(2).quantile(0.3, 2).exp(), None),
    "several quantiles": (lambda x: x.quantile(torch.tensor([0.2, 0.7]).double(), dim=1).transpose(0, 1).exp(), None),
    "aminmax": (lambda x: torch.stack(x.aminmax(dim=1), 1).exp(), None),
    "inverse": (lambda x: torch.linalg.inv(x @ x.mT + 3 * torch.eye(H).double()), None),
    "singular values": (lambda x: torch.linalg.svdvals(x), None),
    "determinant": (lambda x: torch.linalg.slogdet(x @ x.mT + torch.eye(H).double())[1], None),
    "solve": (lambda x: torch.linalg.solve(const(H, H) + 4 * torch.eye(H).double(), x).exp(), None),
    "a matrix times a vector": (lambda x: (x @ const(W)).exp(), None),
    "a vector times a matrix": (lambda x: (const(H) @ x).exp(), None),
    "inner": (lambda x: torch.inner(x, const(2, W)).exp(), None),
    "addmm with what is added": (lambda x: torch.addmm(x[:, 0, 0, :5], x.flatten(1), const(C * H * W, 5)).exp(), None),
    "tensordot": (lambda x: torch.tensordot(x, const(3, C), ([1], [1])).exp(), None),
    "spatial transformer": (lambda x: F.grid_sample(x, grid_of(x), align_corners=False).exp(), None),
    "weights of each sample": (lambda x: own_convolution(x), None),
    "whitened with the samples among the channels": (
        lambda x: F.batch_norm(x.reshape(1, -1, H, W), None, None, training=True).view(x.shape).exp(),
        None,
    ),
    "pooled with the samples among the channels": (lambda x: F.max_pool2d(x.flatten(0, 1), 2).view(len(x), -1).exp(), None),
    "fake quantisation": (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 3, 0, 20), None),
    "fake quantisation by channel": (
        lambda x: torch.fake_quantize_per_channel_affine(x, const(C).abs().float() / 5, torch.zeros(C).int(), 1, -9, 9),
        None,
    ),
    "rows read as longer ones": (lambda x: F.pad(x.flatten(2), (0, 1)).exp().view(len(x), 7, 28).tanh(), None),
    "remainder": (lambda x: torch.fmod(x, 0.3) * torch.remainder(x, 0.7), None),
    "padding by reflection, of aten": (lambda x: torch.ops.aten.reflection_pad2d(x, [1, 1, 2, 0]).exp(), None),
    "a slice that is written": (lambda x: torch.slice_scatter(x.exp(), x[:, 1:3].sin(), 1, 0, 2), None),
    "a row that is written": (lambda x: torch.select_scatter(x.exp(), x[:, :, 1], 2, 0), None),
    "masked_scatter": (lambda x: x.masked_scatter(const(H, W) > 0.5, torch.full((N * C * H, W), 0.3).double()).exp(), None),
    "an index of aten": (lambda x: torch.ops.aten.index.Tensor(x, [None, None, torch.tensor([3, 0])]).exp(), None),
    "loop over samples": (lambda x: torch.stack([sample.exp() * sample for sample in x]), None),
}


def patched(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H / 2, W / 2, 4 C] by one view, as timm's Swin merges its patches."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)


def padded_rolled_windows(x: Tensor) -> Tensor:
    return windows(F.pad(x, (0, 2, 0, 2)).roll((1, -2), (3, 2)))


def through_a_view(x: Tensor) -> Tensor:
    constant = x.new_zeros(len(x), 2, C, H, W)
    constant[:, 1].copy_(x)
    constant[:, 0].add_(x.exp())
    return constant.exp()


def halves(y: Tensor, n: int) -> Tensor:
    return y[:n] * y[n:].flip(3)


def grid_of(x: Tensor) -> Tensor:
    """[N, 4, 4, 2], each sample's own."""
    turn = torch.tanh(x.mean((2, 3)))[:, :4].view(-1, 2, 2) / 2
    return F.affine_grid(torch.cat([turn, const(2, 1).expand(len(x), -1, -1) / 9], 2), [len(x), C, 4, 4], align_corners=False)


def own_convolution(x: Tensor) -> Tensor:
    """As conditional convolutions: the samples' kernels side by side, each on its own sample."""
    kernels = (torch.softmax(x.mean((2, 3)), 1) @ const(C, 2 * C * 9)).view(len(x) * 2, C, 3, 3)
    return F.conv2d(x.reshape(1, -1, H, W), kernels, groups=len(x)).view(len(x), 2, H - 2, W - 2)


def assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 2.0
    y[:, 1:3] = x[:, :2] * x[:, 2:]
    return y.exp()


def network(name: str) -> Network:
    function, module = SEQUENCES[name]
    return Network(function, *([] if module is None else [module()]))
