"""Where the probe comes from, and that nothing else notices."""

from collections import namedtuple
from dataclasses import dataclass

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    DataLoader,
)

from fg_lightning import FullGradMonitor, full_gradients
from fg_lightning.recording.balanced_samples import choose_balanced
from fg_lightning.recording.probe import NoProbe, Probe
from tests.helpers.small_trainings import Classifier, Stream, fit, images_and_labels, loader, trainer

IMAGES, LABELS = images_and_labels(16, seed=2)
BALANCED = [3, 10, 11, 8]
"""Of the classes 0, 0, 1, 2."""

OF_FIRST_BATCH = [1, 5, 7, 4]
"""Likewise of the first 8 images."""


class Blind(Classifier):
    """Does not mind what a validation batch is."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass


# --- batches of any kind


@dataclass
class Batch:
    picture: torch.Tensor
    kind: torch.Tensor


Pair = namedtuple("Pair", "picture kind")

BATCHES = {
    "tuple": lambda images, labels: (images, labels),
    "list": lambda images, labels: [images, labels],
    "named tuple": Pair,
    "dict": lambda images, labels: {"label": labels, "image": images},
    "nested": lambda images, labels: {"meta": [labels], "inputs": (images,)},
    "dataclass": Batch,
    "column of labels": lambda images, labels: (images, labels[:, None]),
    "several tensors": lambda images, labels: {
        "index": torch.arange(len(labels)),
        "mask": torch.zeros_like(images),
        "image": images,
        "label": labels,
    },
    "several without names": lambda images, labels: (images, torch.zeros(len(images), 2), labels, "train", None),
}


def collated(build):
    return lambda samples: build(*(torch.stack(column) for column in zip(*samples, strict=True)))


@pytest.mark.parametrize("kind", BATCHES)
def test_images_and_labels_are_found_in_any_kind_of_batch(kind):
    probe = Probe.from_batch(BATCHES[kind](IMAGES, LABELS), 4)
    assert torch.equal(probe.images, IMAGES[BALANCED])
    assert torch.equal(probe.labels, LABELS[BALANCED])


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataclass"])
def test_the_probe_is_balanced_over_the_classes(tmp_path, kind):
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, Blind(), val=loader(16, seed=2, collate_fn=collated(BATCHES[kind])), max_epochs=1)
    assert torch.equal(monitor.probe.images, IMAGES[BALANCED])
    assert torch.equal(monitor.probe.labels, LABELS[BALANCED])


@pytest.mark.parametrize("kind", ["text", "labels", "no rows", "flat"])
def test_a_batch_without_images_is_refused(kind):
    batch = {"text": "text", "labels": (LABELS,), "no rows": {"image": IMAGES[:0]}, "flat": [torch.zeros(3, 4)]}[kind]
    with pytest.raises(NoProbe, match="found no images in a batch of type"):
        Probe.from_batch(batch, 4)


def pictures(*sizes):
    return [torch.rand(3, height, width) for height, width in sizes]


TARGETS = [{"boxes": torch.rand(1, 4)}, {"boxes": torch.rand(2, 4)}]
LISTS = {
    "images and targets": lambda: (pictures((12, 12), (12, 12)), TARGETS),
    "tuples": lambda: (tuple(pictures((12, 12), (12, 12))), tuple(TARGETS)),
    "one image": lambda: (pictures((12, 12)), TARGETS[:1]),
    "other sizes": lambda: pictures((12, 16), (8, 20)),
    "images alone": lambda: pictures((32, 32), (32, 32)),
    "a mapping": lambda: {"image": pictures((12, 12), (12, 12)), "boxes": [torch.rand(1, 4), torch.rand(2, 4)]},
    "pairs": lambda: list(zip(pictures((12, 12), (12, 12)), TARGETS, strict=True)),
    "bytes": lambda: ([torch.zeros(3, 12, 12, dtype=torch.uint8)] * 2, TARGETS),
    "a nested tensor": lambda: (torch.nested.nested_tensor(pictures((12, 12), (8, 12))), TARGETS),
    "padded": lambda: (type("NestedTensor", (), {"tensors": torch.rand(2, 3, 12, 12)})(), TARGETS),
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_a_list_of_images_is_called_so(kind):
    with pytest.raises(NoProbe, match=r"holds a list of images.* forward=.* target=function"):
        Probe.from_batch(LISTS[kind](), 4)


NO_LISTS = {
    "two views": lambda: ([torch.rand(8, 3, 12, 12), torch.rand(8, 3, 12, 12)], torch.zeros(8)),
    "one tensor": lambda: [torch.rand(3, 1, 200)],
    "signals": lambda: (torch.rand(8, 2, 200), torch.zeros(8)),
    "three signals": lambda: [torch.rand(3, 22, 200), torch.zeros(3)],
    "two views of signals": lambda: [torch.rand(8, 2, 200), torch.rand(8, 2, 200)],
    "images and boxes": lambda: {"image": torch.rand(2, 3, 12, 12), "boxes": [torch.rand(1, 4), torch.rand(2, 4)]},
}


@pytest.mark.parametrize("kind", NO_LISTS)
def test_what_is_no_list_of_images_is_not_called_so(kind):
    assert len(Probe.from_batch(NO_LISTS[kind](), 4)) in (2, 3, 4)


@pytest.mark.ill_typed
def test_a_list_of_images_is_refused_as_probe():
    with pytest.raises(NoProbe, match="probe is a list of images"):
        FullGradMonitor(probe=pictures((12, 12), (8, 8), (12, 12)))


def test_truth_values_are_0_and_1():
    labels = LABELS > 0
    for probe in (
        Probe.from_batch((IMAGES, labels), 16),
        Probe.from_user((IMAGES, labels)),
        Probe.from_batch((IMAGES, labels.tolist()), 16),
    ):
        assert probe.labels.tolist() == labels.long().tolist()
        assert probe.labels.dtype is torch.uint8


def test_labels_may_be_a_list_of_numbers():
    assert Probe.from_batch((IMAGES, LABELS.tolist()), 4).labels.tolist() == LABELS[BALANCED].tolist()


def test_a_fingerprint_tells_probes_apart():
    same, other, labelled = Probe(IMAGES, LABELS), Probe(IMAGES + 1e-6, LABELS), Probe(IMAGES, LABELS.flip(0))
    assert Probe(IMAGES.clone(), LABELS.clone()).fingerprint() == same.fingerprint()
    assert len({same.fingerprint(), other.fingerprint(), labelled.fingerprint(), Probe(IMAGES).fingerprint()}) == 4
    assert Probe(IMAGES.bfloat16()).fingerprint() != Probe(IMAGES).fingerprint()


# --- images given by the user


def test_images_given_by_the_user_are_explained(tmp_path):
    images, labels = images_and_labels(3, seed=9)
    monitor = FullGradMonitor(probe=(images, labels), strict=True)
    fit(tmp_path, monitor, max_epochs=1)
    assert torch.equal(monitor.probe.images, images)
    unlabelled = FullGradMonitor(probe=images, strict=True)
    module, _ = fit(tmp_path, unlabelled, max_epochs=1)
    predicted = module.eval()(images).argmax(1)
    assert [row.prediction for row in unlabelled.history.images(-1)] == predicted.tolist()


def test_images_given_by_the_user_go_before_a_stream(tmp_path):
    images, labels = images_and_labels(3, seed=9)
    monitor = FullGradMonitor(probe=(images, labels), strict=True)
    fit(tmp_path, monitor, val=DataLoader(Stream(seed=2), 8), max_epochs=1)
    assert torch.equal(monitor.probe.images, images)


def test_without_validation_data_it_explains_training_data(tmp_path):
    """test_trainings.py checks the note about it."""
    monitor = FullGradMonitor(num_samples=2, strict=True)
    trainer(tmp_path, monitor).fit(Classifier(), loader(seed=1))
    images, labels = images_and_labels(24, seed=1)
    assert torch.equal(monitor.probe.images, images[choose_balanced(labels.numpy(), 2)])
    assert [snapshot.epoch for snapshot in monitor.history.snapshots] == [0, 1, 2]


# --- modules that take more than images


class Conditioned(pl.LightningModule):
    """Its forward takes an age beside the image."""

    def __init__(self):
        super().__init__()
        self.net, self.of_age = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh()), nn.Linear(1, 3)

    def forward(self, image, age):
        return self.net(image) * self.of_age(age)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch["image"], batch["age"]), batch["label"])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def with_ages(images, labels):
    return {"age": images.mean((1, 2, 3))[:, None], "image": images, "name": ["x"] * len(labels), "label": labels}


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_a_forward_of_more_than_images(tmp_path, kind):
    data = loader(16, seed=2, collate_fn=collated(with_ages))
    val = data if kind == "map" else DataLoader(Stream(2), 8, collate_fn=collated(with_ages))
    monitor = FullGradMonitor(num_samples=4, forward=lambda module, batch: module(batch["image"], batch["age"]), strict=True)
    module, _ = fit(tmp_path, monitor, Conditioned(), data, val, max_epochs=1)
    images, labels = monitor.probe.images, monitor.probe.labels
    assert torch.equal(images, IMAGES[BALANCED if kind == "map" else OF_FIRST_BATCH])
    terms = full_gradients(module, images, labels, additional_forward_args=images.mean((1, 2, 3))[:, None])
    rows = monitor.history.images(-1)
    assert [row.output for row in rows] == pytest.approx(terms.output.tolist(), rel=1e-4)  # float32
    assert [row.input_term for row in rows] == pytest.approx(terms.input_term.tolist(), rel=1e-4)
    assert {layer.module for layer in monitor.history.layers(-1)} <= {"", *(name for name, _ in module.named_modules())}


def test_where_it_is_not_said_how_the_fault_says_what_to_say(tmp_path):
    data = loader(16, seed=2, collate_fn=collated(with_ages))
    with pytest.warns(
        UserWarning, match=r"missing 1 required positional argument: 'age'.*pass a function that calls it: forward="
    ) as caught:
        fit(tmp_path, FullGradMonitor(), Conditioned(), data, data, max_epochs=1)
    assert sum("FullGradMonitor" in str(w.message) for w in caught) == 1


def test_a_module_without_a_forward_is_its_only_network(tmp_path):
    class Wrapping(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.loss, self.model = nn.CrossEntropyLoss(), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

        def training_step(self, batch, batch_idx):
            return self.loss(self.model(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, Wrapping(), max_epochs=1)
    assert [layer.module for layer in monitor.history.layers(-1)] == ["", "model.1"]


def test_what_a_forward_logs_is_not_logged_of_a_snapshot(tmp_path):
    class Logging(Classifier):
        def forward(self, images):
            self.log("seen", float(len(images)), on_epoch=True, on_step=False, reduce_fx="sum")
            return super().forward(images)

    logged = []
    for monitors in ([], [FullGradMonitor(num_samples=4, strict=True)]):
        run = trainer(tmp_path, *monitors, max_epochs=1)
        run.fit(Logging(), loader(seed=1), loader(16))
        logged.append(dict(run.logged_metrics))
    assert logged[0].keys() == logged[1].keys()
    assert logged[0]["seen"] == logged[1]["seen"]
