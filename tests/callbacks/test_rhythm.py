"""Snapshots by epochs and by steps: when they are taken, where they are logged, and how a run continues."""

import csv

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from fg_lightning import FullGrad, FullGradMonitor
from fg_lightning.history import History
from tests.helpers.small_trainings import Classifier, loader, trainer


class Logging(Classifier):
    """Logs the loss of every batch, so that Lightning's own steps and epochs can be read beside the monitor's."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss


class Manual(Logging):
    """Two optimizers, stepped by the module itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        self.log("train_loss", loss)

    def configure_optimizers(self):
        return torch.optim.SGD(self.features.parameters(), 0.1), torch.optim.SGD(self.head.parameters(), 0.1)


class Skips(Logging):
    """Every third batch has no loss."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 3 == 1 else loss


def fit(folder, monitor, *callbacks, module=None, resume=None, logger=False, batches=5, **options):
    """Five batches an epoch, two epochs."""
    pl.seed_everything(1, verbose=False)
    module = module or Logging()
    run = trainer(folder, *callbacks, monitor, logger=logger, **{"enable_checkpointing": bool(callbacks)} | options)
    run.fit(module, loader(8 * batches, seed=1), loader(16, seed=2), ckpt_path=resume)
    return module, run


def moments(monitor):
    return [(s.title, s.step, s.epoch) for s in monitor.history.snapshots]


CASES = {
    "every 4": ({"every_n_steps": 4}, {}, [("untrained", 0, 0), ("step 4", 3, 1), ("step 8", 7, 2), ("step 10", 9, 2)]),
    "at the end of epochs": ({"every_n_steps": 5}, {}, [("untrained", 0, 0), ("step 5", 4, 1), ("step 10", 9, 2)]),
    "more than an epoch": ({"every_n_steps": 7}, {}, [("untrained", 0, 0), ("step 7", 6, 2), ("step 10", 9, 2)]),
    "more than all": ({"every_n_steps": 70}, {}, [("untrained", 0, 0), ("step 10", 9, 2)]),
    "accumulated": (
        {"every_n_steps": 2},
        {"accumulate_grad_batches": 2},  # three steps an epoch, the last of one batch
        [("untrained", 0, 0), ("step 2", 1, 1), ("step 4", 3, 2), ("step 6", 5, 2)],
    ),
    "manual": (
        {"every_n_steps": 4},
        {"module": Manual},
        [("untrained", 0, 0), ("step 4", 3, 1), ("step 8", 7, 2), ("step 10", 9, 2)],
    ),
    "skipped batches": (
        {"every_n_steps": 4},
        {"module": Skips},
        [("untrained", 0, 0), ("step 4", 3, 1), ("step 8", 7, 2), ("step 10", 9, 2)],
    ),
    "max_steps": (
        {"every_n_steps": 4},
        {"max_steps": 7, "max_epochs": -1},
        [("untrained", 0, 0), ("step 4", 3, 1), ("step 7", 6, 2)],
    ),
    "with frequent validation": (
        {"every_n_steps": 2},
        {"val_check_interval": 2},
        [("untrained", 0, 0), ("step 2", 1, 1), ("step 4", 3, 1), ("step 6", 5, 2), ("step 8", 7, 2), ("step 10", 9, 2)],
    ),
    "epochs": ({"every_n_epochs": 2}, {}, [("untrained", 0, 0), ("epoch 2", 9, 2)]),
}


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("name", CASES)
def test_snapshots_are_taken_when_they_are_due(tmp_path, name):
    rhythm, options, expected = CASES[name]
    options = dict(options)
    monitor = FullGradMonitor(num_samples=2, strict=True, **rhythm)
    fit(tmp_path, monitor, module=options.pop("module", Logging)(), **options)
    assert moments(monitor) == expected


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("epochs", "skipped batches")])
def test_numbers_stand_at_lightnings_own_step_and_epoch(tmp_path, name):
    rhythm, options, _ = CASES[name]
    options, logger = dict(options), CSVLogger(tmp_path, name="run")
    monitor = FullGradMonitor(num_samples=2, strict=True, **rhythm)
    fit(tmp_path, monitor, module=options.pop("module", Logging)(), logger=logger, **options)
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lightnings = {row["step"]: row["epoch"] for row in rows if row["train_loss"]}
    ours = [(row["step"], row["epoch"]) for row in rows if row["fullgrad/concentration"]]
    assert [int(step) for step, _ in ours] == [step for _, step, _ in moments(monitor)]
    assert [float(epoch) for _, epoch in ours] == [float(lightnings[step]) for step, _ in ours]


def test_the_maps_are_those_of_the_network_after_that_step(tmp_path):
    weights = {}

    class Keeps(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            weights[trainer.global_step] = {name: value.clone() for name, value in module.state_dict().items()}

    monitor = FullGradMonitor(num_samples=2, every_n_steps=3, strict=True)
    fit(tmp_path, monitor, Keeps())
    history = History.read(monitor.history.folder)
    assert [s.title for s in history.snapshots] == ["untrained", "step 3", "step 6", "step 9", "step 10"]
    for index, step in ((1, 3), (2, 6), (4, 10)):
        module = Logging()
        module.load_state_dict(weights[step])
        expected = FullGrad(module).attribute(monitor.probe.images, monitor.probe.labels)
        assert torch.allclose(history.maps(index), expected, atol=1e-3 * float(expected.max()))  # float16 maps


def test_sheets_of_an_epoch_do_not_overwrite_each_other(tmp_path):
    monitor = FullGradMonitor(num_samples=2, every_n_steps=2, methods=["fullgrad", "gradient"], strict=True)
    fit(tmp_path, monitor, max_epochs=1)
    names = ["step_0000000.png", "step_0000002.png", "step_0000004.png", "step_0000005.png"]
    for folder in (monitor.history.folder, monitor.history.folder / "gradient"):
        assert sorted(path.name for path in (folder / "saliency").iterdir()) == names


@pytest.mark.parametrize("at", [3, 4, 5, 6])
def test_a_run_continues_in_the_middle_of_an_epoch(tmp_path, at):
    """In one go and from a checkpoint: the same moments, each once."""
    whole = FullGradMonitor(num_samples=2, every_n_steps=2, strict=True)
    saved = ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path / "whole", whole, saved)
    monitor = FullGradMonitor(num_samples=2, every_n_steps=2, strict=True)
    fit(tmp_path / "resumed", monitor, resume=tmp_path / f"saved/step={at}.ckpt")
    assert moments(monitor) == moments(whole)
    assert monitor.history.snapshots[at // 2] == whole.history.snapshots[at // 2]


def test_the_rhythm_may_change_when_a_run_continues(tmp_path):
    saved = ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path / "first", FullGradMonitor(num_samples=2, every_n_steps=3, strict=True), saved, max_epochs=1)
    monitor = FullGradMonitor(num_samples=2, strict=True)
    fit(tmp_path / "second", monitor, resume=tmp_path / "saved/step=4.ckpt")
    assert [s.title for s in monitor.history.snapshots] == ["untrained", "step 3", "epoch 1", "epoch 2"]
    monitor = FullGradMonitor(num_samples=2, every_n_steps=4, strict=True)
    saved = ModelCheckpoint(tmp_path / "saved", "by_epochs_{step}", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path / "third", FullGradMonitor(num_samples=2, strict=True), saved)
    fit(tmp_path / "fourth", monitor, resume=tmp_path / "saved/by_epochs_step=6.ckpt")
    assert [s.title for s in monitor.history.snapshots] == ["untrained", "epoch 1", "step 8", "step 10"]


def test_the_last_snapshot_is_of_averaged_weights_and_stands_alone_at_its_step(tmp_path):
    monitor = FullGradMonitor(num_samples=2, every_n_steps=5, strict=True)
    module, _ = fit(tmp_path, EMAWeightAveraging(decay=0.5), monitor)
    monitor, module = FullGradMonitor(num_samples=2, every_n_steps=5, strict=True), Logging()
    run = trainer(tmp_path, EMAWeightAveraging(decay=0.5), monitor)
    run.fit(module, loader(40, seed=1), loader(16, seed=2))
    assert [s.title for s in monitor.history.snapshots] == ["untrained", "step 5", "step 10"]
    expected = FullGrad(module).attribute(monitor.probe.images, monitor.probe.labels)
    assert torch.equal(monitor.history.last_maps, expected)


def test_checkpoints_by_steps_choose_by_the_number_of_a_method(tmp_path):
    best = ModelCheckpoint(
        tmp_path / "kept", "{step}-{gradient/concentration:.3f}", "gradient/concentration", every_n_train_steps=3, save_top_k=-1
    )
    monitor = FullGradMonitor(num_samples=2, every_n_steps=3, methods=("fullgrad", "gradient"), strict=True)
    fit(tmp_path, monitor, best)
    scores = {int(path.split("step=")[1].split("-")[0]): float(score) for path, score in best.best_k_models.items()}
    numbers = {s.num_steps: s.numbers["gradient/concentration"] for s in monitor.history.snapshots}
    assert scores == pytest.approx({step: numbers[step] for step in (3, 6, 9)})


def test_both_rhythms_are_refused():
    with pytest.raises(ValueError, match="every_n_epochs=1 and every_n_steps=10 are both given"):
        FullGradMonitor(every_n_epochs=1, every_n_steps=10)
