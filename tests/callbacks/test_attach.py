"""FG_LIGHTNING=1 python train.py, of a script that knows nothing of the monitor."""

import os
import subprocess
import sys

import pytest
from networks import LIGHTNINGS_OWN, trainer

from fg_lightning import FullGradMonitor
from fg_lightning.callbacks.attach import monitors
from fg_lightning.callbacks.history import History

pytestmark = LIGHTNINGS_OWN

SCRIPT = """
import torch
import {package} as pl
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

if __name__ == "__main__":
    pl.seed_everything(0)
    data = DataLoader(TensorDataset(torch.rand(16, 1, 8, 8), torch.randint(3, (16,))), 4)
    trainer = pl.Trainer(max_epochs=4, accelerator="cpu", enable_progress_bar=False, logger=False, callbacks=[{callback}])
    trainer.fit(Net(), data, data)
    print("sum of weights", sum(float(p.detach().sum()) for p in trainer.lightning_module.parameters()))
"""


def run(folder, asked, package="lightning.pytorch", callback=""):
    folder.mkdir(exist_ok=True)
    script = folder / "train.py"
    script.write_text(SCRIPT.format(package=package, callback=callback))
    environment = {key: value for key, value in os.environ.items() if key != "FG_LIGHTNING"}
    environment |= {} if asked is None else {"FG_LIGHTNING": asked}
    command = [sys.executable, "-W", "ignore", str(script)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    found = [History.read(path.parent) for path in folder.rglob("probe.json")]
    return result, found[0] if found else None


@pytest.mark.parametrize("package", ["lightning.pytorch", pytest.param("pytorch_lightning", marks=pytest.mark.slow)])
def test_a_script_that_knows_nothing_of_it_is_watched_and_trains_as_before(tmp_path, package):
    result, history = run(tmp_path / "with", "every_n_epochs=3, num_samples=2", package)
    assert result.returncode == 0, result.stderr[-2000:]
    assert [look.epoch for look in history.looks] == [0, 3, 4]
    assert len(history.images(0)) == 2
    assert (history.folder / "film_strip.png").exists()
    without, nothing = run(tmp_path / "without", None, package)
    assert nothing is None
    assert without.stdout.splitlines()[-1] == result.stdout.splitlines()[-1]


def test_a_script_with_a_monitor_of_its_own_keeps_that_alone(tmp_path):
    script = "__import__('fg_lightning').FullGradMonitor(num_samples=3)"
    result, history = run(tmp_path, "num_samples=2", callback=script)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "stands back" in result.stderr
    assert len(list(tmp_path.rglob("probe.json"))) == 1
    assert len(history.images(0)) == 3


def test_a_bad_option_is_said_in_one_sentence(tmp_path):
    result, _ = run(tmp_path, "every_n_epoch=5")
    assert result.returncode == 1
    said = "ValueError: FG_LIGHTNING='every_n_epoch=5' cannot be read: there is no option every_n_epoch, only every_n_epochs, "
    assert result.stderr.strip().splitlines()[-1].startswith(said)


@pytest.mark.parametrize("asked", [None, "", "0", "false", "OFF"])
def test_where_nobody_asks_there_is_none(monkeypatch, asked):
    monkeypatch.delenv("FG_LIGHTNING", raising=False)
    if asked is not None:
        monkeypatch.setenv("FG_LIGHTNING", asked)
    assert monitors() == []


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("1", {}),
        ("True", {}),
        ("every_n_epochs=5,num_samples=8", {"every_n_epochs": 5, "num_samples": 8}),
        (" every_n_epochs = 5 , strict=true ", {"every_n_epochs": 5, "strict": True}),
        ("num_samples=2, psi=signed", {"num_samples": 2}),
    ],
)
def test_options_are_those_of_the_monitor(monkeypatch, asked, expected):
    monkeypatch.setenv("FG_LIGHTNING", asked)
    (monitor,) = monitors()
    defaults = FullGradMonitor()
    for name in ("every_n_epochs", "num_samples", "strict"):
        assert getattr(monitor, name) == expected.get(name, getattr(defaults, name))
    assert monitor.settings.psi == ("signed" if "psi" in asked else "absolute")


def test_lists_and_names(monkeypatch):
    monkeypatch.setenv("FG_LIGHTNING", "class_names=[cat, 'sea lion'], normalization=((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), target=1")
    (monitor,) = monitors()
    assert list(monitor.settings.class_names) == ["cat", "sea lion"]
    assert monitor.settings.normalization.std == (0.2, 0.2, 0.2)
    assert monitor.settings.target == 1


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("yes please", "expected 1, or options such as every_n_epochs=5,num_samples=8"),
        ("5", "expected 1, or options"),
        ("every_n_epochs=0", "every_n_epochs must be at least 1, an integer, not 0"),
        ("num_samples=many", "num_samples must be at least 1, an integer, not 'many'"),
        ("psi=squared", "psi must be one of absolute, positive, signed"),
        ("probe=3", "there is no option probe"),
        ("num_samples=1+f(2)", r"1 \+ f\(2\) is no number, word or list of them"),
        ("num_samples=2,num_samples=3", "num_samples is given twice"),
        ("**options", "expected 1, or options"),
        ("class_names=cat", "class_names must be a list of names"),
    ],
)
def test_what_cannot_be_read_is_refused(monkeypatch, asked, reason):
    monkeypatch.setenv("FG_LIGHTNING", asked)
    with pytest.raises(ValueError, match=f"FG_LIGHTNING=.*cannot be read: .*{reason}"):
        monitors()


@pytest.mark.parametrize("module", ["torch", "lightning", "wandb", "matplotlib", "captum", "ast", "PIL"])
def test_unset_it_loads_nothing(module):
    code = (
        "import sys\n"
        f"before = {module!r} in sys.modules\n"
        "from fg_lightning.callbacks.attach import monitors\n"
        f"monitors()\nprint(before, {module!r} in sys.modules)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "FG_LIGHTNING"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    before, after = printed.split()
    assert before == after


def test_two_monitors_of_one_script_are_refused_by_lightning(tmp_path):
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        trainer(tmp_path, FullGradMonitor(), FullGradMonitor())
