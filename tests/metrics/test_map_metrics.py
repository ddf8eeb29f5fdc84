"""Drift, concentration, agreement and completeness, against their definitions written out map by map."""

from __future__ import annotations

import doctest
import importlib
import math

import matplotlib as mpl
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional import spearman_corrcoef

from fg_lightning import full_gradients
from fg_lightning.metrics import (
    CompletenessError,
    Concentration,
    Drift,
    PointingGame,
    RelevanceMass,
    TotalVariation,
    completeness_error,
    cosine_drift,
    entropy,
    gini_index,
    pointing_game,
    rank_correlation,
    relevance_mass,
    total_variation,
)

SIZES = [(7,), (5, 6), (3, 4, 2)]


def random_maps(*size: int, n: int = 3, seed: int = 0, levels: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.rand(n, 1, *size, generator=generator)
    return torch.randint(levels, (n, 1, *size), generator=generator).float()


def random_mask(*size: int, n: int = 3) -> Tensor:
    mask = random_maps(*size, n=n, seed=5) < 0.4
    mask.flatten(1)[:, 0] = True
    return mask


@pytest.mark.parametrize("name", ["localization", "completeness", "concentration", "drift", "perturbation", "border_and_corners"])
def test_examples_in_docstrings_do_what_they_show(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"fg_lightning.metrics.{name}"))
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [None, 3])
def test_rank_correlation_is_spearmans(size: tuple[int, ...], levels: int | None) -> None:
    maps, others = random_maps(*size, levels=levels), random_maps(*size, levels=levels, seed=1)
    expected = torch.stack([spearman_corrcoef(a.flatten(), b.flatten()) for a, b in zip(maps, others, strict=True)])
    # float32, and torchmetrics adds 1e-6 to its divisor
    torch.testing.assert_close(rank_correlation(maps, others), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("levels", [None, 3])
def test_rank_correlation_is_that_of_mean_ranks(levels: int | None) -> None:
    maps, others = random_maps(4, 4, levels=levels), random_maps(4, 4, levels=levels, seed=1)

    def mean_ranks(values: list[float]) -> Tensor:
        return torch.tensor([sum(other < own for other in values) + (values.count(own) - 1) / 2 for own in values])

    for found, a, b in zip(rank_correlation(maps, others), maps, others, strict=True):
        expected = torch.corrcoef(torch.stack([mean_ranks(m.flatten().tolist()) for m in (a, b)]))[0, 1]
        assert float(found) == pytest.approx(float(expected), abs=1e-6)  # float32


def test_rank_correlation_takes_any_number_of_equal_pixels() -> None:
    maps = torch.zeros(1, 1, 400, 400)
    maps[..., :100] = 1
    assert float(rank_correlation(maps, 5 * maps)) == pytest.approx(1, abs=1e-5)  # float32
    assert float(rank_correlation(maps, -maps)) == pytest.approx(-1, abs=1e-5)
    assert float(rank_correlation(maps, torch.ones_like(maps))) == 0


def test_two_maps_of_zeros_are_the_same() -> None:
    zero, other = torch.zeros(2, 1, 3, 3), torch.rand(2, 1, 3, 3)
    assert cosine_drift(zero, zero).tolist() == [0, 0]
    assert cosine_drift(zero, other).tolist() == [1, 1]


@pytest.mark.parametrize("size", SIZES)
def test_cosine_drift_is_one_less_the_cosine(size: tuple[int, ...]) -> None:
    maps, others = random_maps(*size), random_maps(*size, seed=1)
    for found, a, b in zip(cosine_drift(maps, others), maps, others, strict=True):
        cosine = sum(x * y for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)) / math.sqrt(
            sum(x * x for x in a.flatten().tolist()) * sum(y * y for y in b.flatten().tolist())
        )
        assert float(found) == pytest.approx(1 - cosine, abs=1e-6)  # float32
    for scale in (3, 1e-12, 1e30):
        assert (cosine_drift(maps, scale * maps) < 1e-6).all()
        torch.testing.assert_close(cosine_drift(scale * maps, scale * others), cosine_drift(maps, others), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_the_gini_index_is_half_the_mean_difference_over_the_mean(size: tuple[int, ...]) -> None:
    maps = random_maps(*size)
    for found, saliency in zip(gini_index(maps), maps, strict=True):
        values = saliency.flatten().double()
        expected = (values[:, None] - values).abs().mean() / (2 * values.mean())
        assert float(found) == pytest.approx(float(expected), abs=1e-6)  # float32


@pytest.mark.parametrize("size", SIZES)
def test_entropy_is_relative_to_the_largest_there_can_be(size: tuple[int, ...]) -> None:
    maps = random_maps(*size, levels=3)
    for found, saliency in zip(entropy(maps), maps, strict=True):
        shares = [value / float(saliency.sum()) for value in saliency.flatten().tolist() if value]
        expected = -sum(share * math.log(share) for share in shares) / math.log(saliency.numel())
        assert float(found) == pytest.approx(expected, abs=1e-6)  # float32


@pytest.mark.parametrize("scale", [1e-38, 1.0, 1e38])
def test_concentration_of_flat_and_of_pointed_maps(scale: float) -> None:
    maps = torch.zeros(3, 1, 10, 10)
    maps[0] = scale
    maps[1, 0, 3, 3] = scale
    torch.testing.assert_close(gini_index(maps), torch.tensor([0.0, 0.99, 0.0]), rtol=0, atol=1e-5)  # float32, 100 terms
    torch.testing.assert_close(entropy(maps), torch.tensor([1.0, 0.0, 1.0]), rtol=0, atol=1e-5)


def test_the_pointing_game_looks_where_the_map_is_largest() -> None:
    maps, mask = random_maps(6, 6, n=40), random_mask(6, 6, n=40)
    found = pointing_game(maps, mask)
    for hit, saliency, where in zip(found, maps, mask, strict=True):
        assert float(hit) == float(where.flatten()[saliency.flatten().argmax()])
    assert 0 < found.mean() < 1


def test_of_several_largest_pixels_the_share_on_the_mask_counts() -> None:
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[..., :1] = True
    maps = torch.zeros(2, 1, 4, 4)
    maps[1, 0, 0, :] = 2
    assert pointing_game(maps, mask).tolist() == [0.25, 0.25]


@pytest.mark.parametrize("size", [(12,), (9, 9), (5, 5, 5)])
@pytest.mark.parametrize("tolerance", [0, 1, 2, 3])
def test_the_tolerance_is_a_distance_as_the_crow_flies(size: tuple[int, ...], tolerance: int) -> None:
    maps, mask = random_maps(*size, n=30), torch.zeros(30, 1, *size, dtype=torch.bool)
    mask.flatten(1)[torch.arange(30), torch.arange(30) % mask[0].numel()] = True
    for hit, saliency, where in zip(pointing_game(maps, mask, tolerance=tolerance), maps, mask, strict=True):
        peak = (saliency == saliency.max()).nonzero()[0].float()
        distance = (where.nonzero() - peak).square().sum(1).sqrt().min()
        assert float(hit) == float(distance <= tolerance)


@pytest.mark.parametrize("size", SIZES)
def test_relevance_mass_is_the_share_of_the_sum_on_the_mask(size: tuple[int, ...]) -> None:
    maps, mask = random_maps(*size), random_mask(*size)
    for found, saliency, where in zip(relevance_mass(maps, mask), maps, mask, strict=True):
        assert float(found) == pytest.approx(float(saliency[where].sum() / saliency.sum()), abs=1e-6)  # float32
    # nowhere in particular: as much of it as there is of the mask
    torch.testing.assert_close(relevance_mass(torch.zeros_like(maps), mask), mask.flatten(1).float().mean(1))


def test_completeness_error_is_that_of_full_gradients() -> None:
    images = torch.rand(6, 1, 3, 3)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.SiLU(), nn.Flatten(), nn.Linear(8, 3))
    assert torch.equal(completeness_error(model, images, 1), full_gradients(model, images, 1).completeness_error)
    metric = CompletenessError()
    metric.update(model, images[:4], 1)
    metric.update(model, images[4:], 1)
    errors = completeness_error(model, images, 1)
    assert float(metric.compute()["completeness_error"]) == pytest.approx(float(errors.mean()), abs=1e-7)  # float32
    assert float(metric.compute()["completeness_error_max"]) < 1e-4


def test_the_largest_completeness_error_of_all_batches_and_processes_is_kept() -> None:
    first, other = CompletenessError(), CompletenessError()
    for metric, errors in ((first, [0.1, 0.7]), (first, [0.2]), (other, [0.4])):
        metric._add(torch.tensor(errors))
        metric.largest = torch.maximum(metric.largest, torch.tensor(max(errors)))
        metric._update_count += 1
    first.merge_state(other)
    assert float(first.compute()["completeness_error"]) == pytest.approx(1.4 / 4)
    assert float(first.compute()["completeness_error_max"]) == pytest.approx(0.7)


MAPS = {
    "Drift": (Drift, (random_maps(5, 5, n=7), random_maps(5, 5, n=7, seed=1)), (rank_correlation, cosine_drift)),
    "Concentration": (Concentration, (random_maps(5, 5, n=7),), (gini_index, entropy)),
    "PointingGame": (PointingGame, (random_maps(5, 5, n=7), random_mask(5, 5, n=7)), (pointing_game,)),
    "RelevanceMass": (RelevanceMass, (random_maps(5, 5, n=7), random_mask(5, 5, n=7)), (relevance_mass,)),
}


@pytest.mark.parametrize("name", MAPS)
def test_metrics_are_means_of_their_functions_over_batches_and_processes(name: str) -> None:
    build, arguments, functions = MAPS[name]
    first, other = build(), build()
    batch = first(*(argument[:2] for argument in arguments))
    first.update(*(argument[2:3] for argument in arguments))
    other.update(*(argument[3:] for argument in arguments))
    first.merge_state(other)
    for function in functions:
        # float32: the order of seven additions
        torch.testing.assert_close(first.compute()[function.__name__], function(*arguments).mean(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(batch[function.__name__], function(*(argument[:2] for argument in arguments)).mean())


@pytest.mark.parametrize("name", MAPS)
def test_metrics_draw_themselves(name: str) -> None:
    mpl.use("Agg")
    build, arguments, functions = MAPS[name]
    metric = build()
    metric.update(*arguments)
    figure, axes = metric.plot()
    assert axes.get_ylabel() == name
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {function.__name__ for function in functions}
    over_time, _ = metric.plot([metric.compute(), metric.compute()])
    mpl.pyplot.close(figure)
    mpl.pyplot.close(over_time)


def test_the_tolerance_of_the_pointing_game_is_a_setting() -> None:
    maps, mask = torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    maps[0, 0, 0, 0] = 1
    mask[0, 0, 0, 2] = True
    results = []
    for tolerance in (1, 2):
        metric = PointingGame(tolerance)
        metric.update(maps, mask)
        results.append(float(metric.compute()["pointing_game"]))
    assert results == [0.0, 1.0]


@pytest.mark.parametrize("other", [PointingGame(3), RelevanceMass()])
def test_a_collection_keeps_metrics_apart_whose_first_batch_is_alike(other: Metric) -> None:
    """torchmetrics compares states after the first batch: here every image scores 1 by any of them."""
    full, none = torch.ones(2, 1, 4, 4, dtype=torch.bool), torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    none[..., 0] = True
    alone = other.clone()
    collection = MetricCollection({"exact": PointingGame(), "other": other.clone()})
    for maps, mask in ((random_maps(4, 4, n=2), full), (random_maps(4, 4, n=2, seed=3), none)):
        collection.update(maps=maps, mask=mask)
        alone.update(maps, mask)
    (expected,) = alone.compute().values()
    exact, found = collection.compute().values()
    assert found == expected != exact


def test_total_variation_is_torchmetrics() -> None:
    maps = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]])
    assert float(total_variation(maps)) == 1 + 0 + 3 + 2
    metric = TotalVariation(reduction="mean")
    metric.update(maps)
    assert float(metric.compute()) == 6


def without_mask() -> Tensor:
    return torch.zeros(3, 1, 5, 6, dtype=torch.bool)


BAD = {
    "negative": (lambda m: gini_index(m - 0.5), ValueError, r"of 90 saliency values are negative, .*maps.abs\(\)"),
    "nan": (lambda m: entropy(m.where(m < 0.9, torch.nan)), ValueError, "of 90 saliency values are NaN"),
    "other sizes": (lambda m: rank_correlation(m, m[..., :3]), ValueError, r"cannot be compared with maps of shape \(3, 1, 5, 3\)"),
    "integers": (lambda m: cosine_drift(m, m.int()), TypeError, "not a tensor of torch.int32"),
    "a float mask": (lambda m: relevance_mass(m, m), TypeError, "boolean tensor, .* mask > 0"),
    "a mask of another size": (lambda m: pointing_game(m, random_mask(5, 5)), ValueError, r"mask has shape \(3, 1, 5, 5\)"),
    "empty masks": (lambda m: pointing_game(m, without_mask()), ValueError, "3 of 3 masks are empty, first that of image 0"),
    "a tolerance": (lambda m: pointing_game(m, random_mask(5, 6), tolerance=-1), ValueError, "at least 0, but is -1"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.ill_typed
def test_bad_input_is_refused_with_what_was_wrong(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(random_maps(5, 6))


def test_an_empty_batch_is_refused() -> None:
    name = "the batch is empty"
    with pytest.raises(ValueError, match=name):
        Concentration().update(torch.empty(0, 1, 4, 4))
    with pytest.raises(ValueError, match=name):
        Drift()(torch.empty(0, 1, 4, 4), torch.empty(0, 1, 4, 4))
    with pytest.raises(ValueError, match=name):
        RelevanceMass()(torch.empty(0, 1, 4, 4), torch.empty(0, 1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=name):
        CompletenessError().update(nn.Flatten(), torch.empty(0, 1, 4, 4))


def test_what_is_infinite_has_no_shares_and_no_angle() -> None:
    maps = torch.tensor([[[1.0, 2.0, float("inf")]]])
    for call in (
        gini_index,
        entropy,
        lambda maps: cosine_drift(maps, maps.clamp(max=1)),
        lambda maps: cosine_drift(torch.ones(1, 1, 3), maps),
    ):
        with pytest.raises(ValueError, match="1 of 3 saliency values are infinite"):
            call(maps)


def test_metrics_that_are_not_differentiable_give_no_gradients() -> None:
    maps = torch.rand(2, 1, 4, 4, requires_grad=True)
    metric = Drift()
    assert metric.is_differentiable is False
    assert not any(value.requires_grad for value in metric(maps, torch.rand(2, 1, 4, 4)).values())
    assert not any(value.requires_grad for value in metric.compute().values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_lifted(dtype: torch.dtype) -> None:
    maps, others = torch.rand(2, 3, 1, 8, 8).to(dtype)
    torch.testing.assert_close(cosine_drift(maps, others), cosine_drift(maps.float(), others.float()), rtol=0, atol=1e-6)  # float32


@pytest.mark.parametrize("kind", [CompletenessError, Concentration, Drift, PointingGame, RelevanceMass])
def test_what_torchmetrics_asks_of_a_class_can_be_read_there(kind: type[Metric]) -> None:
    assert kind.higher_is_better in (True, False, None)
    assert kind.is_differentiable is False
    assert kind.full_state_update is False
