"""Pixel perturbation, against a loop over images, fractions and pixels."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import matplotlib as mpl
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from fg_lightning.metrics import PixelPerturbation, pixel_perturbation
from fg_lightning.removal import noisy_linear

FRACTIONS = [0.0, 0.1, 0.35, 1.0]


def network(classes: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, classes)
    )
    model[1].running_mean.normal_()
    return model


def images_and_maps(n: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, 8, 8, generator=generator), torch.rand(n, 1, 8, 8, generator=generator)


def by_loops(
    score: Callable[[Tensor], float],
    image: Tensor,
    saliency: Tensor,
    order: str,
    change: str,
    replacement: Callable[[Tensor, tuple[int, int]], Tensor],
) -> list[float]:
    """Of one image [C, H, W] and its map [H, W], the change for every fraction."""
    places = sorted(torch.ones_like(saliency).nonzero().tolist(), key=lambda place: float(saliency[tuple(place)]))
    if order == "morf":
        places = places[::-1]
    before = score(image)
    changes = []
    for fraction in FRACTIONS:
        perturbed = image.clone()
        for y, x in places[: round(fraction * len(places))]:
            perturbed[:, y, x] = replacement(image, (y, x))
        after = score(perturbed)
        changes.append(abs(after - before) / abs(before) if change == "relative" else before - after)
    return changes


FILLS = {
    "black": (0.0, lambda image, place: torch.zeros(2)),
    "channels": ([0.5, -1.0], lambda image, place: torch.tensor([0.5, -1.0])),
    "mean": ("image_mean", lambda image, place: image.mean((1, 2))),
    "a function": (lambda images, mask: torch.where(mask, -images, images), lambda image, place: -image[(slice(None), *place)]),
}


@pytest.mark.parametrize("output", ["logit", "probability"])
@pytest.mark.parametrize(("order", "change"), [("lerf", None), ("morf", None), ("lerf", "drop"), ("morf", "relative")])
@pytest.mark.parametrize("fill", FILLS)
def test_curves_are_those_of_a_plain_loop(fill: str, order: str, change: str | None, output: str) -> None:
    model, (images, maps), classes = network(), images_and_maps(), [0, 3, 1, 1]
    given, replacement = FILLS[fill]
    metric = PixelPerturbation(FRACTIONS, order=order, fill=given, change=change, output=output)
    metric.update(model, images, maps, classes)

    model.eval()
    expected = []
    for image, saliency, label in zip(images, maps[:, 0], classes, strict=True):

        @torch.no_grad()
        def score(seen: Tensor, label: int = label) -> float:
            scores = model(seen[None])[0]
            return float(scores.softmax(0)[label] if output == "probability" else scores[label])

        what = change or {"lerf": "relative", "morf": "drop"}[order]
        expected.append(by_loops(score, image, saliency, order, what, replacement))
    # float32 in batches of other sizes; relative changes divide by outputs of about 0.1
    torch.testing.assert_close(metric.compute(), torch.tensor(expected).mean(0), rtol=1e-4, atol=1e-5)


def test_noisy_linear_imputation_is_a_fill() -> None:
    model, (images, maps) = network(), images_and_maps()
    named = pixel_perturbation(model, images, maps, 2, fractions=FRACTIONS, fill="noisy_linear")
    assert torch.equal(named, pixel_perturbation(model, images, maps, 2, fractions=FRACTIONS, fill=noisy_linear))
    assert (named[:, 1:] > 0).all()
    assert (named[:, 0] == 0).all()


class Dense(nn.Module):
    """[N, 3, H, W] under `out`, beside something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": x, "out": self.conv(x)}


def test_targets_are_those_of_full_gradients() -> None:
    images, maps = images_and_maps()
    model, options = network(), {"fractions": FRACTIONS}
    for same in ([2, 2, 2, 2], torch.tensor([2] * 4), torch.tensor(2), lambda scores: scores[:, 2]):
        assert torch.equal(
            pixel_perturbation(model, images, maps, same, **options), pixel_perturbation(model, images, maps, 2, **options)
        )
    dense = pixel_perturbation(Dense(), images, maps, (1, 4, 4), **options)
    assert dense.shape == (4, 4)
    one = network(classes=1)
    alone = pixel_perturbation(nn.Sequential(one, nn.Flatten(0)), images, maps, **options)
    assert torch.equal(alone, pixel_perturbation(one, images, maps, 0, **options))


def test_no_target_is_the_class_predicted_of_the_whole_image_throughout() -> None:
    (images, maps), model = images_and_maps(32), network(seed=3)
    predicted = model.eval()(images).argmax(1)
    assert not torch.equal(predicted, model(torch.zeros_like(images)).argmax(1))
    named, found = (pixel_perturbation(model, images, maps, target, fractions=FRACTIONS) for target in (predicted, None))
    assert torch.equal(named, found)


@pytest.mark.parametrize("flatten", [False, True])
def test_the_probability_of_one_output_is_its_sigmoid(flatten: bool) -> None:
    images, maps = images_and_maps()
    model = network(classes=1)
    sigmoid = pixel_perturbation(nn.Sequential(model, nn.Sigmoid()), images, maps, 0, fractions=FRACTIONS)
    seen = nn.Sequential(model, nn.Flatten(0)) if flatten else model
    assert torch.equal(pixel_perturbation(seen, images, maps, None, fractions=FRACTIONS, output="probability"), sigmoid)


class Scaled(nn.Module):
    def forward(self, x: Tensor, scale: Tensor, shift: float) -> Tensor:
        return scale[:, None] * x.flatten(1) + shift


def test_additional_arguments_reach_the_model() -> None:
    images, maps = images_and_maps()
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
    given = pixel_perturbation(Scaled(), images, maps, 5, fractions=FRACTIONS, order="morf", additional_forward_args=(scale, 1.0))
    without = pixel_perturbation(nn.Flatten(), images, maps, 5, fractions=FRACTIONS, order="morf")
    assert torch.equal(given, scale[:, None] * without + 1 - 1)


@pytest.mark.parametrize("size", [(9,), (4, 5), (3, 4, 2)])
def test_signals_and_volumes_have_curves(size: tuple[int, ...]) -> None:
    images, maps = torch.rand(2, 3, *size) + 1, torch.rand(2, 1, *size)
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 1, bias=False))
    nn.init.ones_(model[1].weight)
    changes = pixel_perturbation(model, images, maps, fractions=[0.5, 1.0])
    torch.testing.assert_close(changes[:, 1], torch.ones(2))
    assert (changes[:, 0] > 0).all()
    assert (changes[:, 0] < 1).all()


def test_batches_processes_and_forward_add_up() -> None:
    model, (images, maps) = network(), images_and_maps(7)
    whole, parts, other = (PixelPerturbation(FRACTIONS, fill="image_mean") for _ in range(3))
    whole.update(model, images, maps, 1)
    first = parts(model, images[:2], maps[:2], 1)
    parts.update(model, images[2:3], maps[2:3], 1)
    other.update(model, images[3:], maps[3:], 1)
    parts.merge_state(other)
    # float32 in batches of other sizes
    torch.testing.assert_close(parts.compute(), whole.compute(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        first, pixel_perturbation(model, images[:2], maps[:2], 1, fractions=FRACTIONS, fill="image_mean").mean(0)
    )
    assert int(parts.count) == 7
    parts.reset()
    assert int(parts.count) == 0


def test_what_two_processes_gather_is_the_mean_over_all_their_images() -> None:
    model, (images, maps) = network(), images_and_maps(5)
    other, whole = PixelPerturbation(FRACTIONS), PixelPerturbation(FRACTIONS)
    other.update(model, images[:4], maps[:4], 1)
    whole.update(model, images, maps, 1)
    gathered = iter([other.sums, other.count, other.identity])
    synced = PixelPerturbation(FRACTIONS, dist_sync_fn=lambda state, group: [state, next(gathered)])
    synced.distributed_available_fn = lambda: True
    synced.update(model, images[4:], maps[4:], 1)
    torch.testing.assert_close(synced.compute(), whole.compute(), rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was_and_random_state_too() -> None:
    model, (images, maps) = network(), images_and_maps()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state, kept = torch.get_rng_state(), images.clone()
    metric = PixelPerturbation([0.5])
    metric.update(model, images, maps, 1)
    with pytest.raises(ValueError, match="out of range"):
        metric.update(model, images, maps, 99)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(images, kept)


def test_ties_fall_the_same_way_each_time() -> None:
    model, (images, maps) = network(), images_and_maps()
    flat = torch.zeros_like(maps)
    first, again, other = (pixel_perturbation(model, images, flat, 1, fractions=[0.5], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_area_is_the_mean_height_under_the_curve() -> None:
    metric = PixelPerturbation([0.1, 0.2, 0.5])
    metric.sums, metric.count = torch.tensor([2.0, 4.0, 8.0]), torch.tensor(2)
    metric._update_count = 1
    trapezoids = (0.1 * (1 + 2) / 2 + 0.3 * (2 + 4) / 2) / 0.4
    assert float(metric.area()) == pytest.approx(trapezoids, rel=1e-6)  # float32
    alone = PixelPerturbation([0.3])
    alone.update(network(), *images_and_maps(), 1)
    assert float(alone.area()) == float(alone.compute())


def test_it_draws_its_curve() -> None:
    mpl.use("Agg")
    metric = PixelPerturbation(FRACTIONS, order="morf")
    metric.update(network(), *images_and_maps(), 1)
    figure, axes = metric.plot()
    (line,) = axes.get_lines()
    assert line.get_xdata().tolist() == pytest.approx(FRACTIONS)
    assert line.get_ydata().tolist() == metric.compute().tolist()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("fraction of pixels removed", "f(x) - f(x')")
    assert f"{float(metric.area()):.3f}" in axes.get_legend().get_texts()[0].get_text()
    _, same = metric.plot(metric.compute(), axes)
    assert len(same.get_lines()) == 2
    mpl.pyplot.close(figure)


@pytest.mark.parametrize(("order", "better"), [("lerf", False), ("morf", True)])
def test_it_says_which_way_is_better(order: str, better: bool) -> None:
    assert PixelPerturbation([0.5], order).higher_is_better is better


def test_it_tells_its_settings() -> None:
    metric = PixelPerturbation([0.5], "morf", "noisy_linear", output="probability", seed=3)
    settings = metric.fractions, metric.order, metric.fill, metric.change, metric.output, metric.seed
    assert settings == ([0.5], "morf", "noisy_linear", "drop", "probability", 3)


def test_it_can_be_pickled_and_collected() -> None:
    model, (images, maps) = network(), images_and_maps()
    metrics = MetricCollection({order: PixelPerturbation([0.5], order) for order in ("lerf", "morf")})
    metrics.update(model, images, maps, 1)
    restored = pickle.loads(pickle.dumps(metrics))
    assert {name: float(value) for name, value in restored.compute().items()} == {
        name: float(value) for name, value in metrics.compute().items()
    }


def test_a_collection_keeps_fills_apart_that_a_black_batch_makes_alike() -> None:
    model, (images, maps) = network(), images_and_maps()
    fills = {"black": 0.0, "mean": "image_mean"}
    metrics = {name: PixelPerturbation([0.2, 0.5], fill=fill, change="drop") for name, fill in fills.items()}
    collection = MetricCollection({name: metric.clone() for name, metric in metrics.items()})
    for batch in (torch.zeros_like(images), images):
        collection.update(model, batch, maps, 1)
        for metric in metrics.values():
            metric.update(model, batch, maps, 1)
    for name, metric in metrics.items():
        assert torch.equal(collection.compute()[name], metric.compute())


@pytest.mark.parametrize("fill", ["black", "dataset_mean", 0.75])
def test_fills_of_normalized_images_are_those_of_the_images_before(fill: object) -> None:
    """A network that normalizes by itself is the reference."""
    images, maps = images_and_maps()
    images = images.sigmoid()
    mean, std = torch.tensor([0.5, 0.25])[:, None, None], torch.tensor([0.25, 0.5])[:, None, None]
    model = network().eval()

    class Normalizes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model((x - mean) / std)

    given = {"fractions": FRACTIONS, "fill": fill, "dataset_mean": [0.5, 0.125]}
    expected = pixel_perturbation(Normalizes(), images, maps, 1, **given)
    changes = pixel_perturbation(model, (images - mean) / std, maps, 1, **given, normalization=(mean, std))
    torch.testing.assert_close(changes, expected, rtol=1e-4, atol=1e-5)  # float32, divided by outputs of about 0.1
    metric = PixelPerturbation(**given, normalization=(mean.flatten().tolist(), std.flatten().tolist()))
    metric.update(model, (images - mean) / std, maps, 1)
    torch.testing.assert_close(metric.compute(), expected.mean(0), rtol=1e-4, atol=1e-5)


def test_black_of_normalized_images_is_refused_without_their_normalization() -> None:
    with pytest.raises(ValueError, match=r"values below 0[.] Give their normalization"):
        pixel_perturbation(network(), *images_and_maps(), 1, fractions=[0.5], fill="black")


BAD_SETTINGS = {
    "percentages": ({"fractions": [0.5, 5, 10]}, r"2 of 3 fractions lie outside 0..1: 5, 10; .* divided by 100"),
    "nan": ({"fractions": [float("nan")]}, r"1 of 1 fractions lie outside"),
    "none": ({"fractions": []}, "one or more numbers, each larger than the one before"),
    "falling": ({"fractions": [0.5, 0.1]}, r"each larger than the one before, but are \[0.5, 0.1\]"),
    "twice": ({"fractions": [0.5, 0.5]}, "each larger than the one before"),
    "an order": ({"fractions": [0.5], "order": "least"}, "order must be 'morf' .* not 'least'"),
    "a change": ({"fractions": [0.5], "change": "ratio"}, "change must be one of relative, drop, or None .* not 'ratio'"),
    "an output": ({"fractions": [0.5], "output": "softmax"}, "output must be 'logit' or 'probability', not 'softmax'"),
    "no data set": (
        {"fractions": [0.5], "fill": "dataset_mean"},
        "'dataset_mean' needs the mean of the training images, .* give its numbers instead",
    ),
    "a fill": ({"fractions": [0.5], "fill": "blur"}, "fill must be one of black, image_mean, noisy_linear"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
@pytest.mark.ill_typed
def test_bad_settings_are_refused_when_the_metric_is_made(name: str) -> None:
    settings, message = BAD_SETTINGS[name]
    with pytest.raises(ValueError, match=message):
        PixelPerturbation(**settings)


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None]


class Infinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).where(x.flatten(1) != 0, torch.inf)


BAD_BATCHES = {
    "smaller maps": (lambda x, m: (network(), x, m[..., :4]), ValueError, r"expected \(4, 1, 8, 8\)"),
    "fewer maps": (lambda x, m: (network(), x, m[:3]), ValueError, r"\(3, 1, 8, 8\) do not fit images of shape \(4, 2, 8, 8\)"),
    "a map for each channel": (lambda x, m: (network(), x, m.expand(-1, 2, -1, -1)), ValueError, r"maps must be \[N, 1, \*S\]"),
    "nan": (lambda x, m: (network(), x, m.where(m < 0.9, torch.nan)), ValueError, "of 256 saliency values are NaN"),
    "none": (lambda x, m: (network(), x[:0], m[:0]), ValueError, "at least one image, but the batch is empty"),
    "bytes": (lambda x, m: (network(), (x * 255).byte(), m), TypeError, r"floating-point tensor .*, not torch.uint8"),
    "a function": (lambda x, m: (torch.sum, x, m), TypeError, "model must be a torch.nn.Module"),
    "no class": (lambda x, m: (network(), x, m, 7), ValueError, "out of range"),
    "zero": (lambda x, m: (Zero(), x, m, 1), ValueError, "the output is 0 for 2 of 4 images, first for image 1"),
    "infinite": (lambda x, m: (Infinite(), x, m, 1), ValueError, "not finite"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
@pytest.mark.ill_typed
def test_bad_batches_are_refused_with_what_was_wrong(name: str) -> None:
    arguments, error, message = BAD_BATCHES[name]
    metric = PixelPerturbation([0.5, 1.0])
    with pytest.raises(error, match=message):
        metric.update(*arguments(*images_and_maps()))
    assert int(metric.count) == 0


def test_a_fill_of_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="fill gives 3 numbers, one for each channel, but the images have 2 channels"):
        PixelPerturbation([0.5], fill=[0.1, 0.2, 0.3]).update(network(), *images_and_maps())


def test_a_target_function_and_probabilities_are_refused_together() -> None:
    with pytest.raises(ValueError, match="let it return probabilities"):
        PixelPerturbation([0.5], output="probability").update(network(), *images_and_maps(), lambda scores: scores[:, 0])


def test_which_way_is_better_can_be_read_on_the_class_and_survives_copies() -> None:
    assert PixelPerturbation.higher_is_better is None
    metric = PixelPerturbation([0.5], "morf")
    for copied in (metric.clone(), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert copied.higher_is_better is True
    with pytest.raises(RuntimeError, match="higher_is_better"):
        metric.higher_is_better = False


@pytest.mark.parametrize(("fractions", "lines"), [([0.1, 0.5], 3), ([0.5], 1)])
def test_a_list_of_values_is_drawn_step_by_step(fractions: list[float], lines: int) -> None:
    mpl.use("Agg")
    figure, axes = PixelPerturbation(fractions).plot([torch.rand(len(fractions)).squeeze() for _ in range(3)])
    assert figure is not None
    assert len(axes.lines) == lines
    assert len(axes.get_legend_handles_labels()[1]) == lines or lines == 1
    with pytest.raises(ValueError, match="empty list"):
        PixelPerturbation([0.5]).plot([])
    mpl.pyplot.close(figure)
