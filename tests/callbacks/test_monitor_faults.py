"""What goes wrong in the monitor is a warning, once; wrong arguments are refused at once."""

import inspect
import re
import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fg_lightning import FullGradMonitor
from fg_lightning.recording.dataset_metadata import DatasetMetadata
from tests.helpers.small_trainings import Classifier, fit, loader


def epochs_of(monitor):
    return [snapshot.epoch for snapshot in monitor.history.snapshots]


# --- what goes wrong is said once, and training goes on


class Raising(Classifier):
    def forward(self, images):
        raise RuntimeError("this module is called otherwise")

    def training_step(self, batch, batch_idx):
        return self.head(self.features(batch[0])).sum()

    def validation_step(self, batch, batch_idx):
        pass


class Routed(pl.LightningModule):
    """No forward, and more than one network that could be it."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64)), nn.Linear(64, 3)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.decoder(self.encoder(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Paired(Classifier):
    def forward(self, images, ages):
        return super().forward(images)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0], None), batch[1])

    def validation_step(self, batch, batch_idx):
        pass


class Unfitted(Classifier):
    def forward(self, images):
        if not self.training:
            raise RuntimeError("not fitted yet")
        return super().forward(images)

    def validation_step(self, batch, batch_idx):
        pass


class NotANumber(Classifier):
    def forward(self, images):
        output = super().forward(images)
        return output if self.training else output * torch.nan


def with_batches_of(collate):
    return loader(16, seed=2, collate_fn=collate)


class Blind(Classifier):
    def validation_step(self, batch, batch_idx):
        pass


@pytest.mark.parametrize(
    ("module", "val", "reason"),
    [
        (Raising, loader(16), "called otherwise"),
        (Routed, loader(16), "has no forward, and the networks in it are encoder, decoder; pass a function that calls it"),
        (Paired, loader(16), "missing 1 required positional argument: 'ages'.*if it takes other inputs, pass a function"),
        (Unfitted, loader(16), r"not fitted yet .raised by the forward of Unfitted, called on images .8, 1, 8, 8"),
        (NotANumber, loader(16), "not finite for samples"),
        (Blind, with_batches_of(lambda samples: torch.stack([label for _, label in samples])), "found no images in a batch"),
        (Blind, with_batches_of(lambda samples: "no tensor at all"), "found no images in a batch of type str"),
        (Blind, DataLoader(TensorDataset(torch.empty(0, 1, 8, 8)), 4), "empty"),
    ],
)
def test_a_fault_warns_once_and_training_goes_on(tmp_path, module, val, reason):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, run = fit(tmp_path, FullGradMonitor(), module(), val=val)
    assert run.global_step == 6
    messages = [str(w.message) for w in caught if "FullGradMonitor" in str(w.message)]
    assert len(messages) == 1
    assert re.search(reason, messages[0])
    assert "training continues" in messages[0]
    with pytest.raises(Exception, match=reason):
        fit(tmp_path, FullGradMonitor(strict=True), module(), val=val)


def test_data_that_cannot_be_asked_for_its_classes_costs_no_snapshot(tmp_path, monkeypatch):
    def fails(self, count):
        raise RuntimeError("not downloaded")

    monkeypatch.setattr(DatasetMetadata, "class_names", fails)
    monitor = FullGradMonitor(num_samples=4)
    with pytest.warns(UserWarning, match="not downloaded .*training continues"):
        fit(tmp_path, monitor, max_epochs=1)
    assert epochs_of(monitor) == [0, 1]
    assert monitor.history.about()["class_names"] is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs must be an integer of at least 1"),
        ({"num_samples": 0}, "num_samples must be an integer of at least 1"),
        ({"psi": "squared"}, "psi must be one of absolute, positive, signed"),
        ({"every_n_epochs": 1.5}, "every_n_epochs must be an integer of at least 1, not 1.5"),
        ({"num_samples": True}, "num_samples must be an integer of at least 1, not True"),
        ({"normalization": (0.5, 0.5)}, r"normalization must be \(mean, std\)"),
        ({"normalization": ([0.5], [0.5, 0.5])}, "a mean and a std for each channel, not 1 and 2"),
        ({"normalization": ([0.5], [0.0])}, "must not be zero"),
        ({"probe": torch.zeros(3)}, "probe must be images"),
        ({"probe": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, "probe must be images"),
        ({"probe": []}, "probe must be one or more indices in the validation data"),
        ({"probe": (torch.zeros(2, 1, 8, 8), torch.zeros(3).long())}, "a row for each of 2 images"),
        ({"probe": (torch.zeros(2, 1, 8, 8), [0, 1])}, "a row for each of 2 images"),
    ],
)
@pytest.mark.ill_typed
def test_bad_arguments_are_refused_at_once(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        FullGradMonitor(**arguments)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"target": "cat"}, "target must be a class, a list of them or a function of the output, not 'cat'"),
        ({"target": True}, "target must be a class"),
        ({"forward": "call"}, "forward must be a function of the module and a batch"),
        ({"class_names": "cat"}, "class_names must be a list of names"),
    ],
)
@pytest.mark.ill_typed
def test_arguments_of_another_kind_are_refused_at_once(arguments, reason):
    with pytest.raises(TypeError, match=reason):
        FullGradMonitor(**arguments)


def test_it_keeps_its_word_on_the_arguments_of_its_configuration():
    """What callbacks/*.yaml and FG_LIGHTNING may name."""
    assert list(inspect.signature(FullGradMonitor).parameters) == [
        *("methods", "reading", "every_n_epochs", "every_n_steps", "num_samples", "probe", "masks", "target", "forward", "psi"),
        *("implicit", "normalization", "class_names", "task", "animation", "alert", "report", "strict"),
    ]
