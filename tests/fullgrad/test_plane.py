"""Where the image plane lies in a tensor inside a network."""

from __future__ import annotations

from collections.abc import Callable
from weakref import ref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fg_lightning.fullgrad.layout import Layout
from fg_lightning.fullgrad.tape import Tape
from fg_lightning.fullgrad.tensor_layouts import TensorTable
from tests.helpers.moving_networks import C, H, W, const, padded_rolled_windows, patched, tokens, windows, windows_reversed

# torch itself says so when forward-mode differentiation is first used.
pytestmark = [
    pytest.mark.filterwarnings("ignore:FullGrad draws"),  # of networks made of what scrambles places
]

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
    "windows of padded, rolled rows": padded_rolled_windows,
    "windows of padded, rolled rows, reversed": lambda x: windows_reversed(padded_rolled_windows(x), len(x), H + 2, W + 2).roll(
        (-1, 2), (3, 2)
    )[:, :, :H, :W],
    "cut into windows by unfold": lambda x: x.unfold(2, 2, 2).unfold(3, 3, 3),
    "patch merging, not yet merged": patched,
    "tokens behind one that depends on the input": lambda x: torch.cat([x.mean((2, 3))[:, None], tokens(x)], 1),
    "tokens behind one, by hstack": lambda x: torch.hstack([const(len(x), 1, C).float(), tokens(x)]),
    "written to along the channels": lambda x: x.index_add(1, torch.tensor([1]), x[:, :1] * 0),
    "rolled": lambda x: x.roll((1, -2), (3, 2)),
    "rolled there and back": lambda x: windows_reversed(windows(x.roll((1, -2), (3, 2))), len(x)).roll((-1, 2), (3, 2)),
    "windows of rolled rows": lambda x: windows(x.roll((1, -2), (3, 2))),
    "turned around": lambda x: x.flip(2),
    "turned around both ways": lambda x: x.flip(2, 3),
    "turned around by a list": lambda x: torch.flip(x, [3]),
    "turned there and back": lambda x: x.flip(2).flip(2),
    "turned around, channels second to last": lambda x: x.permute(0, 2, 1, 3).fliplr(),
    "turned around, rows first": lambda x: x.permute(2, 0, 1, 3).flipud(),
    "turned, padded and cut": lambda x: F.pad(x.flip(2), (0, 0, 1, 3))[:, :, 1 : 1 + H],
    "padded, turned": lambda x: F.pad(x, (1, 3, 0, 2)).flip(3, 2),
    "padded, rolled, turned": lambda x: F.pad(x, (1, 3, 0, 2)).roll((1, -2), (3, 2)).flip(3, 2),
    "turned, rolled": lambda x: x.flip(2, 3).roll((1, -2), (3, 2)),
    "windows of turned rows": lambda x: windows(x.flip(2)),
    "tokens of a turned image": lambda x: tokens(x.flip(3)),
    "turned by 90 degrees": lambda x: x.rot90(1, (2, 3)),
    "turned by 180 degrees": lambda x: torch.rot90(x, 2, [2, 3]),
    "turned by -90 degrees": lambda x: x.rot90(-1, dims=(3, 2)),
    "turned by 270 degrees, padded": lambda x: F.pad(x.rot90(3, (2, 3)), (1, 0, 2, 0)),
    "centred": lambda x: torch.fft.fftshift(x, (2, 3)),
    "centred rows of an odd number": lambda x: torch.fft.fftshift(F.pad(x, (0, 1, 0, 1)), dim=(-2, -1)),
    "centred there and back": lambda x: torch.fft.ifftshift(torch.fft.ifftshift(x, (2,)), 3),
    "tokens before one": lambda x: torch.cat([tokens(x), const(1, 1, C).float().expand(len(x), -1, -1)], 1),
    "tokens between one and two": lambda x: torch.cat(
        [const(len(x), 1, C).float(), torch.cat([tokens(x), const(len(x), 2, C).float()], 1)], 1
    ),
    "tokens before one that depends on the input": lambda x: torch.cat([tokens(x), x.mean((2, 3))[:, None]], 1),
    "what stood behind the tokens sliced off": lambda x: torch.cat([tokens(x), const(len(x), 2, C).float()], 1)[:, :-2],
    "one of what stood around the tokens sliced off": lambda x: torch.cat(
        [const(len(x), 2, C).float(), tokens(x), const(len(x), 2, C).float()], 1
    )[:, 1:-1],
    "tokens padded": lambda x: F.pad(tokens(x), (0, 0, 1, 2)),
    "tokens padded and cut back": lambda x: F.pad(F.pad(tokens(x), (0, 0, 1, 2)), (0, 0, -1, -1)),
    "samples in a row": lambda x: x.repeat_interleave(3, 0),
    "samples in a row, by a method's keyword": lambda x: x.repeat_interleave(repeats=3, dim=0).view(len(x), 3, C, H, W),
    "samples in turns": lambda x: x.repeat(2, 1, 1, 1),
    "samples in turns, one of them": lambda x: x.tile(3, 1, 1, 1).chunk(3)[1],
    "samples in turns, two of them": lambda x: x.repeat(3, 1, 1, 1)[len(x) :],
    "samples in turns, by cat": lambda x: torch.cat([x, x * 1, x]).view(3, len(x), C, H, W),
    "samples in turns, by vstack and split": lambda x: torch.vstack([x, x]).split(len(x))[1],
    "every other of samples in a row": lambda x: x.repeat_interleave(2, 0)[1::2],
    "an image many times over": lambda x: x.repeat(1, 1, 2, 3),
    "broadcast with a constant": lambda x: torch.broadcast_tensors(const(2, 1, 1, 1, 1).float(), x)[1],
    "broadcast to more": lambda x: torch.broadcast_to(x, (2, *x.shape)),
    "three dimensions at least": lambda x: torch.atleast_3d(x)[..., None],
    "one of several of three dimensions at least": lambda x: torch.atleast_3d(const(2).float(), x)[1],
    "hsplit": lambda x: x.hsplit(2)[1],
    "dsplit, samples last": lambda x: x.movedim(0, -1)[0].flip(0).flip(0).unsqueeze(0).dsplit(1)[0],
    "tensor_split": lambda x: x.tensor_split([1, 3], 1)[1],
    "dstack, channels last": lambda x: torch.dstack([x.movedim(1, 2), x.movedim(1, 2)]),
    "column_stack": lambda x: torch.column_stack([x, x]),
    "real part of a complex number": lambda x: torch.complex(x, 2 * x).real,
    "real and imaginary part": lambda x: torch.view_as_real(torch.complex(x, x)),
    "channels as complex numbers": lambda x: torch.view_as_complex(x.permute(0, 2, 3, 1).reshape(-1, H, W, 2, 2).contiguous()).imag,
    "as it is, by strides": lambda x: x.contiguous().as_strided((len(x), C, H * 1, W), (C * H * W, H * W, W, 1)),
    "slices of aten": lambda x: torch.ops.aten.slice.Tensor(torch.ops.aten.slice.Tensor(x, 0), 1, 1, 3),
    "an index of aten": lambda x: torch.ops.aten.index.Tensor(x, [None, torch.tensor([2, 0])]),
    "a slice written to": lambda x: torch.slice_scatter(x, x[:, 1:3], 1, 0, 2),
    "all samples written to": lambda x: torch.slice_scatter(const(len(x), C, H, W).float(), x, 0),
    "a channel written to": lambda x: torch.select_scatter(x, x[:, 0], 1, 2),
    "a constant written to through a view": lambda x: _written_through_a_view(x),
    "a convolution with the samples in its groups": lambda x: F.conv2d(
        x.reshape(1, -1, H, W), torch.full((len(x) * 2, C, 1, 1), 1 / C), groups=len(x)
    ),
    "a batch norm with the samples among its channels": lambda x: F.batch_norm(
        x.reshape(1, -1, H, W), torch.zeros(len(x) * C), torch.ones(len(x) * C), eps=0.0
    ),
    "pooling with the samples among the channels": lambda x: F.max_pool2d(x.flatten(0, 1), 1),
    "written to a part of a constant": lambda x: _written_to_a_part(x),
    "windows of other sizes": lambda x: windows_reversed(windows(x), len(x)).view(len(x), C, 2, H // 2, W).transpose(2, 3),
}


def _written_through_a_view(x: Tensor) -> Tensor:
    constant = torch.zeros(2, *x.shape)
    constant.select(0, 1).copy_(x)
    return constant[1]


def _written_to_a_part(x: Tensor) -> Tensor:
    constant = torch.zeros(2, C, len(x), H, W)
    for channel in range(C):
        constant[1, channel] = x[:, channel]
    return constant[1].transpose(0, 1)


def _average(size: int) -> Tensor:
    """A kernel that leaves every image where it is, on the whole."""
    return torch.full((C, C, size, size), 1 / (C * size * size))


def layout_behind(function: Callable[[Tensor], Tensor], images: Tensor) -> Layout:
    """How the term of a bias lies that is added to what a function makes of images."""
    leaf = images.clone().requires_grad_()
    with Tape([x := leaf.clone()], (), {}) as tape:
        y = function(x) + 1.0
    assert tape.layouts.find(y) is not None
    layout = tape.bias_hooks.terms[-1].layout
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
        lambda x: F.conv2d(patched(x).permute(0, 3, 1, 2), torch.full((4 * C, 4 * C, 1, 1), 1 / (4 * C))),
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
    merged = patched(x)
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
    "an image beside its mirror image": lambda x: torch.cat([x, x.flip(3)], 1),
    "crops from several places": lambda x: torch.stack([x[:, :, :5], x[:, :, 3:]], 1),
    "an image beside a rolled one": lambda x: torch.cat([x, x.roll(3, 2)], 1),
    "an image over its mirror image": lambda x: torch.stack([x, x.flip(3)], 2),
    "tokens turned around behind a class token": lambda x: torch.cat([const(len(x), 1, C).float(), tokens(x)], 1).flip(1),
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


def test_a_table_keeps_no_tensor_alive_and_knows_a_base_through_its_view() -> None:
    table: TensorTable[str] = TensorTable()
    gone, base = torch.rand(2), torch.rand(4)
    table[gone], table[base] = "gone", "base"
    reference, view = ref(gone), base[1:]
    del gone, base
    assert reference() is None
    assert len(table._entries) == 1
    assert view._base in table
    del view
    assert not table._entries
