"""Several processes: the first takes snapshots, the others notice nothing."""

import subprocess
import sys

import lightning.pytorch as pl
import pytest

from fg_lightning import FullGradMonitor
from fg_lightning.history import History
from tests import ROOT
from tests.helpers.small_trainings import Classifier, loader, trainer

SCRIPT = """
import datetime, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {root!r})
import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from tests.helpers.small_trainings import Classifier, loader
from fg_lightning import FullGradMonitor

class Synced(Classifier):
    def forward(self, images):
        output = super().forward(images)
        self.log("mean_output", output.mean(), sync_dist=True)  # a collective in a forward: one process alone would wait for ever
        return output

folder, with_monitor = sys.argv[1], sys.argv[2] == "with"
pl.seed_everything(1, verbose=False)
monitors = [FullGradMonitor(num_samples=4, strict=True)] if with_monitor else []
trainer = pl.Trainer(
    accelerator="cpu", devices=2, max_epochs=2, default_root_dir=folder, logger=CSVLogger(folder, name="run"),
    strategy=DDPStrategy(process_group_backend="gloo", timeout=datetime.timedelta(seconds=60)), sync_batchnorm=False,
    callbacks=[*monitors, ModelCheckpoint(folder, filename="last")], enable_progress_bar=False, enable_model_summary=False,
)
module = Synced()
trainer.fit(module, loader(32, seed=1, shuffle=True), loader(16, seed=2))
trainer.strategy.barrier()
histories = [None, None]
torch.distributed.all_gather_object(histories, [monitor.history is None for monitor in monitors])
if trainer.is_global_zero:
    torch.save(module.state_dict(), folder + "/weights.pt")
    print("no history on rank", histories)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sides", [("with", "without")])
def test_two_processes_train_as_without_it_and_the_first_takes_snapshots(tmp_path, sides):
    import torch

    for side in sides:
        (tmp_path / side).mkdir()
        script = tmp_path / side / "train.py"
        script.write_text(SCRIPT.format(root=str(ROOT)))
        result = subprocess.run(
            [sys.executable, str(script), str(tmp_path / side), side],
            cwd=tmp_path / side,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        if side == "with":
            assert "no history on rank [[False], [True]]" in result.stdout
    first, second = (torch.load(tmp_path / side / "weights.pt") for side in sides)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    history = History.read(tmp_path / "with" / "run" / "version_0" / "fullgrad")
    assert [(snapshot.epoch, snapshot.step) for snapshot in history.snapshots] == [(0, 0), (1, 1), (2, 3)]
    assert torch.load(tmp_path / "with" / "last.ckpt", weights_only=True)["callbacks"]["FullGradMonitor"]["snapshots"]
    assert "fullgrad/drift" in (tmp_path / "with" / "run" / "version_0" / "metrics.csv").read_text()


READERS = """
import datetime, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {root!r})
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from tests.helpers.small_trainings import Classifier, loader
from fg_lightning import FullGradMonitor
from fg_lightning.recording.explainer import Explainer

key, folder, fails = "fullgrad/concentration", sys.argv[1], sys.argv[2] == "fails"
explain = Explainer.explain

def explain_or_fail(self, module, device):
    if fails and module.trainer.current_epoch == 1:
        raise RuntimeError("in a snapshot")
    return explain(self, module, device)

Explainer.explain = explain_or_fail
best = ModelCheckpoint(folder, monitor=key, save_top_k=-1)
trainer = pl.Trainer(
    accelerator="cpu", devices=2, max_epochs=2, default_root_dir=folder, logger=False, num_sanity_val_steps=0,
    strategy=DDPStrategy(process_group_backend="gloo", timeout=datetime.timedelta(seconds=60)), val_check_interval=0.5,
    callbacks=[EarlyStopping(key, patience=9, check_finite=False), FullGradMonitor(num_samples=4), best],
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(Classifier(), loader(32, seed=1, shuffle=True), loader(16, seed=2))
found = [None, None]
torch.distributed.all_gather_object(found, [float(trainer.callback_metrics[key]), *map(float, best.best_k_models.values())])
if trainer.is_global_zero:
    print("found", found)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fails", ["fails", "works"])
def test_two_processes_read_one_number(tmp_path, fails):
    script = tmp_path / "train.py"
    script.write_text(READERS.format(root=str(ROOT)))
    command = [sys.executable, str(script), str(tmp_path), fails]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    found = result.stdout.split("found ")[1].strip()
    first, second = (numbers.split(", ") for numbers in found.strip("[]").split("], ["))
    assert first == second
    assert len(first) == 5
    assert ("nan" in first) == (fails == "fails")
    assert float(first[1]) > 0


class FSDPStrategy(pl.strategies.SingleDeviceStrategy):
    """Called as Lightning's, which needs a GPU."""


class OfTheUsers(FSDPStrategy):
    pass


@pytest.mark.parametrize("strategy", [FSDPStrategy, OfTheUsers])
def test_weights_spread_over_processes_are_not_explained(tmp_path, strategy):
    monitor = FullGradMonitor()
    with pytest.warns(UserWarning, match=f"{strategy.__name__} spreads the weights") as caught:
        trainer(tmp_path, monitor, strategy=strategy("cpu")).fit(Classifier(), loader(seed=1), loader(16))
    assert sum("FullGradMonitor" in str(w.message) for w in caught) == 1
    assert monitor.history is None
    assert monitor.state_dict() == {}
