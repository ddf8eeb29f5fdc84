"""Callbacks and schedulers that monitor one of the monitor's numbers, and the steps and epochs beside Lightning's own."""

import csv

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from fg_lightning import FullGradMonitor
from fg_lightning.history.records import MASK_NUMBERS, NUMBERS
from fg_lightning.metrics.concentration import gini_index
from fg_lightning.recording.explainer import Explainer
from tests.helpers.small_trainings import Classifier, loader, trainer

KEY = "fullgrad/concentration"


class Steady(Classifier):
    """Whose validation step says how often it was called."""

    def __init__(self):
        super().__init__()
        self.validations = 0

    def on_validation_start(self):
        self.validations += 1


def fit(folder, *callbacks, module=None, monitor=None, **options):
    """A short training with checkpoints, the monitor last in the list."""
    pl.seed_everything(1, verbose=False)
    monitor = monitor or FullGradMonitor(num_samples=2, strict=True)
    module = module or Classifier()
    run = trainer(folder, *callbacks, monitor, **{"enable_checkpointing": True, "max_epochs": 3} | options)
    run.fit(module, loader(seed=1, batch_size=6), loader(16, seed=2))
    return run, monitor, module


def concentration(monitor, path):
    """Of the weights that a checkpoint holds, found anew."""
    module = Classifier()
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    explainer = Explainer(monitor.probe)
    return float(gini_index(explainer.explain(module, torch.device("cpu")).maps.abs()).mean())


CHECKPOINTS = {
    "at the end of training epochs": ({"save_on_train_epoch_end": True}, {}),
    "at the end of validation": ({"save_on_train_epoch_end": False}, {}),
    "by default": ({}, {}),
    "with rare validation": ({}, {"check_val_every_n_epoch": 2, "max_epochs": 4}),
    "with frequent validation": ({}, {"val_check_interval": 0.5}),
    "with validation by steps": ({}, {"val_check_interval": 3, "check_val_every_n_epoch": None}),
    "every few steps": ({"every_n_train_steps": 3}, {}),
    "with gradients accumulated": ({"every_n_train_steps": 1}, {"accumulate_grad_batches": 3}),
    "without validation": ({}, {"limit_val_batches": 0}),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("every", [1, 2])
def test_checkpoints_see_the_number_of_the_weights_that_they_hold(tmp_path, name, every):
    options, of_trainer = CHECKPOINTS[name]
    best = ModelCheckpoint(tmp_path / "kept", "{epoch}-{step}", KEY, mode="max", save_top_k=-1, **options)
    monitor = FullGradMonitor(every_n_epochs=every, num_samples=2, strict=True)
    run, monitor, _ = fit(tmp_path, best, monitor=monitor, **of_trainer)
    assert len(best.best_k_models) >= 2
    for path, score in best.best_k_models.items():
        assert float(score) == pytest.approx(concentration(monitor, path), rel=1e-4)  # float32
    epochs = list(range(every, run.current_epoch + 1, every))
    assert [snapshot.epoch for snapshot in monitor.history.snapshots] == sorted({0, *epochs, run.current_epoch})


@pytest.mark.parametrize("check_on_train_epoch_end", [None, True, False])
def test_early_stopping_may_stand_first(tmp_path, check_on_train_epoch_end):
    stopping = EarlyStopping(KEY, patience=1, min_delta=1.0, check_on_train_epoch_end=check_on_train_epoch_end)
    run, monitor, _ = fit(tmp_path, stopping, max_epochs=6)
    assert run.current_epoch == 2  # nothing falls by 1
    assert [snapshot.epoch for snapshot in monitor.history.snapshots] == [0, 1, 2]


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_schedulers_see_the_number(tmp_path, interval):
    class Scheduled(Classifier):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1.0, threshold_mode="abs")
            frequency = 1 if interval == "epoch" else 4
            reduced = {"scheduler": scheduler, "monitor": KEY, "interval": interval, "frequency": frequency}
            return {"optimizer": optimizer, "lr_scheduler": reduced}

    run, _, _ = fit(tmp_path, module=Scheduled())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**2)


def test_weights_are_the_same_where_the_numbers_are_read(tmp_path):
    found = []
    for key in (KEY, "val_loss"):
        _, _, module = fit(tmp_path / key, ModelCheckpoint(tmp_path / key, monitor=key), val_check_interval=0.5)
        found.append(module.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_snapshot_that_fails_gives_no_number_and_no_older_one(tmp_path, monkeypatch):
    seen = []

    class Reader(Callback):
        monitor = KEY

        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(float(trainer.callback_metrics[KEY]))

    explain = Explainer.explain

    def fails(self, module, device):
        if module.trainer.current_epoch == 1 and module.trainer.global_step > 4:
            raise RuntimeError("at the second epoch")
        return explain(self, module, device)

    monkeypatch.setattr(Explainer, "explain", fails)
    monitor = FullGradMonitor(num_samples=2)
    pl.seed_everything(1, verbose=False)
    run = trainer(tmp_path, monitor, Reader(), max_epochs=3)
    with pytest.warns(UserWarning, match="at the second epoch"):
        run.fit(Classifier(), loader(seed=1, batch_size=6), loader(16, seed=2))
    assert [value == value for value in seen] == [True, False, True]


def test_a_key_that_does_not_exist_is_refused_as_lightning_refuses_it(tmp_path):
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="could not find the monitored key"):
        fit(tmp_path, ModelCheckpoint(tmp_path, monitor="fullgrad/concentraton"))


def test_after_training_the_last_numbers_are_there(tmp_path):
    run, monitor, _ = fit(tmp_path)
    ours = {key: float(value) for key, value in run.callback_metrics.items() if key.startswith("fullgrad/")}
    assert ours == pytest.approx(monitor.history.snapshots[-1].numbers)
    assert set(ours) == {f"fullgrad/{name}" for name in NUMBERS if name not in MASK_NUMBERS}


# --- beside Lightning's own numbers


class Logging(Classifier):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss


class ByHand(Logging):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), 0.1) for part in (self.features, self.head)]


RUNS = {
    "plain": (Logging, {}),
    "several optimizers by hand": (ByHand, {}),
    "accumulated": (Logging, {"accumulate_grad_batches": 3}),
    "few rows": (Logging, {"log_every_n_steps": 4}),
    "one batch": (Logging, {"limit_train_batches": 1}),
    "frequent validation": (Logging, {"val_check_interval": 0.5}),
    "max_steps in the middle": (Logging, {"max_epochs": -1, "max_steps": 10}),
}


def rows_of(folder):
    with next(folder.rglob("metrics.csv")).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", RUNS)
def test_the_numbers_of_an_epoch_stand_at_lightnings_step_and_epoch(tmp_path, name):
    module, options = RUNS[name]
    _, monitor, _ = fit(tmp_path, module=module(), logger=CSVLogger(tmp_path), enable_checkpointing=False, **options)
    rows = rows_of(tmp_path)
    own = [(row["step"], row["epoch"]) for row in rows if row["loss"]]
    ours = [(row["step"], row["epoch"]) for row in rows if row[KEY]]
    assert ours == [("0", "0"), *own]
    assert [snapshot.step for snapshot in monitor.history.snapshots] == [0, *(int(step) for step, _ in own)]
    assert [snapshot.title for snapshot in monitor.history.snapshots] == [
        "untrained",
        *(f"epoch {i}" for i in range(1, len(own) + 1)),
    ]


@pytest.mark.parametrize("at_validation", [True, False])
def test_a_resumed_run_has_each_snapshot_once(tmp_path, at_validation):
    saved = ModelCheckpoint(tmp_path / "kept", "{epoch}", save_top_k=-1, save_on_train_epoch_end=not at_validation)
    fit(tmp_path, saved, module=Logging(), logger=CSVLogger(tmp_path, version=0), max_epochs=2)
    monitor = FullGradMonitor(num_samples=2, strict=True)
    run = trainer(tmp_path, saved, monitor, logger=CSVLogger(tmp_path, version=1), enable_checkpointing=True, max_epochs=3)
    path = tmp_path / "kept" / "epoch=1.ckpt"
    run.fit(Logging(), loader(seed=1, batch_size=6), loader(16, seed=2), ckpt_path=path)
    assert [(snapshot.epoch, snapshot.step) for snapshot in monitor.history.snapshots] == [(0, 0), (1, 3), (2, 7), (3, 11)]
    ours = [(row["step"], row["epoch"]) for row in rows_of(tmp_path / "lightning_logs" / "version_1") if row.get(KEY)]
    assert ours[-1] == ("11", "2")
    assert len(set(ours)) == len(ours)


def test_two_fits_of_one_trainer_go_on_with_its_steps(tmp_path):
    run, monitor, module = fit(tmp_path, max_epochs=1, enable_checkpointing=False)
    run.fit_loop.max_epochs = 2
    run.fit(module, loader(seed=1, batch_size=6), loader(16, seed=2))
    assert [(snapshot.epoch, snapshot.step) for snapshot in monitor.history.snapshots] == [(1, 3), (2, 7)]
