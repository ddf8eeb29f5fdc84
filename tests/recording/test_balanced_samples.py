"""Which samples become the probe, and where data sets keep their labels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split
from torchvision.datasets import ImageFolder

from fg_lightning.demo.digits import DigitsDataModule
from fg_lightning.recording.balanced_samples import choose_balanced, choose_evenly, known_labels


@pytest.mark.parametrize("num_samples", [1, 2, 3, 5, 8, 40, 100])
def test_classes_are_balanced(num_samples: int) -> None:
    labels = np.random.default_rng(0).integers(0, 5, 60)
    chosen = choose_balanced(labels, num_samples)
    assert len(chosen) == len(set(chosen)) == min(num_samples, 60)
    assert labels[chosen].tolist() == sorted(labels[chosen])
    counts, sizes = Counter(labels[chosen].tolist()), Counter(labels.tolist())
    if num_samples <= 5:
        assert max(counts.values()) == 1
    most = max(counts.values())
    assert all(counts[label] >= min(most - 1, sizes[label]) for label in sizes) or num_samples < 5
    assert chosen == choose_balanced(labels, num_samples)


def test_small_classes_leave_their_places_to_others() -> None:
    labels = np.array([0] * 20 + [1] + [2] * 2)
    assert Counter(labels[choose_balanced(labels, 9)].tolist()) == {0: 6, 1: 1, 2: 2}


def test_samples_are_spread_within_a_class() -> None:
    assert choose_balanced(np.array([0, 1] * 50), 4) == [24, 74, 25, 75]


def test_few_samples_are_of_classes_far_apart() -> None:
    labels = np.arange(1000).repeat(3)
    assert labels[choose_balanced(labels, 3)].tolist() == [0, 499, 999]


def test_samples_without_a_label_come_last() -> None:
    assert choose_balanced(np.array([-1, -1, 1, -1, 0]), 2) == [4, 2]
    assert choose_balanced(np.array([-1] * 10), 2) == choose_evenly(10, 2) == [0, 9]


class Pictures(Dataset[Any]):
    """Any data set; its samples may not be read."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("a sample was read")


class Lazy(Pictures):
    @property
    def targets(self) -> Any:
        return [self[i] for i in range(6)]


LABELS = [0, 2, 1, 1, 0, 2]
TENSORS = TensorDataset(torch.zeros(6, 1, 4, 4), torch.tensor(LABELS))
KNOWN: dict[str, Any] = {
    "tensors": TENSORS,
    "a column": TensorDataset(torch.zeros(6, 1, 4, 4), torch.tensor(LABELS)[:, None]),
    "targets": Pictures(targets=LABELS),
    "an array": Pictures(labels=np.array(LABELS)),
    "narrow numbers": Pictures(y=np.array(LABELS, np.uint8)),
    "private": Pictures(_labels=torch.tensor(LABELS)),
    "pairs": Pictures(samples=[(f"{i}.jpg", label) for i, label in enumerate(LABELS)]),
    "within": Pictures(dataset=TENSORS),
    "a subset": Subset(TensorDataset(torch.zeros(7, 1), torch.tensor([5, *LABELS])), range(1, 7)),
    "a subset within": Pictures(subset=Subset(TENSORS, range(6))),
    "parts": ConcatDataset([Subset(TENSORS, [0, 1]), Subset(TENSORS, [2, 3, 4, 5])]),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_labels_are_known_without_reading_a_sample(kind: str) -> None:
    found = known_labels(KNOWN[kind])
    assert found is not None
    assert found.tolist() == LABELS


UNKNOWN: dict[str, Any] = {
    "nothing": Pictures(),
    "a property": Lazy(),
    "numbers": Pictures(targets=[0.5] * 6),
    "several labels": Pictures(targets=torch.zeros(6, 4, dtype=torch.long)),
    "words": Pictures(labels=["cat"] * 6),
    "of another number": Pictures(targets=[0, 1]),
    "images alone": TensorDataset(torch.zeros(6, 1, 4, 4)),
    "one part": ConcatDataset([TENSORS, Pictures()]),
    "within, of another length": Pictures(dataset=Subset(TENSORS, [0])),
    "itself": Pictures(),
}
UNKNOWN["itself"].dataset = Pictures(dataset=None)


@pytest.mark.parametrize("kind", UNKNOWN)
def test_other_labels_are_not_known(kind: str) -> None:
    assert known_labels(UNKNOWN[kind]) is None


def test_an_image_folder_has_its_labels(tmp_path: Any) -> None:
    for i, name in enumerate(["ant", "bee", "ant", "cow"]):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / f"{i}.png")
    first, second = random_split(ImageFolder(tmp_path), [2, 2], torch.Generator().manual_seed(0))
    assert sorted([*known_labels(first), *known_labels(second)]) == [0, 0, 1, 2]  # type: ignore[misc]


def test_the_demo_shows_eight_different_digits() -> None:
    data = DigitsDataModule()
    data.setup("fit")
    labels = known_labels(data.val)
    assert labels is not None
    assert len({int(data.val[i][1]) for i in choose_balanced(labels, 8)}) == 8
