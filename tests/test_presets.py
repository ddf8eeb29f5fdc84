"""Every configuration in callbacks/ is parsed by fg-lightning fit and run, on digits and with few steps."""

import inspect
import shlex
from pathlib import Path

import pytest
import wandb
import yaml
from lightning.pytorch.cli import LightningCLI

from fg_lightning.callbacks import FullGradMonitor
from fg_lightning.cli import fit_options
from fg_lightning.cli.fit import train
from fg_lightning.cli.fit_options import preset_path
from fg_lightning.demo import DigitClassifier, DigitsDataModule
from tests import ROOT

PRESETS = sorted((ROOT / "callbacks").glob("*.yaml"))


FEW = "max_epochs=1 limit_train_batches=2 limit_val_batches=1 enable_progress_bar=false enable_model_summary=false".split()

SMALLER = {
    "imagenet_size": ["--model.name=mobilenet_v3_small", "--model.weights=null", "--trainer.precision=bf16-mixed"],
    "small_images": ["--model.name=mobilenet_v3_small"],
}
"""What makes a preset cheap enough for a test; by default the network is."""


@pytest.fixture(autouse=True)
def _as_a_process(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["fg-lightning"])  # Lightning warns where there are pytest's arguments beside ours
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    yield
    wandb.finish()


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_run(path, tmp_path, capsys):
    options = [f"--trainer.{option}" for option in FEW] + ["--data.batch_size=8"]
    if "logger" not in yaml.safe_load(path.read_text())["trainer"]:
        options += ["--trainer.logger=false", "--trainer.default_root_dir=run"]
    train("fit", f"--config={path}", *SMALLER.get(path.stem, ["--model.name=mobilenet_v3_small"]), *options)
    (history,) = tmp_path.rglob("history.csv")
    assert len(history.read_text().splitlines()) == 3  # a header, the untrained network, and after the epoch
    assert f"fg-lightning report {shlex.quote(str(history.parent))}\n" in capsys.readouterr().out
    assert list(tmp_path.rglob("last.ckpt")) or path.stem == "many_epochs"  # which has one after ten


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", ["{}", "{}.yaml", "callbacks/{}", "callbacks/{}.yaml"])
def test_presets_have_names(name, path):
    assert preset_path(name.format(path.stem)) == str(path)


@pytest.mark.parametrize("option", [["--config", "many_epochs"], ["--config=callbacks/many_epochs.yaml"], ["-c", "many_epochs"]])
def test_the_command_line_takes_a_preset_by_its_name(option, capsys):
    with pytest.raises(SystemExit, match="0"):
        train("fit", *option, "--print_config")
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_epochs"] == 300


def test_installed_presets_come_before_those_of_a_repository(tmp_path, monkeypatch):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "offline.yaml").touch()
    monkeypatch.setattr(fit_options, "PRESETS", (tmp_path / "presets", *fit_options.PRESETS))
    assert preset_path("offline") == str(tmp_path / "presets" / "offline.yaml")
    assert preset_path("many_epochs").endswith("callbacks/many_epochs.yaml")


@pytest.mark.parametrize("name", ["nothing", "elsewhere/offline.yaml", "{trainer: {max_epochs: 3}}", "offline.yaml"])
def test_files_of_the_user_and_other_names_stay(name):
    Path("offline.yaml").touch()
    assert preset_path(name) == name


def test_a_preset_is_a_name_after_config_alone(capsys):
    with pytest.raises(SystemExit, match="0"):
        train("fit", "--model.name", "many_epochs", "--print_config")
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["name"] == "many_epochs"


def test_the_first_one_spells_out_the_defaults():
    (path,) = (path for path in PRESETS if path.stem == "fullgrad_monitor")
    (callback,) = yaml.safe_load(path.read_text())["trainer"]["callbacks"]
    signature = inspect.signature(FullGradMonitor).parameters
    assert callback["init_args"] == {name: parameter.default for name, parameter in signature.items()}


def test_every_line_of_it_is_explained():
    (path,) = (path for path in PRESETS if path.stem == "fullgrad_monitor")
    _, settings = path.read_text().split("init_args:\n")
    assert all(" # " in line for line in settings.splitlines())


def test_it_serves_any_fit_options(tmp_path):
    (path,) = (path for path in PRESETS if path.stem == "fullgrad_monitor")
    options = ["--trainer.logger=false", "--trainer.fast_dev_run=true", f"--trainer.default_root_dir={tmp_path}"]
    cli = LightningCLI(
        DigitClassifier,
        DigitsDataModule,
        args=["fit", f"--config={path}", *options],
        save_config_callback=None,
        seed_everything_default=False,
    )
    (monitor,) = (c for c in cli.trainer.callbacks if isinstance(c, FullGradMonitor))
    assert len(monitor.history.snapshots) == 2
