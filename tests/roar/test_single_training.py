"""One training of an experiment: what a user's own loop and callbacks may do, and how it ends."""

from __future__ import annotations

import signal

import pytest
import torch.nn.functional as F
from lightning.pytorch import Callback
from rich.console import Console

from fg_lightning.errors import Diverged
from fg_lightning.roar import ROARExperiment
from fg_lightning.roar import cell_training as training
from tests.helpers.tiny_squares import Data, Net

CPU = {"accelerator": "cpu"}


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


class Skipping(Net):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else {"loss": super().training_step(batch, batch_idx), "of": batch_idx}


@pytest.mark.filterwarnings("ignore:.*training_step. returned .None.")
@pytest.mark.parametrize("model", [Manual, Skipping])
def test_a_step_need_not_return_a_loss(model):
    training.fit(model(), Data(), 1, CPU, None)


class Overflowing(Net):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx) * float("inf")}


def test_a_loss_in_a_dict_is_looked_at():
    with pytest.raises(Diverged, match="no longer finite after epoch 1"):
        training.fit(Overflowing(), Data(), 1, CPU, None)


class Counting(Callback):
    seen: list[tuple[str, int]] = []  # noqa: RUF012 -- of all copies

    def __init__(self):
        self.count = 0

    def on_train_start(self, trainer, pl_module):
        self.count += 1
        assert any(isinstance(callback, training.FiniteLoss) for callback in trainer.callbacks)
        self.seen.append(("fit", self.count))

    def on_test_start(self, trainer, pl_module):
        self.seen.append(("test", self.count))


@pytest.mark.parametrize("several", [False, True])
def test_the_users_callbacks_are_called_and_begin_anew_each_time(monkeypatch, several):
    monkeypatch.setattr(Counting, "seen", [])
    given = {**CPU, "callbacks": [Counting()] if several else Counting()}
    for _ in range(2):
        training.fit(Net(), Data(), 1, given, None)
    training.test(Net(), Data(), given, None)
    assert Counting.seen == [("fit", 1), ("fit", 1), ("test", 0)]


class Interrupted(Net):
    """Ctrl-C is pressed in its first training step."""

    def training_step(self, batch, batch_idx):
        raise KeyboardInterrupt


@pytest.fixture
def _handler():
    before = signal.getsignal(signal.SIGINT)  # Lightning ignores what follows
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_handler")
def test_ctrl_c_ends_the_experiment_and_is_no_failed_training(tmp_path):
    run = ROARExperiment(tmp_path, Data, Interrupted, methods=["random"], max_epochs=1, console=Console(quiet=True))
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert not list((tmp_path / "cells").iterdir())
    assert not (tmp_path / "running.json").exists()
