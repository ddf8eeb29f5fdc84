"""fg-lightning watch-checkpoints: the strip of a training that had no monitor."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fg_lightning import FullGradMonitor
from fg_lightning.cli.main import main
from fg_lightning.errors import CannotRun
from fg_lightning.explain.checkpoint_network import CheckpointNetwork
from fg_lightning.explain.record_checkpoints import STATE, Notes
from fg_lightning.history import History
from fg_lightning.recording.checkpoint_series import find_checkpoints, find_weights
from fg_lightning.report import write_report
from tests.helpers.small_trainings import CLASSES, Classifier, images_and_labels, trainer


class Corners(pl.LightningDataModule):
    """Prepared for fits alone, as in the data that Lightning's documentation shows."""

    def __init__(self, num_val: int = 16):
        super().__init__()
        self.num_val = num_val

    def setup(self, stage):
        if stage == "fit":
            self.train = TensorDataset(*images_and_labels(24, seed=1))
            self.val = TensorDataset(*images_and_labels(self.num_val, seed=2))

    def train_dataloader(self):
        return DataLoader(self.train, 8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 8)


class Scaled(Classifier):
    """With a hyperparameter that its weights depend on."""

    def __init__(self, width: int = 4, scale: float = 1.0):
        super().__init__()
        self.save_hyperparameters()
        self.extra = nn.Linear(CLASSES, width)

    def forward(self, images):
        return self.hparams.scale * super().forward(images)


def plain_network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))


def give_number():
    return 3


class Start(pl.Callback):
    """Keeps the untrained network, too."""

    def __init__(self, path):
        self.path = path

    def on_train_start(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """The folder of a training with checkpoints of every epoch and every second step, and a monitor to compare with."""
    folder = tmp_path_factory.mktemp("training")
    pl.seed_everything(1, verbose=False)
    epochs = ModelCheckpoint(folder / "epochs", save_top_k=-1, save_last=True)
    steps = ModelCheckpoint(folder / "steps", save_top_k=-1, every_n_train_steps=2)
    monitor = FullGradMonitor(strict=True)
    run = trainer(folder, epochs, steps, Start(folder / "epochs" / "start.ckpt"), monitor, enable_checkpointing=True)
    run.fit(Classifier(), datamodule=Corners())
    return folder


NAMES = ["--model", "tests.helpers.small_trainings.Classifier", "--data", "tests.test_watch_checkpoints.Corners"]


def watch(folder, *more, output="out"):
    main(["watch-checkpoints", str(folder), *NAMES, "--output", str(output), "--device", "cpu", *more])
    return History.read(Path(output))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def titles(history):
    return [snapshot.title for snapshot in history.snapshots]


# --- a training by Lightning


def test_it_draws_what_a_monitor_would_have_drawn(training, capsys):
    before = {path: path.read_bytes() for path in (training / "epochs").iterdir()}
    history, expected = watch(training / "epochs"), History.read(training / "fullgrad" / "version_0")
    assert titles(history) == ["untrained", "epoch 1", "epoch 2"]
    assert history.snapshots == expected.snapshots
    assert torch.equal(history.probe()[0], expected.probe()[0])
    for index in range(3):
        assert torch.equal(history.maps(index), expected.maps(index))
        assert history.images(index) == expected.images(index)
        assert history.layers(index) == expected.layers(index)
    assert {path: path.read_bytes() for path in (training / "epochs").iterdir()} == before
    assert history.strip_path.is_file()
    assert write_report(Path("out")).is_file()
    printed = capsys.readouterr()
    assert "snapshots    3, of which 3 are new" in printed.out
    assert "fg-lightning report out" in printed.out
    assert "last.ckpt" not in printed.err  # the same as epoch=1-step=6.ckpt


def test_without_a_first_checkpoint_nothing_is_called_untrained(training, tmp_path, capsys):
    shutil.copytree(training / "epochs", tmp_path / "some")
    (tmp_path / "some" / "start.ckpt").unlink()
    history = watch(tmp_path / "some")
    assert titles(history) == ["epoch 1", "epoch 2"]
    assert "fullgrad/drift_from_untrained" not in history.snapshots[1].numbers
    assert "no checkpoint of the untrained network" in capsys.readouterr().err


def test_checkpoints_within_epochs_are_called_by_their_steps(training):
    history = watch(training / "steps", "--num_samples", "2")
    assert titles(history) == ["step 2", "step 4", "step 6"]
    assert [(snapshot.epoch, snapshot.step) for snapshot in history.snapshots] == [(0, 1), (1, 3), (2, 5)]
    assert len(history.images(0)) == 2


def test_a_folder_above_the_checkpoints_is_enough_if_there_is_one(training, tmp_path):
    shutil.copytree(training / "epochs", tmp_path / "run" / "version_0" / "checkpoints")
    assert len(find_checkpoints(tmp_path / "run").checkpoints) == 3
    with pytest.raises(CannotRun, match=r"2 folders in .* hold checkpoints \(epochs, steps\); give the folder of one training"):
        find_checkpoints(training)


def test_new_checkpoints_are_added_and_old_ones_stay(training, tmp_path, capsys):
    growing = tmp_path / "growing"
    growing.mkdir()
    for name in ("start.ckpt", "epoch=0-step=3.ckpt"):
        shutil.copy(training / "epochs" / name, growing)
    assert titles(watch(growing)) == ["untrained", "epoch 1"]
    first = np.load("out/maps.npy")
    shutil.copy(training / "epochs" / "epoch=1-step=6.ckpt", growing)
    shutil.copy(training / "steps" / "epoch=0-step=2.ckpt", growing)
    capsys.readouterr()
    history = watch(growing)
    assert titles(history) == ["untrained", "epoch 1", "step 6"]
    assert (np.load("out/maps.npy")[:2] == first).all()
    said = capsys.readouterr()
    assert "3, of which 1 are new" in said.out
    assert "epoch=0-step=2.ckpt was written before the last recorded one" in said.err
    assert watch(growing).snapshots == history.snapshots  # nothing is new
    assert not Path("out_1").exists()


def test_a_command_that_is_stopped_goes_on(training, monkeypatch, capsys):
    load, loaded = CheckpointNetwork.load, []

    def stop(network, path):
        loaded.append(path.name)
        if len(loaded) == 4:  # the last one for the images, then two
            raise KeyboardInterrupt
        return load(network, path)

    monkeypatch.setattr(CheckpointNetwork, "load", stop)
    with pytest.raises(SystemExit) as stopped:
        watch(training / "epochs")
    assert stopped.value.code == 130
    assert "stopped; run the same command again to continue" in capsys.readouterr().err
    assert titles(History.read(Path("out"))) == ["untrained", "epoch 1"]
    assert Path("out/film_strip.png").is_file()
    history = watch(training / "epochs")
    assert loaded[4:] == ["epoch=1-step=6.ckpt"] * 2
    for snapshot, expected in zip(history.snapshots, History.read(training / "fullgrad" / "version_0").snapshots, strict=True):
        assert snapshot.numbers == pytest.approx(expected.numbers, abs=1e-3)  # the maps before are kept as float16


def test_a_command_that_was_killed_between_a_snapshot_and_its_note_goes_on(training, tmp_path):
    growing = tmp_path / "growing"
    growing.mkdir()
    shutil.copy(training / "epochs" / "start.ckpt", growing)
    watch(growing)
    early = Path("out", STATE).read_bytes()
    shutil.copy(training / "epochs" / "epoch=0-step=3.ckpt", growing)
    once = watch(growing).snapshots
    Path("out", STATE).write_bytes(early)
    history = watch(growing)
    assert history.snapshots == once
    assert torch.equal(history.maps(1), History.read(training / "fullgrad" / "version_0").maps(1))


def test_a_folder_that_was_moved_goes_on(training, tmp_path):
    growing = tmp_path / "growing"
    growing.mkdir()
    shutil.copy(training / "epochs" / "start.ckpt", growing)
    watch(growing)
    (tmp_path / "out").rename(tmp_path / "moved")
    shutil.copy(training / "epochs" / "epoch=0-step=3.ckpt", growing)
    history = watch(growing, output="moved")
    assert titles(history) == ["untrained", "epoch 1"]
    assert not torch.isnan(history.maps(0)).any()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--psi", "signed"], "out cannot be continued: .*psi was absolute and is signed; use the same options"),
        (["--num_samples", "3"], r"out cannot be continued: .*the images were \[8, 1, 8, 8\] and are \[3, 1, 8, 8\]"),
    ],
)
def test_another_question_needs_another_folder(training, tmp_path, more, reason):
    growing = tmp_path / "growing"
    growing.mkdir()
    shutil.copy(training / "epochs" / "start.ckpt", growing)
    watch(growing)
    files = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    shutil.copy(training / "epochs" / "epoch=0-step=3.ckpt", growing)
    with pytest.raises(SystemExit, match=reason):
        watch(growing, *more)
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == files


def test_what_cannot_be_loaded_is_named_and_skipped(training, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    shutil.copytree(training / "epochs", mixed)
    (mixed / "cut.ckpt").write_bytes((mixed / "last.ckpt").read_bytes()[:3000])
    torch.save(nn.Linear(2, 2), mixed / "module.pt")
    other = torch.load(mixed / "last.ckpt", weights_only=True)
    other["state_dict"] = {name: value + 1 for name, value in other["state_dict"].items()}
    torch.save(other, mixed / "epoch=1-EMA.ckpt")
    (mixed / "epoch=0-step=3.ckpt").unlink()
    broken = torch.load(training / "epochs" / "epoch=0-step=3.ckpt", weights_only=True)
    del broken["state_dict"]["head.2.bias"]
    broken["global_step"] = 99  # the last one
    torch.save(broken, mixed / "broken.ckpt")
    history = watch(mixed)
    assert titles(history) == ["untrained", "epoch 2"]
    assert torch.equal(history.maps(1), History.read(training / "fullgrad" / "version_0").maps(2))  # and not the averages'
    said = capsys.readouterr().err
    assert "cut.ckpt is not a checkpoint, or is incomplete" in said
    assert "module.pt holds a torch.nn.modules.linear.Linear, which cannot be loaded without running code" in said
    assert "epoch=1-EMA.ckpt is of the same step as epoch=1-step=6.ckpt, but has other weights" in said
    assert "broken.ckpt cannot be loaded into Classifier: Error(s) in loading state_dict" in said


def test_hyperparameters_of_a_checkpoint_build_the_network(tmp_path):
    model = Scaled(width=7, scale=2.0)
    run = trainer(tmp_path, max_epochs=0)
    run.fit(model, datamodule=Corners())
    run.save_checkpoint(tmp_path / "scaled.ckpt")
    loaded = CheckpointNetwork("tests.test_watch_checkpoints.Scaled").load(tmp_path / "scaled.ckpt")
    assert loaded.extra.out_features == 7
    assert loaded.hparams.scale == 2.0
    watch_it = ["--model", "tests.test_watch_checkpoints.Scaled", "--model.scale", "3"]  # the width is still the checkpoint's
    main(["watch-checkpoints", str(tmp_path), *watch_it, *NAMES[2:], "--device", "cpu"])
    assert titles(History.read(Path("fg_checkpoints"))) == ["untrained"]


def test_the_hardest_images_are_those_of_the_last_network(training, tmp_path):
    growing = tmp_path / "growing"
    growing.mkdir()
    shutil.copy(training / "epochs" / "epoch=0-step=3.ckpt", growing)
    history = watch(growing, "--probe", "hardest", "--num_samples", "3")
    model = CheckpointNetwork("tests.helpers.small_trainings.Classifier").load(growing / "epoch=0-step=3.ckpt").eval()
    images, labels = images_and_labels(16, seed=2)
    with torch.no_grad():
        losses = nn.functional.cross_entropy(model(images), labels, reduction="none")
    hardest = losses.argsort(descending=True)[:3]
    assert torch.equal(history.probe()[0], images[hardest])
    shutil.copy(training / "epochs" / "epoch=1-step=6.ckpt", growing)
    history = watch(growing, "--probe", "hardest", "--num_samples", "3")
    assert titles(history) == ["epoch 1", "epoch 2"]
    assert torch.equal(history.probe()[0], images[hardest])


def test_images_are_chosen_by_their_numbers(training):
    history = watch(training / "epochs", "--probe", "[5,3]")
    assert torch.equal(history.probe()[0], images_and_labels(16, seed=2)[0][[5, 3]])


def test_several_methods_are_drawn(training):
    history = watch(training / "epochs", "--methods", "fullgrad,gradcam", "--reading", "locally_affine")
    assert "gradcam/concentration" in history.snapshots[0].numbers
    assert Path("out/gradcam/maps.npy").is_file()


# --- loops of one's own


def save_plain(folder, names, wrap=lambda state: state):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        torch.manual_seed(number)
        torch.save(wrap(plain_network().state_dict()), folder / name)


PLAIN = ["--model", "tests.test_watch_checkpoints.plain_network", "--task", "classes"]


def watch_plain(folder, *more):
    main(["watch-checkpoints", str(folder), *PLAIN, *NAMES[2:], "--output", "out", "--device", "cpu", *more])
    return History.read(Path("out"))


@pytest.mark.parametrize(
    ("names", "wrap", "more", "expected"),
    [
        (["net_epoch_1.pt", "net_epoch_2.pt", "net_epoch_10.pt"], dict, [], ["epoch 1", "epoch 2", "epoch 10"]),
        (["ep00.pth", "ep01.pth"], dict, ["--epoch_0", "untrained"], ["untrained", "epoch 1"]),
        (["ep00.pth", "ep01.pth"], dict, ["--epoch_0", "trained"], ["epoch 1", "epoch 2"]),
        (["net-20.pt", "net-100.pt"], dict, ["--counted", "steps"], ["step 20", "step 100"]),
        (["net-2.pt", "net-1.pt"], dict, ["--counted", "epochs"], ["epoch 1", "epoch 2"]),
        (["a.pt"], lambda state: {"model": state, "epoch": 4, "global_step": 9}, [], ["epoch 4"]),
        (["a.pt"], lambda state: {"model": state, "epoch": 0, "step": 9}, [], ["epoch 1"]),
        (["e-0.tar"], lambda state: {"model": state, "epoch": 0, "optimizer": {"state": {0: {"step": 9}}}}, [], ["epoch 1"]),
        (["a_epoch1.pt"], lambda state: {f"module.{name}": value for name, value in state.items()}, [], ["epoch 1"]),
    ],
)
def test_saved_weights_are_ordered_by_what_they_say(tmp_path, names, wrap, more, expected):
    save_plain(tmp_path / "saved", names, wrap)
    history = watch_plain(tmp_path / "saved", *more)
    assert titles(history) == expected
    assert len({snapshot.numbers["fullgrad/concentration"] for snapshot in history.snapshots}) == len(names)


def test_without_a_step_the_epoch_stands_for_it_and_a_note_says_so(tmp_path, capsys):
    save_plain(tmp_path / "saved", ["net_epoch_3.pt"])
    assert [(s.epoch, s.step) for s in watch_plain(tmp_path / "saved").snapshots] == [(3, 3)]
    note = "not all checkpoints record their number of steps, so the column step holds the number of epochs"
    assert note in capsys.readouterr().err


def test_an_optimizer_tells_the_steps_unless_a_file_is_without_one(tmp_path):
    for epoch in (1, 2):
        state = {"model": plain_network().state_dict(), "optimizer": {"state": {0: {"step": torch.tensor(5.0 * epoch)}}}}
        torch.save(state, tmp_path / f"epoch_{epoch}.pt")
    assert [(c.epoch, c.step) for c in find_checkpoints(tmp_path).checkpoints] == [(1, 5), (2, 10)]
    torch.save(plain_network().state_dict(), tmp_path / "epoch_3.pt")
    assert [(c.epoch, c.step) for c in find_checkpoints(tmp_path).checkpoints] == [(1, 1), (2, 2), (3, 3)]


def test_weights_alone_of_lightning_are_of_a_whole_epoch_which_a_note_says(training, tmp_path):
    for path in (training / "epochs").glob("epoch*.ckpt"):
        whole = torch.load(path, weights_only=True)
        kept = {name: whole[name] for name in ("epoch", "global_step", "pytorch-lightning_version", "state_dict")}
        torch.save(kept, tmp_path / path.name)
    series = find_checkpoints(tmp_path)
    assert [(c.epoch, c.step) for c in series.checkpoints] == [(1, 2), (2, 5)]
    assert any("it is assumed to be complete" in note for note in series.notes)


def test_averages_of_lightning_are_said_to_be_such(training, tmp_path):
    averaged = torch.load(training / "epochs" / "last.ckpt", weights_only=True)
    averaged["current_model_state"] = averaged["state_dict"]
    torch.save(averaged, tmp_path / "last.ckpt")
    assert any("averaged weights of Lightning's WeightAveraging" in note for note in find_checkpoints(tmp_path).notes)


def test_weights_that_are_there_twice_are_chosen_by_their_prefix(tmp_path):
    twice = {f"{kind}{name}": v for kind in ("model.", "ema_model.") for name, v in plain_network().state_dict().items()}
    names = list(plain_network().state_dict())
    with pytest.raises(CannotRun, match=r"weights under 2 prefixes, model. and ema_model.; choose one with --prefix"):
        find_weights({"state_dict": twice}, names)
    assert torch.equal(find_weights({"state_dict": twice}, names, "ema_model.")["0.bias"], twice["ema_model.0.bias"])
    with pytest.raises(CannotRun, match=r"lacks 4 of the network's 4 weights .*and has model.0.weight"):
        find_weights({"state_dict": twice}, names, "teacher.")


def test_the_folders_of_hugging_face_are_read(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    for step, epoch in ((500, 0.5), (1000, 1.0)):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        torch.manual_seed(step)
        save_file(plain_network().state_dict(), folder / "model.safetensors")
        torch.save({}, folder / "optimizer.pt")
        (folder / "trainer_state.json").write_text(json.dumps({"epoch": epoch, "global_step": step}))
    history = watch_plain(tmp_path / "run")
    assert [(s.title, s.epoch, s.step) for s in history.snapshots] == [("step 500", 0, 500), ("step 1000", 1, 1000)]


@pytest.mark.slow
def test_a_network_of_transformers_is_loaded_by_its_own_names(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": CLASSES}
    narrow = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **narrow))
    model.save_pretrained(tmp_path / "checkpoint-5")
    network = CheckpointNetwork("transformers.AutoModelForImageClassification")
    loaded = network.load(tmp_path / "checkpoint-5" / "model.safetensors")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    other = CheckpointNetwork("transformers.ViTForMaskedImageModeling")
    with pytest.raises(CannotRun, match=r"it lacks .* of the network's weights .*; it may belong to another network"):
        other.load(tmp_path / "checkpoint-5" / "model.safetensors")


@pytest.mark.slow
def test_a_torchvision_classifier_has_the_outputs_of_its_checkpoint(tmp_path):
    import torchvision

    wrapped = {f"net.{name}": value for name, value in torchvision.models.resnet18(num_classes=7).state_dict().items()}
    torch.save({"state_dict": wrapped}, tmp_path / "epoch_1.pt")
    assert CheckpointNetwork("resnet18").load(tmp_path / "epoch_1.pt").fc.out_features == 7


# --- pictures


@pytest.fixture
def grey_pictures(tmp_path):
    """Six grey pictures, and two checkpoints."""
    save_plain(tmp_path / "saved", ["epoch_1.pt", "epoch_2.pt"])
    (tmp_path / "pictures").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")


def test_pictures_are_explained_by_the_class_that_the_last_network_predicts(grey_pictures):
    own = ["--data", "pictures", "--size", "8", "--mean", "[0.5]", "--std", "[0.25]", "--num_samples", "3"]
    main(["watch-checkpoints", "saved", *PLAIN, *own, "--output", "out", "--device", "cpu"])
    history = History.read(Path("out"))
    last = [row.prediction for row in history.images(1)]
    assert [row.explained for row in history.images(0)] == [row.explained for row in history.images(1)] == last
    assert all(row.label is None for row in history.images(0))
    assert history.about()["normalization"] == {"mean": [0.5], "std": [0.25]}
    images, _ = history.probe()
    with Image.open("pictures/5.png") as picture:
        expected = (np.asarray(picture) / 255 - 0.5) / 0.25
    assert images[2, 0].numpy() == pytest.approx(expected, abs=1.01 / 255 / 0.25)  # one level of grey, by way of RGB


PICTURES = ["--data", "pictures", "--size", "8", "--mean", "0.5", "--std", "0.25", "--num_samples", "3", "--device", "cpu"]


def test_scores_that_nothing_names_are_those_of_classes_for_pictures(grey_pictures, capsys):
    main(["watch-checkpoints", "saved", *PLAIN[:2], *PICTURES, "--output", "out"])
    history = History.read(Path("out"))
    last = [row.prediction for row in history.images(1)]
    assert [row.explained for row in history.images(0)] == last
    assert all(prediction is not None for prediction in last)
    assert "--task classes" in (noted := capsys.readouterr().err)
    assert "--task number explains the mean" in noted
    assert "task=" not in noted
    main(["watch-checkpoints", "saved", *PLAIN[:2], *PICTURES, "--task", "number", "--output", "numbers"])
    assert History.read(Path("numbers")).images(0)[0].explained is None


def test_notes_name_options_as_the_command_line_has_them():
    shown = []
    Notes(shown.append).inform('Pass task="number" if that is right, else task="classes" or "labels"')
    assert shown == ["Pass --task number if that is right, else --task classes or --task labels"]


def test_colours_for_a_network_of_grey_images_are_explained(grey_pictures):
    with pytest.raises(SystemExit, match=r"to have 1 channels.*For grey images give one number: --mean 0.5 --std 0.5"):
        main(["watch-checkpoints", "saved", *PLAIN, *PICTURES[:4], "--device", "cpu"])


# --- what cannot be done


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["missing", *NAMES], "there is no folder .*missing; give the folder that holds the checkpoints"),
        (["empty", *NAMES], "there is no checkpoint in .*empty: no file ends in .ckpt"),
        (["saved", *NAMES[2:]], "--model is missing"),
        (["saved", *NAMES[:2]], "--data is missing"),
        (
            ["saved", *NAMES],
            "no file in saved can be read as a checkpoint. The first error: .*add --counted epochs or",
        ),
        (["zero", *PLAIN, *NAMES[2:]], "epoch_0.pt is of epoch 0: if it holds the untrained network, add --epoch_0 untrained"),
        (["nameless", *PLAIN, *NAMES[2:]], "nameless/net.pt records no epoch or step, neither in its content nor in its name"),
        (["epochs", *PLAIN, "--data", "nowhere"], "--data nowhere: there is no such folder"),
        (["epochs", *PLAIN, "--data", "no_such.Data"], "'no_such.Data' cannot be imported"),
        (["epochs", *PLAIN, "--data", "tests.ROOT"], "--data tests.ROOT: it is neither a LightningDataModule class nor a folder"),
        (["epochs", *PLAIN, *NAMES[2:], "--mean", "[0.5]"], "--mean, --std and --transform are for a folder of pictures"),
        (["epochs", "--model", "resnet19", *NAMES[2:]], "torchvision has no classifier 'resnet19'"),
        (["epochs", "--model", "tests.test_watch_checkpoints.give_number", *NAMES[2:]], "cannot be loaded into .*it gives int"),
        (["epochs", *NAMES], "epoch_1.pt cannot be loaded into Classifier: it lacks 9 of the network's 9 weights"),
        (["epochs", *PLAIN, *NAMES[2:], "--probe", "[99]"], "the images could not be read from the data: .*99"),
        (["epochs", *PLAIN, "--data", "full", "--probe", "hardest"], "--probe is for a datamodule; leave it out"),
        (["epochs", *PLAIN, *NAMES[2:], "--output", "full"], "full exists already and was not made from checkpoints"),
        (["epochs", *PLAIN, *NAMES[2:], "--output", "epochs/epoch_1.pt/out"], "cannot be written .*; give another --output"),
        (["epochs", *PLAIN, *NAMES[2:], "--methods", "gradcamm"], "gradcamm"),
        (["epochs", *PLAIN, *NAMES[2:], "--device", "cupid"], "cupid"),
        (["epochs", *PLAIN, *NAMES[2:], "--wandb_run", "mine"], "--wandb_run must be entity/project/id"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, words, reason):
    for name, files in {"saved": ["net-1.pt"], "zero": ["epoch_0.pt"], "nameless": ["net.pt"], "epochs": ["epoch_1.pt"]}.items():
        save_plain(tmp_path / name, files)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match=f"(?s)^fg-lightning: .*{reason}"):
        main(["watch-checkpoints", *words])
    assert {path.name for path in tmp_path.iterdir()} == {"saved", "zero", "nameless", "epochs", "empty", "full"}


# --- Weights & Biases


class FinishedRun:
    """Stands for a run of a server, at the calls that wandb documents."""

    offline = disabled = False
    url = "https://wandb.ai/me/project/runs/abc"
    summary = SimpleNamespace(update=lambda values: None)

    def __init__(self):
        self.logged, self.defined, self.is_finished = [], [], False

    def log(self, values):
        self.logged.append(values)

    def define_metric(self, name, step_metric):
        self.defined.append((name, step_metric))

    def finish(self):
        self.is_finished = True


FinishedRun.__name__ = "Run"
FinishedRun.__module__ = "wandb.stub"


@pytest.mark.parametrize("name", ["me/project/abc", "https://wandb.ai/me/project/runs/abc?nw=nwuser"])
def test_a_finished_run_gets_numbers_and_pictures(training, monkeypatch, capsys, name):
    run, asked = FinishedRun(), {}
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options) or run)
    history = watch(training / "epochs", "--wandb_run", name)
    assert asked == {"entity": "me", "project": "project", "id": "abc", "resume": "must"}
    assert [row["trainer/global_step"] for row in run.logged] == [0, 2, 5] == [s.step for s in history.snapshots]
    assert run.logged[1]["fullgrad/concentration"] == history.snapshots[1].numbers["fullgrad/concentration"]
    assert all(len(row["fullgrad/saliency"]) == 8 for row in run.logged)
    assert "fullgrad/film_strip" in run.logged[-1]
    assert ("fullgrad/*", "trainer/global_step") in run.defined
    assert run.is_finished
    assert f"W&B run      {run.url}" in capsys.readouterr().out


def test_a_run_that_is_not_there_is_one_sentence(training, monkeypatch):
    def fail(**options):
        raise wandb.errors.UsageError("resume='must' but the run does not exist")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(SystemExit, match="nothing can be added to me/project/abc: resume='must' but the run does not exist"):
        watch(training / "epochs", "--wandb_run", "me/project/abc")
    assert not Path("out").exists()


def test_offline_says_that_it_needs_the_server(training, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(SystemExit, match=r"nothing can be added to .* offline, because wandb must ask .*; unset WANDB_MODE"):
        watch(training / "epochs", "--wandb_run", "me/project/abc")
    assert os.listdir() == []


def test_a_strip_that_is_drawn_already_is_not_logged_without_its_pictures(training, monkeypatch):
    watch(training / "epochs")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "init", lambda **options: pytest.fail("it was asked"))
    with pytest.raises(SystemExit, match="out already holds snapshots, and they cannot be logged again; give another --output"):
        watch(training / "epochs", "--wandb_run", "me/project/abc")
    assert (Path("out") / STATE).is_file()
