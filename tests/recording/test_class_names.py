"""What is said of the images of a training: no class name and no confidence where there are no classes, and no word too many."""

import json
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import Normalize

from fg_lightning import FullGradMonitor
from fg_lightning.callbacks.attach import monitors
from fg_lightning.history.class_names import ClassNames
from tests.helpers.small_trainings import Classifier, fit, images_and_labels

NAMES = ["cat", "dog", "owl"]


class Named(TensorDataset):
    classes = NAMES


def data(labels=None, dataset=Named):
    images, classes = images_and_labels(16, seed=2)
    return DataLoader(dataset(images, classes if labels is None else labels(classes)), 8)


class Embedder(Classifier):
    def __init__(self, size=64):
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, size))

    def training_step(self, batch, batch_idx):
        found = F.normalize(self(batch[0]))
        return (found @ found.T).square().mean()

    def validation_step(self, batch, batch_idx):
        pass


class Distance(Embedder):
    def __init__(self):
        super().__init__(1)

    def forward(self, images):
        return super().forward(images).square().squeeze(1)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).mean()


class Age(Distance):
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0]), batch[1].float())


class Diagnosis(Embedder):
    def __init__(self):
        super().__init__(1)

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self(batch[0]).squeeze(1), batch[1].float())


def run(folder, module, loader, caplog, **options):
    """The last rows of images.csv, probe.json, the first caption, and what was noted."""
    monitor = FullGradMonitor(num_samples=4, **{"strict": True} | options)
    with caplog.at_level(logging.INFO):
        fit(folder, monitor, module, train=loader, val=loader, max_epochs=1)
    rows = monitor.history.images(-1)
    about = json.loads((monitor.history.folder / "probe.json").read_text())
    notes = [record.message for record in caplog.records if "task=" in record.message]
    return rows, about, notes


@pytest.mark.parametrize("make", [Embedder, lambda: Embedder(3), Distance])
def test_what_is_no_class_has_no_name_and_no_confidence(tmp_path, caplog, make):
    rows, about, _ = run(tmp_path, make(), data(), caplog)
    assert about["task"] == "Task"
    assert about["class_names"] is None
    for row in rows:
        assert row.confidence is row.explained is None
        assert row.prediction == pytest.approx(row.output, rel=1e-3)


@pytest.mark.parametrize(
    ("module", "labels", "task", "names"),
    [
        (Classifier, None, "Classes", NAMES),
        (Diagnosis, lambda classes: classes > 0, "Binary", None),
        (Age, lambda classes: 20 + classes, "Task", None),
    ],
)
def test_what_is_plain_is_decided_without_a_word(tmp_path, caplog, module, labels, task, names):
    _, about, notes = run(tmp_path, module(), data(labels), caplog)
    assert (about["task"], about["class_names"], notes) == (task, names, [])


def test_a_plain_classifier_needs_no_names(tmp_path, caplog):
    rows, about, notes = run(tmp_path, Classifier(), data(dataset=TensorDataset), caplog)
    assert about["task"] == "Classes"
    assert notes == []
    assert all(row.confidence for row in rows)


def test_a_guess_is_told_once(tmp_path, caplog):
    _, about, notes = run(tmp_path, Distance(), data(lambda classes: classes > 0), caplog)
    assert about["task"] == "Task"
    assert len(notes) == 1
    assert "output [N] is. It is assumed to be a number" in notes[0]


def test_the_user_has_the_last_word(tmp_path, caplog):
    rows, about, notes = run(tmp_path, Classifier(), data(), caplog, task="number")
    assert (about["task"], about["class_names"], notes) == ("Task", None, [])
    assert all(row.confidence is None for row in rows)


@pytest.mark.parametrize("asked", ["task=number", "task='number', num_samples=2"])
def test_the_task_may_be_given_where_the_script_is_untouched(monkeypatch, asked):
    monkeypatch.setenv("FG_LIGHTNING", asked)
    assert monitors()[0].settings.task == "number"


@pytest.mark.parametrize(("task", "error"), [("klass", ValueError), (1, TypeError)])
@pytest.mark.ill_typed
def test_a_task_that_is_none_is_refused_with_those_there_are(monkeypatch, task, error):
    with pytest.raises(error, match='"classes", "labels", "logit", "regions", "number"'):
        FullGradMonitor(task=task)
    monkeypatch.setenv("FG_LIGHTNING", f"task={task}")
    with pytest.raises(ValueError, match=r'cannot be read: .*"classes", "labels", "logit", "regions", "number"'):
        monitors()


def test_a_task_beside_a_function_has_no_effect_and_is_refused():
    with pytest.raises(ValueError, match="the target is a function"):
        FullGradMonitor(task="number", target=lambda output: output[:, 0])


def test_class_names_of_another_number_are_not_shown(tmp_path, caplog):
    with pytest.warns(
        UserWarning, match="class_names has 2 names, but the output has 3 classes .so classes are shown by their numbers"
    ):
        _, about, _ = run(tmp_path, Classifier(), data(dataset=TensorDataset), caplog, class_names=["cat", "dog"], strict=False)
    assert about["class_names"] is None


def test_numbers_in_the_notes_of_a_run_are_never_nan(tmp_path, caplog):
    """A label that is missing, and a normalization without numbers."""

    class Unreadable(TensorDataset):
        transform = Normalize((float("nan"),), (1.0,))

    loader = data(lambda classes: classes.float().masked_fill(classes == 0, torch.nan), dataset=Unreadable)
    module = Age()
    module.training_step = lambda batch, batch_idx: module(batch[0]).mean()
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, module, train=loader, val=loader, max_epochs=1)
    text = (monitor.history.folder / "probe.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["normalization"] is None


def test_a_label_that_is_no_class_is_called_a_label(tmp_path):
    monitor = FullGradMonitor(num_samples=2, strict=True)
    loader = data(lambda classes: 20 + classes)
    fit(tmp_path, monitor, Age(), train=loader, val=loader, max_epochs=1)
    renderer = monitor._recorder._renderer
    assert renderer.classes.caption(35, None, 33.25, None) == "label 35\n→ 33.25"
    assert renderer.classes.name_of(35) == "35"


class TwoHeads(Embedder):
    """Beside labels of two kinds, of which the second is of the first head."""

    def __init__(self):
        super().__init__(4)

    def forward(self, images):
        both = super().forward(images)
        return {"kind": both[:, :3], "age": both[:, 3]}

    def training_step(self, batch, batch_idx):
        found = self(batch[0])
        return F.cross_entropy(found["kind"], batch[2]) + F.l1_loss(found["age"], batch[1].float())


class FeaturesFirst(Embedder):
    """As networks with a centre loss give them: features, then scores."""

    def __init__(self):
        super().__init__(35)

    def forward(self, images):
        both = super().forward(images)
        return both[:, :32], both[:, 32:]

    def training_step(self, batch, batch_idx):
        features, scores = self(batch[0])
        return F.cross_entropy(scores, batch[1]) + features.square().mean()


def two_kinds_of_labels():
    images, classes = images_and_labels(16, seed=2)
    return DataLoader(TensorDataset(images, 20 + torch.arange(16), classes % 3), 8)


def test_the_label_that_is_shown_is_that_of_what_is_explained(tmp_path):
    monitor = FullGradMonitor(num_samples=3, strict=True)
    fit(tmp_path, monitor, TwoHeads(), train=two_kinds_of_labels(), val=two_kinds_of_labels())
    rows = [row for rows in monitor.history.images_by_snapshot().values() for row in rows]
    assert all(row.label == row.explained for row in rows)
    assert {row.label for row in rows} <= {0, 1, 2}


def test_features_before_the_scores_are_no_classes(tmp_path):
    monitor = FullGradMonitor(num_samples=3, strict=True)
    fit(tmp_path, monitor, FeaturesFirst(), train=data(), val=data())
    assert all(row.confidence is row.explained is None for rows in monitor.history.images_by_snapshot().values() for row in rows)


@pytest.mark.parametrize(
    ("names", "answer", "shown"),
    [(NAMES, 1, "dog"), (NAMES, 1.0, "dog"), (None, 1.0, "1"), (NAMES, -100, "-100"), (None, -100, "-100")]
    + [(NAMES, 255, "255"), (NAMES, 0.9, "0.9"), (None, float("nan"), "nan"), (None, None, "")],
)
def test_a_label_has_the_name_of_its_class_and_no_other(names, answer, shown):
    assert ClassNames(names).name_of(answer) == shown


@pytest.mark.parametrize(
    ("names", "label", "explained", "predicted", "confidence", "correct", "shown"),
    [
        (None, 7, 7, 7, 0.982, True, "7 · 98 %"),
        (None, 7, 7, 1, 0.61, False, "7\n→ ✗ 1 · 61 %"),
        (NAMES, 1, 1, 1, 1.0, True, "dog · 100 %"),
        (NAMES, 1, 1, 0, 0.5, False, "dog\n→ ✗ cat · 50 %"),
        (NAMES, 1, 2, 1, 0.5, True, "owl (label dog)\n→ dog · 50 %"),
        (NAMES, None, 2, 1, None, None, "owl\n→ dog"),
        (NAMES, None, None, 1, 0.9, None, "→ dog · 90 %"),
        (NAMES, 2, 2, None, None, None, "owl"),
        (None, None, None, None, None, None, ""),
    ],
)
def test_a_caption_is_short_and_marks_what_is_wrong(names, label, explained, predicted, confidence, correct, shown):
    assert ClassNames(names).caption(label, explained, predicted, confidence, correct) == shown


def test_a_number_is_never_taken_for_a_class_that_was_predicted():
    assert ClassNames(are_classes=False).caption(3.0, None, 3.0, None) == "label 3\n→ 3"
