"""Border and corners, against loops over pixels."""

from __future__ import annotations

import math

import pytest
import torch

from fg_lightning.metrics import border_mask, border_share, corner_masks, corner_shares

SIZES = [(10, 10), (28, 28), (5, 31), (3, 3), (224, 7), (4, 12, 20)]


@pytest.mark.parametrize("size", SIZES)
def test_the_border_is_the_outer_tenth_of_every_slice(size: tuple[int, ...]) -> None:
    maps = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))
    height, width = size[-2:]
    high, wide = math.ceil(height / 10), math.ceil(width / 10)
    inside = maps[..., high : height - high, wide : width - wide].flatten(1).sum(1)
    torch.testing.assert_close(border_share(maps), 1 - inside / maps.flatten(1).sum(1), atol=1e-5, rtol=0)  # sums in float32


@pytest.mark.parametrize("size", SIZES)
def test_corners_are_a_fifth_of_every_side(size: tuple[int, ...]) -> None:
    maps = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1))
    height, width = size[-2:]
    high, wide = math.ceil(height / 5), math.ceil(width / 5)
    total = maps.flatten(1).sum(1)
    expected = {
        "top_left": maps[..., :high, :wide],
        "top_right": maps[..., :high, -wide:],
        "bottom_left": maps[..., -high:, :wide],
        "bottom_right": maps[..., -high:, -wide:],
    }
    shares = corner_shares(maps)
    assert list(shares) == list(expected)
    for name, corner in expected.items():
        torch.testing.assert_close(shares[name], corner.flatten(1).sum(1) / total, atol=1e-6, rtol=0)


def test_a_signal_has_ends_and_no_corners() -> None:
    signal = torch.tensor([[[6.0, 0, 0, 0, 0, 1, 1, 0, 0, 2]]])
    assert border_share(signal).tolist() == pytest.approx([0.8])
    assert corner_shares(signal) == {}


@pytest.mark.parametrize("size", SIZES)
def test_a_flat_map_has_the_share_of_the_area(size: tuple[int, ...]) -> None:
    flat, border = torch.ones(1, 1, *size), border_mask(size)
    assert border is not None
    assert float(border_share(flat)) == pytest.approx(float(border.float().mean()))
    for name, share in corner_shares(flat).items():
        assert float(share) == pytest.approx(float(corner_masks(size)[name].float().mean()))


@pytest.mark.parametrize("size", [(2, 9), (9, 2), (1,), (2,)])
def test_what_is_all_border_has_no_share(size: tuple[int, ...]) -> None:
    assert border_mask(size) is None
    with pytest.raises(ValueError, match="at least 3 pixels"):
        border_share(torch.ones(1, 1, *size))


def test_corners_of_a_single_row_or_column_are_not_defined() -> None:
    assert corner_masks((1, 9)) == corner_masks((9, 1)) == corner_masks((7,)) == {}
