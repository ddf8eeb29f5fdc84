"""What the user's own hooks, loaders and loggers notice of the monitor."""

from functools import partial
from pathlib import Path
from unittest.mock import MagicMock, Mock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader, TensorDataset

from fg_lightning import FullGradMonitor
from tests.helpers.small_trainings import Classifier, fit, loader, trainer

HOOKS = ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"]


def epochs_of(monitor):
    return [snapshot.epoch for snapshot in monitor.history.snapshots]


class Other(Classifier):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch


REPLACED = {
    "partial": lambda module, hook: partial(getattr(module, hook)),
    "lambda": lambda module, hook: lambda batch, *_, **__: batch,
    "mock": lambda module, hook: Mock(side_effect=lambda batch, *_, **__: batch),
    "magic mock that wraps": lambda module, hook: MagicMock(wraps=getattr(module, hook)),
    "bound method of another": lambda module, hook: getattr(Other(), hook),
}


@pytest.mark.parametrize("kind", REPLACED)
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_may_be_anything_that_is_called(tmp_path, kind, hook):
    module = Classifier()
    setattr(module, hook, REPLACED[kind](module, hook))
    monitor = FullGradMonitor(num_samples=2, strict=True)
    fit(tmp_path, monitor, module, max_epochs=1)
    assert epochs_of(monitor) == [0, 1]


@pytest.mark.parametrize("kind", ["partial", "lambda", "mock"])
def test_a_loader_hook_may_be_anything_that_is_called(tmp_path, kind):
    val = loader(16, seed=2)
    module = Classifier()
    module.val_dataloader = {"partial": partial(lambda: val), "lambda": lambda: val, "mock": Mock(return_value=val)}[kind]
    monitor = FullGradMonitor(num_samples=2, strict=True)
    trainer(tmp_path, monitor, num_sanity_val_steps=0, check_val_every_n_epoch=2).fit(module, loader(seed=1))
    assert epochs_of(monitor) == [0, 1, 2]


class Counting(Classifier):
    def __init__(self):
        super().__init__()
        self.calls = dict.fromkeys([*HOOKS, "prepare_data", "setup", "train_dataloader", "val_dataloader"], 0)

    def prepare_data(self):
        self.calls["prepare_data"] += 1

    def setup(self, stage):
        self.calls["setup"] += 1

    def train_dataloader(self):
        self.calls["train_dataloader"] += 1
        return loader(seed=1)

    def val_dataloader(self):
        self.calls["val_dataloader"] += 1
        return loader(16, seed=2)


class CountingHooks(Counting):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.calls["on_before_batch_transfer"] += 1
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        self.calls["transfer_batch_to_device"] += 1
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.calls["on_after_batch_transfer"] += 1
        return super().on_after_batch_transfer(batch, dataloader_idx)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_sanity_val_steps": 0},
        {"check_val_every_n_epoch": 2},
        {"reload_dataloaders_every_n_epochs": 1},
        {"limit_val_batches": 0},
        {"num_sanity_val_steps": 0, "val_check_interval": 2},
    ],
    ids=str,
)
def test_hooks_run_once_more_for_the_probe_and_loaders_are_asked_for_no_more_often(tmp_path, options):
    found = []
    for monitors in ([], [FullGradMonitor(num_samples=2, strict=True)]):
        module = CountingHooks()
        trainer(tmp_path, *monitors, **options).fit(module)
        found.append(module.calls)
    without, with_monitor = found
    assert with_monitor == without | {hook: without[hook] + 1 for hook in HOOKS}


def test_a_loader_that_no_validation_asked_for_yet_is_asked_for_once_more(tmp_path):
    module = Counting()
    options = {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2}
    trainer(tmp_path, FullGradMonitor(num_samples=2, strict=True), **options).fit(module)
    assert module.calls["val_dataloader"] == 2


def test_hooks_do_not_run_for_data_without_images(tmp_path):
    class Vectors(CountingHooks):
        def __init__(self):
            super().__init__()
            self.features, self.head = torch.nn.Identity(), torch.nn.Linear(8, 3)

    def data():
        return DataLoader(TensorDataset(torch.rand(16, 8), torch.randint(3, (16,))), 4)

    found = []
    for monitors in ([], [FullGradMonitor()]):
        run, module = trainer(tmp_path, *monitors), Vectors()
        if monitors:
            with pytest.warns(UserWarning, match="found no images"):
                run.fit(module, data(), data())
        else:
            run.fit(module, data(), data())
        found.append(module.calls)
    assert found[0] == found[1]


# --- loggers that are none


@pytest.mark.parametrize("mock", [MagicMock, Mock])
def test_a_mocked_logger_gets_the_numbers_and_no_folder_is_named_after_it(tmp_path, monkeypatch, mock):
    monkeypatch.chdir(tmp_path)
    logger = mock()
    monitor = FullGradMonitor(num_samples=2, strict=True)
    fit(tmp_path / "root", monitor, logger=[logger], max_epochs=1)
    assert monitor.history.folder == tmp_path / "root" / "fullgrad" / "version_0"
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    logged = [call.kwargs for call in logger.log_metrics.call_args_list] + [call.args for call in logger.log_metrics.call_args_list]
    assert any("fullgrad/concentration" in str(call) for call in logged)


@pytest.mark.parametrize("place", ["log_dir", "save_dir", "name", "version"])
def test_a_logger_of_which_one_place_is_mocked(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)

    class Logger(pl.loggers.CSVLogger):
        pass

    setattr(Logger, place, property(lambda _: MagicMock()))
    if place != "log_dir":
        Logger.log_dir = None
    logger = MagicMock(spec=Logger)
    for name in ("log_dir", "save_dir", "name", "version"):
        setattr(logger, name, MagicMock() if name == place else None if name == "log_dir" else "text")
    monitor = FullGradMonitor(num_samples=2, strict=True)
    fit(tmp_path, monitor, logger=logger, max_epochs=1)
    assert not list(Path().rglob("*MagicMock*"))
    assert epochs_of(monitor) == [0, 1]


# --- what comes before a fit


def test_the_tuner_has_no_snapshot(tmp_path):
    class Tuned(Classifier):
        lr = 0.1
        batch_size = 4

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), self.lr)

        def train_dataloader(self):
            return loader(seed=1, batch_size=self.batch_size)

        def val_dataloader(self):
            return loader(16, seed=2)

    module, monitor = Tuned(), FullGradMonitor(num_samples=2, strict=True)
    run = trainer(tmp_path, monitor)
    Tuner(run).lr_find(module, num_training=4)
    Tuner(run).scale_batch_size(module, max_trials=1, steps_per_trial=1)
    assert monitor.history is None
    run.fit(module)
    assert [(snapshot.epoch, snapshot.title) for snapshot in monitor.history.snapshots] == [
        (0, "untrained"),
        (1, "epoch 1"),
        (2, "epoch 2"),
    ]


def test_the_learning_rate_finder_has_no_snapshot(tmp_path):
    class Tuned(Classifier):
        lr = 0.1

    monitor = FullGradMonitor(num_samples=2, strict=True)
    fit(tmp_path, monitor, Tuned(), max_epochs=1)
    steps = [snapshot.step for snapshot in monitor.history.snapshots]
    again = FullGradMonitor(num_samples=2, strict=True)
    run = trainer(tmp_path / "tuned", LearningRateFinder(num_training_steps=3), again, max_epochs=1)
    run.fit(Tuned(), loader(seed=1, shuffle=True), loader(16, seed=2))
    assert [snapshot.step for snapshot in again.history.snapshots] == steps


def test_validation_and_tests_before_a_fit_have_no_snapshot(tmp_path):
    module, monitor = Classifier(), FullGradMonitor(num_samples=2, strict=True)
    module.test_step = module.validation_step
    run = trainer(tmp_path, monitor)
    run.validate(module, loader(16), verbose=False)
    run.test(module, loader(16), verbose=False)
    assert monitor.history is None
    assert list(tmp_path.rglob("history.csv")) == []
    run.fit(module, loader(seed=1), loader(16, seed=2))
    assert epochs_of(monitor) == [0, 1, 2]


class OtherNames(Classifier):
    """Lightning gives a hook its arguments by place."""

    def on_before_batch_transfer(self, given, _):
        return given

    def on_after_batch_transfer(self, given, _):
        return given

    def transfer_batch_to_device(self, given, where, _):
        return super().transfer_batch_to_device(given, where, _)


def test_a_hook_may_call_its_arguments_anything(tmp_path):
    monitor = FullGradMonitor(num_samples=2, strict=True)
    fit(tmp_path, monitor, OtherNames())
    assert [snapshot.epoch for snapshot in monitor.history.snapshots] == [0, 1, 2]
