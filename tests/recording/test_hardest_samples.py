"""How wrong a network is about each sample, against the definition written out sample by sample."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fg_lightning.recording.hardest_samples import SampleLosses, sample_losses
from fg_lightning.recording.probe import NoProbe
from fg_lightning.recording.settings import Settings
from fg_lightning.recording.task import Binary, Classes, Probability, Regions, SeveralClasses, SeveralProbabilities, Task

G = torch.Generator().manual_seed(0)
SCORES = torch.randn(6, 4, generator=G)
LABELS = torch.tensor([0, 3, 1, -1, 2, 9])
PLANES = torch.randn(6, 4, 2, 3, generator=G)
SEVERAL = (torch.rand(6, 4, generator=G) < 0.5).long()
NUMBERS = torch.randn(6, generator=G)


def cross_entropy(scores: Tensor, label: int) -> float:
    if not 0 <= label < len(scores):
        return -math.inf
    return math.log(sum(math.exp(float(score)) for score in scores)) - float(scores[label])


def yes_or_no(probability: float, label: float) -> float:
    return -math.log(probability if label else 1 - probability)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def sigmoid(score: Tensor) -> float:
    return 1 / (1 + math.exp(-float(score)))


def test_the_loss_of_classes_is_the_cross_entropy() -> None:
    expected = [cross_entropy(scores, int(label)) for scores, label in zip(SCORES, LABELS, strict=True)]
    assert sample_losses(Classes(), SCORES, LABELS).tolist() == pytest.approx(expected, rel=1e-5)
    assert sample_losses(Classes(), SCORES.softmax(1), LABELS).tolist() == pytest.approx(expected, rel=1e-5)  # probabilities
    assert expected.count(-math.inf) == 2


def test_the_loss_of_mixed_labels_is_the_cross_entropy() -> None:
    mixed = torch.rand(6, 4, generator=G).softmax(1)
    expected = [sum(float(w) * cross_entropy(s, k) for k, w in enumerate(ws)) for s, ws in zip(SCORES, mixed, strict=True)]
    assert sample_losses(Classes(), SCORES, mixed).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task", [SeveralClasses(), SeveralProbabilities()])
def test_the_loss_of_several_labels_is_a_mean_over_classes(task: SeveralClasses) -> None:
    output = SCORES if type(task) is SeveralClasses else SCORES.sigmoid()
    expected = [
        mean([yes_or_no(sigmoid(s), int(y)) for s, y in zip(ss, ys, strict=True)]) for ss, ys in zip(SCORES, SEVERAL, strict=True)
    ]
    assert sample_losses(task, output, SEVERAL).tolist() == pytest.approx(expected, rel=1e-5)
    single = sample_losses(task, output, LABELS)
    assert float(single[0]) == pytest.approx(yes_or_no(sigmoid(SCORES[0, 0]), 1), rel=1e-5)
    assert single.tolist().count(-math.inf) == 2


@pytest.mark.parametrize("task", [Binary(), Probability()])
@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 1, 0, 1, 0]), torch.tensor([0.0, 1, 1, 0, 1, 0])])
def test_the_loss_of_a_logit_is_binary(task: Binary, labels: Tensor) -> None:
    logits = SCORES[:, 0]
    output = logits if type(task) is Binary else logits.sigmoid()
    expected = [yes_or_no(sigmoid(logit), float(label)) for logit, label in zip(logits, labels, strict=True)]
    assert sample_losses(task, output, labels).tolist() == pytest.approx(expected, rel=1e-5)
    assert sample_losses(task, output[:, None], labels).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_regions_is_a_mean_over_labelled_places() -> None:
    maps = torch.randint(4, (6, 2, 3), generator=G)
    maps[0, 0] = 255
    maps[1] = 255
    expected = []
    for scores, labels in zip(PLANES, maps, strict=True):
        places = [cross_entropy(scores[:, i, j], int(labels[i, j])) for i in range(2) for j in range(3) if labels[i, j] < 4]
        expected.append(mean(places) if places else -math.inf)
    assert sample_losses(Regions(), PLANES, maps).tolist() == pytest.approx(expected, rel=1e-5)
    binary = [
        mean([yes_or_no(sigmoid(s), float(y)) for s, y in zip(ss.flatten(), ys.flatten(), strict=True)])
        for ss, ys in zip(PLANES[:, 0], maps % 2, strict=True)
    ]
    assert sample_losses(Regions(), PLANES[:, :1], maps % 2).tolist() == pytest.approx(binary, rel=1e-5)


def test_the_loss_of_numbers_is_the_absolute_error() -> None:
    expected = (SCORES[:, 0] - NUMBERS).abs()
    for output in (SCORES[:, 0], SCORES[:, :1]):
        assert torch.equal(sample_losses(Task(), output, NUMBERS), expected)
    torch.testing.assert_close(sample_losses(Task(), SCORES, SCORES + 2), torch.full((6,), 2.0))
    with pytest.raises(NoProbe, match=r"labels \[6\] cannot be compared with an output \[6, 4\]"):
        sample_losses(Task(), SCORES, NUMBERS)


def test_certain_mistakes_are_finite_and_nan_is_never_hardest() -> None:
    scores = torch.tensor([[0.0, 1e9], [float("nan"), 0.0], [0.0, 0.0]])
    model = nn.Sequential(nn.Flatten(), nn.Identity())
    losses = SampleLosses.from_settings(Settings(task="classes"))
    losses.measure(model, (torch.zeros(3, 1, 2), torch.tensor([0, 1, 1])))  # decides what the output means
    measured = losses.measure(model, (scores[:, None], torch.tensor([0, 1, 1])))
    assert measured.tolist() == pytest.approx([-math.log(1e-12), -math.inf, math.log(2)])
    assert losses.words == "cross-entropy"


def test_the_model_comes_back_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(3)).train()
    images, labels = torch.rand(12, 1, 5, 5, generator=G), torch.arange(12) % 3
    model(images)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = SampleLosses.from_settings(Settings(task="classes"))
    state = torch.get_rng_state()
    first, second = (losses.measure(model, (images, labels)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model.eval()(images), labels, reduction="none")
    torch.testing.assert_close(first, expected)


def test_without_labels_of_the_output_it_cannot_be_told() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(NoProbe, match="without labels"):
        SampleLosses.from_settings(Settings()).measure(model, torch.rand(3, 1, 2, 2))
