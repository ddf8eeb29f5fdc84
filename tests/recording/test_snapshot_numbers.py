"""The numbers of maps, and those of a flat map, against which they stand."""

from __future__ import annotations

import pytest
import torch

from fg_lightning.metrics import border_share, corner_shares, pointing_game, relevance_mass
from fg_lightning.recording.snapshot_numbers import chance_numbers, map_numbers

MAPS = torch.randn(4, 1, 10, 15, generator=torch.Generator().manual_seed(0))


def masks() -> torch.Tensor:
    given = torch.zeros(4, 1, 10, 15, dtype=torch.bool)
    given[0, :, 2:5, 2:5] = given[1, :, :, :7] = given[3, :, 4, 4] = True
    return given  # the third is empty


def test_numbers_are_means_over_images_of_the_magnitudes() -> None:
    numbers = map_numbers(MAPS, None, None, "gradcam")
    assert numbers["gradcam/border_share"] == pytest.approx(float(border_share(MAPS.abs()).mean()))
    for corner, shares in corner_shares(MAPS.abs()).items():
        assert numbers[f"gradcam/{corner}_share"] == pytest.approx(float(shares.mean()))
    assert not {"gradcam/relevance_mass", "gradcam/pointing_game"} & set(numbers)


def test_images_without_a_mask_do_not_count() -> None:
    numbers, kept = map_numbers(MAPS, None, None, "fullgrad", masks()), [0, 1, 3]
    assert numbers["fullgrad/relevance_mass"] == pytest.approx(float(relevance_mass(MAPS.abs()[kept], masks()[kept]).mean()))
    assert numbers["fullgrad/pointing_game"] == pytest.approx(float(pointing_game(MAPS.abs()[kept], masks()[kept]).mean()))
    assert "fullgrad/relevance_mass" not in map_numbers(MAPS, None, None, "fullgrad", torch.zeros_like(masks()))


def test_maps_that_are_zero_everywhere_do_not_count() -> None:
    some = MAPS.clone()
    some[1:3] = 0
    given = masks()
    assert map_numbers(some, None, None, "gradcam", given) == map_numbers(MAPS[[0, 3]], None, None, "gradcam", given[[0, 3]])
    earlier = torch.ones_like(MAPS)
    assert set(map_numbers(torch.zeros_like(MAPS), earlier, None, "gradcam", given)) == {"gradcam/drift"}


@pytest.mark.parametrize("size", [(10, 15), (40,), (3, 9, 9), (2, 2), (1, 7)])
def test_a_flat_map_has_the_numbers_of_chance(size: tuple[int, ...]) -> None:
    given = torch.rand(4, 1, *size, generator=torch.Generator().manual_seed(2)) < 0.3
    given[2] = False
    given.flatten(1)[:2, 0] = True
    numbers = map_numbers(torch.ones(4, 1, *size), None, None, "fullgrad", given)
    chance = chance_numbers(size, given)
    assert {f"fullgrad/{name}" for name in chance} == set(numbers) - {"fullgrad/concentration"}
    for name, number in chance.items():
        assert numbers[f"fullgrad/{name}"] == pytest.approx(number, abs=1e-6)
