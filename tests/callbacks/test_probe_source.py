"""The probe from loaders of any kind."""

import os

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from fg_lightning import FullGradMonitor
from tests.helpers.small_trainings import Classifier, Stream, fit, images_and_labels, loader, trainer

IMAGES, LABELS = images_and_labels(16, seed=2)
SPREAD = [0, 5, 10, 15]

BALANCED = [3, 10, 11, 8]
"""Of the classes 0, 0, 1, 2."""

OF_FIRST_BATCH = [1, 5, 7, 4]
"""Likewise of the first 8 images."""


class Blind(Classifier):
    """Does not mind what a validation batch is."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass


@pytest.mark.parametrize(("sanity_steps", "epochs"), [(2, [0, 1, 2]), (0, [1, 2])])
def test_streamed_validation_data_is_taken_as_it_comes_by(tmp_path, sanity_steps, epochs):
    stream = Stream(seed=2)
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, val=DataLoader(stream, 8), num_sanity_val_steps=sanity_steps)
    assert stream.opened == (3 if sanity_steps else 2)  # Lightning's own passes
    assert [snapshot.epoch for snapshot in monitor.history.snapshots] == epochs
    assert torch.equal(monitor.probe.images, IMAGES[OF_FIRST_BATCH])


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
    assert torch.equal(monitor.probe.images, IMAGES[OF_FIRST_BATCH])


def test_whole_batches_from_a_batch_sampler_are_taken_as_they_come_by(tmp_path):
    dataset = TensorDataset(IMAGES, LABELS)
    val = DataLoader(dataset, batch_size=None, sampler=BatchSampler(SequentialSampler(dataset), 8, drop_last=False))
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, val=val, max_epochs=1)
    assert torch.equal(monitor.probe.images, IMAGES[OF_FIRST_BATCH])


def test_a_sampler_over_a_part_of_the_data_keeps_the_probe_to_that_part(tmp_path):
    """Training and validation data in one data set, told apart by their samplers: the others are not held out."""
    val = DataLoader(TensorDataset(IMAGES, LABELS), 4, sampler=SubsetRandomSampler([8, 9, 10, 11]))
    monitor = FullGradMonitor(num_samples=2, strict=True)
    fit(tmp_path, monitor, val=val, max_epochs=1)
    assert torch.equal(monitor.probe.images, IMAGES[[10, 8]])  # of the classes 0 and 2


@pytest.mark.parametrize(
    "nest", [lambda val: [val, loader(4)], lambda val: {"first": val, "second": loader(4)}], ids=["list", "dict"]
)
def test_of_several_validation_loaders_the_first_has_the_probe(tmp_path, nest):
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, Blind(), val=nest(loader(16, seed=2)), max_epochs=1)
    assert torch.equal(monitor.probe.images, IMAGES[BALANCED])


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
    assert torch.equal(monitor.probe.images, 2 * (IMAGES[BALANCED] + 1))


def test_a_probe_larger_than_a_batch_is_explained_in_parts(tmp_path):
    seen = []

    class Counting(Classifier):
        def forward(self, images):
            if not self.training and torch.is_grad_enabled():
                seen.append(len(images))
            return super().forward(images)

    fit(tmp_path, FullGradMonitor(num_samples=10, strict=True), Counting(), val=loader(16, batch_size=4), max_epochs=1)
    assert seen == [4, 4, 2] * 4  # two snapshots, and the sanity checks: random weights and the next class
