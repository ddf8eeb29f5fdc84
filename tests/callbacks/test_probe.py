"""Where the images come from that are looked at, and that nothing else notices."""

import os
from collections import namedtuple
from dataclasses import dataclass

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from fg_lightning import FullGradMonitor, full_gradients
from fg_lightning.recording.probe import NoProbe, Probe
from tests.helpers.small_trainings import LIGHTNINGS_OWN, Classifier, fit, images_and_labels, loader, trainer

pytestmark = LIGHTNINGS_OWN

IMAGES, LABELS = images_and_labels(16, seed=2)
SPREAD = [0, 5, 10, 15]


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
    probe = Probe.of_batch(BATCHES[kind](IMAGES, LABELS), 4)
    assert torch.equal(probe.images, IMAGES[:4])
    assert torch.equal(probe.labels, LABELS[:4])


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataclass"])
def test_the_probe_is_spread_over_the_validation_data(tmp_path, kind):
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, Blind(), val=loader(16, seed=2, collate_fn=collated(BATCHES[kind])), max_epochs=1)
    assert torch.equal(monitor.probe.images, IMAGES[SPREAD])
    assert torch.equal(monitor.probe.labels, LABELS[SPREAD])


@pytest.mark.parametrize("kind", ["text", "labels", "no rows", "flat"])
def test_a_batch_without_images_is_refused(kind):
    batch = {"text": "text", "labels": (LABELS,), "no rows": {"image": IMAGES[:0]}, "flat": [torch.zeros(3, 4)]}[kind]
    with pytest.raises(NoProbe, match="found no images in a batch of type"):
        Probe.of_batch(batch, 4)


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
        Probe.of_batch(LISTS[kind](), 4)


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
    assert len(Probe.of_batch(NO_LISTS[kind](), 4)) in (2, 3, 4)


@pytest.mark.ill_typed
def test_a_list_of_images_is_refused_as_probe():
    with pytest.raises(NoProbe, match="probe is a list of images"):
        FullGradMonitor(probe=pictures((12, 12), (8, 8), (12, 12)))


def test_truth_values_are_0_and_1():
    labels = LABELS > 0
    for probe in (
        Probe.of_batch((IMAGES, labels), 16),
        Probe.given((IMAGES, labels)),
        Probe.of_batch((IMAGES, labels.tolist()), 16),
    ):
        assert probe.labels.tolist() == labels.long().tolist()
        assert probe.labels.dtype is torch.uint8


def test_labels_may_be_a_list_of_numbers():
    assert Probe.of_batch((IMAGES, LABELS.tolist()), 4).labels.tolist() == LABELS[:4].tolist()


def test_a_fingerprint_tells_probes_apart():
    same, other, labelled = Probe(IMAGES, LABELS), Probe(IMAGES + 1e-6, LABELS), Probe(IMAGES, LABELS.flip(0))
    assert Probe(IMAGES.clone(), LABELS.clone()).fingerprint() == same.fingerprint()
    assert len({same.fingerprint(), other.fingerprint(), labelled.fingerprint(), Probe(IMAGES).fingerprint()}) == 4
    assert Probe(IMAGES.bfloat16()).fingerprint() != Probe(IMAGES).fingerprint()


# --- loaders of any kind


class Stream(IterableDataset):
    def __init__(self, seed):
        self.seed = seed
        self.opened = 0

    def __iter__(self):
        self.opened += 1
        yield from TensorDataset(*images_and_labels(16, self.seed))


@pytest.mark.parametrize(("sanity_steps", "epochs"), [(2, [0, 1, 2]), (0, [1, 2])])
def test_streamed_validation_data_is_taken_as_it_comes_by(tmp_path, sanity_steps, epochs):
    stream = Stream(seed=2)
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, val=DataLoader(stream, 8), num_sanity_val_steps=sanity_steps)
    assert stream.opened == (3 if sanity_steps else 2)  # Lightning's own passes
    assert [look.epoch for look in monitor.history.looks] == epochs
    assert torch.equal(monitor.probe.images, IMAGES[:4])


def test_a_loader_of_another_make_is_read_once_as_lightning_reads_it(tmp_path):
    class Pipe:
        """No torch loader, and none that may be read twice at once."""

        def __init__(self):
            self.opened = 0

        def __iter__(self):
            self.opened += 1
            yield from zip(IMAGES.split(8), LABELS.split(8), strict=True)

    pipe = Pipe()
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, val=pipe)
    assert pipe.opened == 3
    assert torch.equal(monitor.probe.images, IMAGES[:4])


def test_whole_batches_from_a_batch_sampler_are_taken_as_they_come_by(tmp_path):
    dataset = TensorDataset(IMAGES, LABELS)
    val = DataLoader(dataset, batch_size=None, sampler=BatchSampler(SequentialSampler(dataset), 8, drop_last=False))
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, val=val, max_epochs=1)
    assert torch.equal(monitor.probe.images, IMAGES[:4])


def test_a_sampler_over_a_part_of_the_data_keeps_the_probe_to_that_part(tmp_path):
    """Training and validation data in one data set, told apart by their samplers: the others are not held out."""
    val = DataLoader(TensorDataset(IMAGES, LABELS), 4, sampler=SubsetRandomSampler([8, 9, 10, 11]))
    monitor = FullGradMonitor(num_samples=2, strict=True)
    fit(tmp_path, monitor, val=val, max_epochs=1)
    assert torch.equal(monitor.probe.images, IMAGES[[8, 11]])


@pytest.mark.parametrize(
    "nest", [lambda val: [val, loader(4)], lambda val: {"first": val, "second": loader(4)}], ids=["list", "dict"]
)
def test_of_several_validation_loaders_the_first_is_looked_at(tmp_path, nest):
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, Blind(), val=nest(loader(16, seed=2)), max_epochs=1)
    assert torch.equal(monitor.probe.images, IMAGES[SPREAD])


class Tracked(Dataset):
    """Says which process read it."""

    def __init__(self):
        self.read_by = []

    def __len__(self):
        return 16

    def __getitem__(self, index):
        self.read_by.append(os.getpid())
        return IMAGES[index] + (0 if os.getpid() == MAIN else 1), LABELS[index]


MAIN = os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_workers_read_this_process_does_not(tmp_path, workers):
    """A file that it opened would be shared by the workers that are forked from it."""
    data = Tracked()
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, val=DataLoader(data, 8, num_workers=workers), max_epochs=1)
    assert torch.equal(monitor.probe.images, IMAGES[SPREAD] + (1 if workers else 0))
    assert set(data.read_by) == (set() if workers else {MAIN})


@pytest.mark.parametrize("of_module", [True, False])
@pytest.mark.filterwarnings("ignore:You have overridden `on_")
def test_batches_are_moved_and_transformed_as_in_validation(tmp_path, of_module):
    class Hooks:
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch[0] + 1, batch[1]

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] * (2 if self.trainer.validating or self.trainer.sanity_checking else 3), batch[1]

    class Data(*([] if of_module else [Hooks]), pl.LightningDataModule):
        def train_dataloader(self):
            return loader(seed=1)

        def val_dataloader(self):
            return loader(16, seed=2)

    class Module(*([Hooks] if of_module else []), Classifier):
        pass

    monitor = FullGradMonitor(num_samples=4, strict=True)
    trainer(tmp_path, monitor, max_epochs=1).fit(Module(), datamodule=Data())
    assert torch.equal(monitor.probe.images, 2 * (IMAGES[SPREAD] + 1))


def test_a_probe_larger_than_a_batch_is_looked_at_in_parts(tmp_path):
    seen = []

    class Counting(Classifier):
        def forward(self, images):
            if not self.training and torch.is_grad_enabled():
                seen.append(len(images))
            return super().forward(images)

    fit(tmp_path, FullGradMonitor(num_samples=10, strict=True), Counting(), val=loader(16, batch_size=4), max_epochs=1)
    assert seen == [4, 4, 2] * 2


# --- images given by the user


def test_images_given_by_the_user_are_looked_at(tmp_path):
    images, labels = images_and_labels(3, seed=9)
    monitor = FullGradMonitor(probe=(images, labels), strict=True)
    fit(tmp_path, monitor, max_epochs=1)
    assert torch.equal(monitor.probe.images, images)
    unlabelled = FullGradMonitor(probe=images, strict=True)
    module, _ = fit(tmp_path, unlabelled, max_epochs=1)
    predicted = module.eval()(images).argmax(1)
    assert [int(row["prediction"]) for row in unlabelled.history.images(-1)] == predicted.tolist()


def test_images_given_by_the_user_go_before_a_stream(tmp_path):
    images, labels = images_and_labels(3, seed=9)
    monitor = FullGradMonitor(probe=(images, labels), strict=True)
    fit(tmp_path, monitor, val=DataLoader(Stream(seed=2), 8), max_epochs=1)
    assert torch.equal(monitor.probe.images, images)


@pytest.mark.filterwarnings("ignore:.*Skipping val loop")
def test_without_validation_data_it_looks_at_training_data(tmp_path):
    """test_trainings.py checks the note about it."""
    monitor = FullGradMonitor(num_samples=2, strict=True)
    trainer(tmp_path, monitor).fit(Classifier(), loader(seed=1))
    images, _ = images_and_labels(24, seed=1)
    assert torch.equal(monitor.probe.images, images[[0, 23]])
    assert [look.epoch for look in monitor.history.looks] == [0, 1, 2]


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
    assert torch.equal(images, IMAGES[SPREAD] if kind == "map" else IMAGES[:4])
    terms = full_gradients(module, images, labels, additional_forward_args=images.mean((1, 2, 3))[:, None])
    rows = monitor.history.images(-1)
    assert [float(row["output"]) for row in rows] == pytest.approx(terms.output.tolist(), rel=1e-4)  # float32
    assert [float(row["input_term"]) for row in rows] == pytest.approx(terms.input_term.tolist(), rel=1e-4)
    assert {row["module"] for row in monitor.history.layers(-1)} <= {"", *(name for name, _ in module.named_modules())}


def test_where_it_is_not_said_how_the_fault_says_what_to_say(tmp_path):
    data = loader(16, seed=2, collate_fn=collated(with_ages))
    with pytest.warns(UserWarning, match=r"missing 1 required positional argument: 'age'.*FullGradMonitor\(forward=") as caught:
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
    assert [row["module"] for row in monitor.history.layers(-1)] == ["", "model.1"]


def test_what_a_forward_logs_is_not_logged_of_a_look(tmp_path):
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
