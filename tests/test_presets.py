"""Every configuration in callbacks/ is parsed by the command that it is for and run, on few images and with few steps."""

import csv
import inspect
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import skimage.data
import torch
import torchvision
import wandb
import yaml
from lightning.pytorch.cli import LightningCLI
from PIL import Image
from torch import nn

from fg_lightning.attribution import METHODS
from fg_lightning.callbacks import FullGradMonitor
from fg_lightning.cli import presets
from fg_lightning.cli.fit import train
from fg_lightning.cli.main import main
from fg_lightning.cli.presets import find_presets, preset_path
from fg_lightning.demo import DigitClassifier, DigitsDataModule
from fg_lightning.errors import CannotRun
from fg_lightning.explain.load_network import from_torchvision
from fg_lightning.roar.config import ROARConfig
from fg_lightning.training.torchvision_datasets import SOURCES
from tests import ROOT

PRESETS = sorted((ROOT / "callbacks").glob("*.yaml"))

OF_FIT = [path for path in PRESETS if "trainer" in yaml.safe_load(path.read_text())]
EXPERIMENTS = ["pixel_perturbation", "roar_cifar100"]
"""Of explain and roar."""

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


def test_every_preset_is_of_a_command():
    assert sorted(path.stem for path in PRESETS) == sorted([*EXPERIMENTS, *(path.stem for path in OF_FIT)])


@pytest.mark.parametrize("path", OF_FIT, ids=lambda path: path.stem)
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


@pytest.mark.parametrize("words", [["--config", "pixel_perturbation"], ["--config=callbacks/pixel_perturbation.yaml"]])
def test_other_commands_take_presets_by_their_names(words):
    path = str(ROOT / "callbacks" / "pixel_perturbation.yaml")
    assert find_presets(["explain", "photos", *words, "--size", "8"]) in (
        ["explain", "photos", "--config", path, "--size", "8"],
        ["explain", "photos", f"--config={path}", "--size", "8"],
    )


@pytest.mark.slow
def test_the_pixel_perturbation_preset_measures_what_it_says(tmp_path):
    Image.fromarray(skimage.data.chelsea()).save(tmp_path / "chelsea.png")
    preset = yaml.safe_load((ROOT / "callbacks" / "pixel_perturbation.yaml").read_text())
    given = ["--weights", "none", "--methods", "edges,fullgrad", "--batch_size", "1", "--output", "out"]
    main(["explain", str(tmp_path / "chelsea.png"), "--config", "pixel_perturbation", *given])
    with open("out/perturbation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["fraction"]) for row in rows if row["method"] == "edges"] == preset["fractions"]
    torch.manual_seed(0)
    network = from_torchvision(preset["model"], "none")
    assert network.normalization == from_torchvision("resnet18", "none").normalization  # ImageNet's
    assert set(preset["methods"]) <= set(METHODS)
    assert (preset["perturb"], preset["fill"]) == ("lerf", "black")
    assert preset["weights"] in torchvision.models.get_model_weights(preset["model"]).__members__
    with open("out/perturbation_summary.csv", newline="") as file:
        assert {row["method"]: row["reference"] for row in csv.DictReader(file)} == {"edges": "fullgrad", "fullgrad": ""}


def test_the_roar_preset_is_three_networks_on_cifar100(monkeypatch):
    made = []

    class Checked:
        def __init__(self, *given, engine, console, **options):
            made.append(ROARConfig(*given, **options))
            raise CannotRun("this is enough")

    monkeypatch.setattr("fg_lightning.cli.roar.ROARExperiment", Checked)
    with pytest.raises(SystemExit, match="this is enough"):
        main(["roar", "--config", "roar_cifar100", "--max_epochs", "7"])
    (config,) = made
    assert (config.num_networks, config.target, config.max_epochs) == (3, "predicted", 7)
    assert list(config.fills) == ["black", "dataset_mean"]
    assert config.controls
    data, model = config.data(), config.model()
    assert (data.source_name, data.num_classes) == ("CIFAR100", 100)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 9


@pytest.mark.slow
def test_the_roar_preset_runs(monkeypatch):
    """On noise of the same size instead of a download: two methods, a fill and a fraction."""
    monkeypatch.setitem(SOURCES, "FakeData", replace(SOURCES["FakeData"], size=32))
    made = partial(torchvision.datasets.FakeData, 40)
    monkeypatch.setattr(torchvision.datasets, "FakeData", lambda size, **given: made(**given))
    few = ["--methods", "edges", "--fractions", "[0.5]", "--fills", "black", "--num_networks", "2", "--max_epochs", "1"]
    data = ["--data.name", "FakeData", "--data.num_workers", "0", "--data.batch_size", "16"]
    main(["roar", "--config", "roar_cifar100", *data, *few])
    with open("fg_roar_cifar100/results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["method"], row["control"], row["fill"]) for row in rows} == {
        ("all", "", ""),
        *((method, "", "black") for method in ("random", "edges")),
        *((method, "masks", "") for method in ("random", "edges")),
    }
    assert {row["network"] for row in rows} == {"0", "1"}
    assert all(float(row["accuracy"]) >= 0 and not row["reason"] for row in rows)


def test_installed_presets_come_before_those_of_a_repository(tmp_path, monkeypatch):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "offline.yaml").touch()
    monkeypatch.setattr(presets, "PRESETS", (tmp_path / "presets", *presets.PRESETS))
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
    defaults = {name: parameter.default for name, parameter in signature.items()}
    assert callback["init_args"] == defaults | {"methods": list(defaults["methods"])}


@pytest.mark.parametrize(
    ("methods", "keys"),
    [
        ("gradcam", ["gradcam"]),
        ("[fullgrad, gradcam]", ["fullgrad", "gradcam"]),
        ("[fullgrad, captum.attr.InputXGradient]", ["fullgrad", "input_x_gradient"]),
        ("{cam: gradcam, times: captum.attr.InputXGradient}", ["cam", "times"]),
    ],
)
def test_methods_are_names_or_import_paths(tmp_path, methods, keys):
    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer:\n  callbacks:\n    - class_path: fg_lightning.callbacks.FullGradMonitor\n"
        f"      init_args: {{methods: {methods}, every_n_steps: 50, num_samples: 2}}\n"
    )
    options = ["--trainer.logger=false", "--trainer.fast_dev_run=true", f"--trainer.default_root_dir={tmp_path}"]
    cli = LightningCLI(
        DigitClassifier,
        DigitsDataModule,
        args=["fit", f"--config={config}", *options],
        save_config_callback=None,
        seed_everything_default=False,
    )
    (monitor,) = (c for c in cli.trainer.callbacks if isinstance(c, FullGradMonitor))
    assert list(monitor.settings.methods) == keys
    assert [s.title for s in monitor.history.snapshots] == ["untrained", "step 1"]
    assert all(f"{key}/concentration" in monitor.history.snapshots[-1].numbers for key in keys)


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
