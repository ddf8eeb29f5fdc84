"""Which pixels go, against sorting one map at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from fg_lightning.removal import ranks, removal_mask, top_pixels

SHAPES = [(7,), (5, 6), (3, 4, 5)]


def random_maps(*size: int, n: int = 3, levels: int | None = None) -> Tensor:
    """Maps of distinct values, or of a few, so that many are equal."""
    generator = torch.Generator().manual_seed(0)
    if levels is None:
        return torch.rand(n, 1, *size, generator=generator)
    return torch.randint(levels, (n, 1, *size), generator=generator).float()


@pytest.mark.parametrize("size", SHAPES)
def test_ranks_of_distinct_values_are_their_places_in_falling_order(size: tuple[int, ...]) -> None:
    maps = random_maps(*size)
    for own, saliency in zip(ranks(maps), maps, strict=True):
        values = saliency.flatten().tolist()
        assert own.flatten().tolist() == [sorted(values, reverse=True).index(value) for value in values]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("seed", [0, 7, [4, 4, 9]])
def test_ranks_with_ties_are_a_permutation_in_falling_order(size: tuple[int, ...], seed: int | list[int]) -> None:
    maps = random_maps(*size, levels=3)
    places = ranks(maps, seed)
    assert places.shape == (3, *size)
    for own, saliency in zip(places.flatten(1), maps.flatten(1), strict=True):
        assert sorted(own.tolist()) == list(range(own.numel()))
        in_order = saliency[own.argsort()]
        assert (in_order[1:] <= in_order[:-1]).all()


@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize("fraction", [0, 0.01, 1 / 3, 0.5, 0.999, 1])
def test_exactly_the_rounded_share_of_pixels_goes_and_the_right_ones(fraction: float, order: str) -> None:
    maps = random_maps(9, 11)
    mask = top_pixels(maps, fraction, order)
    assert mask.shape == maps.shape
    assert mask.dtype is torch.bool
    for saliency, goes in zip(maps, mask, strict=True):
        assert goes.sum() == round(fraction * 99)
        if 0 < goes.sum() < 99:
            gone, left = saliency[goes], saliency[~goes]
            assert gone.min() > left.max() if order == "morf" else gone.max() < left.min()


@pytest.mark.parametrize("levels", [None, 2, 1])
def test_the_two_orders_are_each_others_reverse(levels: int | None) -> None:
    maps = random_maps(8, 8, levels=levels)
    assert torch.equal(top_pixels(maps, 0.25, "morf"), ~top_pixels(maps, 0.75, "lerf"))


def test_what_goes_at_a_fraction_goes_at_every_larger_one() -> None:
    maps = random_maps(8, 8, levels=2)
    masks = [top_pixels(maps, fraction) for fraction in (0.1, 0.3, 0.31, 0.9)]
    for smaller, larger in pairwise(masks):
        assert (smaller <= larger).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ties_are_broken_the_same_way_whatever_else_is_in_the_batch(dtype: torch.dtype) -> None:
    maps = random_maps(6, 6, n=5, levels=2).to(dtype)
    together = ranks(maps)
    assert torch.equal(together, ranks(maps))
    for i in range(5):
        assert torch.equal(ranks(maps[i : i + 1])[0], together[i])
    assert torch.equal(ranks(maps[[3, 1]]), together[[3, 1]])


def test_a_seed_for_each_image_goes_with_the_image() -> None:
    maps = torch.zeros(4, 1, 6, 6)
    together = ranks(maps, [10, 11, 12, 10])
    assert torch.equal(ranks(maps[1:3], [11, 12]), together[1:3])
    assert torch.equal(together[0], together[3])
    assert not torch.equal(together[0], together[1])


def test_ties_are_broken_at_random() -> None:
    flat = torch.zeros(400, 1, 4, 4)
    shares = top_pixels(flat, 0.25, seed=range(400)).float().mean(0)
    # binomial of 400 at 1/4: a standard deviation of 0.022, and four of them
    torch.testing.assert_close(shares, torch.full((1, 4, 4), 0.25), rtol=0, atol=0.087)
    assert not torch.equal(ranks(flat[:1], 0), ranks(flat[:1], 1))


def test_different_maps_with_ties_are_broken_differently() -> None:
    maps = torch.zeros(2, 1, 10, 10)
    maps[1, 0, 0, 0] = 1
    first, second = top_pixels(maps, 0.5)
    assert not torch.equal(first[0, 1:], second[0, 1:])


def test_infinite_saliency_is_ranked() -> None:
    maps = torch.tensor([[[1.0, float("inf"), -float("inf"), 2.0]]])
    assert ranks(maps).tolist() == [[2, 0, 3, 1]]


def test_ranks_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    ranks(torch.zeros(2, 1, 4, 4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize("fraction", [0, 0.3, 1])
def test_removed_takes_ranks_as_they_are_stored(tmp_path, fraction: float, order: str) -> None:
    places = ranks(random_maps(16, 16))
    expected = removal_mask(places, fraction, order)
    for dtype in (torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64):
        assert torch.equal(removal_mask(places.to(dtype), fraction, order), expected)
    stored = np.lib.format.open_memmap(tmp_path / "ranks.npy", "w+", np.uint16, places.shape)
    stored[:] = places.numpy()
    assert np.array_equal(removal_mask(stored, fraction, order), expected.numpy())


def test_all_pixels_of_an_image_with_as_many_as_uint16_counts_go() -> None:
    places = np.arange(2**16, dtype=np.uint16).reshape(1, 256, 256)
    assert removal_mask(places, 1.0).all()
    assert not removal_mask(places, 0.0, "lerf").any()


BAD = {
    "a percentage": (lambda: top_pixels(torch.rand(1, 1, 2, 2), 50), ValueError, "fraction must lie between 0 and 1, but is 50"),
    "a negative fraction": (lambda: top_pixels(torch.rand(1, 1, 2, 2), -0.1), ValueError, "between 0 and 1, but is -0.1"),
    "no number": (lambda: top_pixels(torch.rand(1, 1, 2, 2), float("nan")), ValueError, "between 0 and 1, but is nan"),
    "an order": (lambda: top_pixels(torch.rand(1, 1, 2, 2), 0.5, "most"), ValueError, "'morf' .* or 'lerf' .*, not 'most'"),
    "integers": (lambda: ranks(torch.ones(1, 1, 2, 2).int()), TypeError, "floating-point tensor .*, not a tensor of torch.int32"),
    "an array": (lambda: ranks(np.ones((1, 1, 2, 2))), TypeError, "not ndarray"),
    "no channel": (lambda: ranks(torch.rand(3, 2, 2)), ValueError, r"have shape \(3, 2, 2\)"),
    "three channels": (lambda: ranks(torch.rand(1, 3, 2, 2)), ValueError, r"maps.abs\(\).sum\(1, keepdim=True\)"),
    "seeds": (
        lambda: ranks(torch.rand(2, 1, 2, 2), [1, 2, 3]),
        ValueError,
        "seed holds 3 numbers; give one int, or one int for each of 2 images",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.ill_typed
def test_bad_input_is_refused_with_what_was_wrong(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_nan_is_refused_with_where_and_how_many() -> None:
    maps = torch.rand(12, 1, 4, 4)
    maps[2, 0, :2] = float("nan")
    maps[5, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"9 of 192 saliency values are NaN, in the maps at 2, 5 of the batch"):
        ranks(maps)
    maps[:] = float("nan")
    with pytest.raises(ValueError, match=r"at 0, 1, 2, 3, 4, 5, 6, 7 and 4 more of the batch"):
        ranks(maps)


def test_seeds_may_come_from_numpy_and_torch() -> None:
    maps = random_maps(5, 5, levels=2)
    assert torch.equal(ranks(maps, np.int64(4)), ranks(maps, 4))
    for seeds in (np.array([1, 2, 3]), torch.tensor([1, 2, 3]), range(1, 4)):
        assert torch.equal(ranks(maps, seeds), ranks(maps, [1, 2, 3]))
