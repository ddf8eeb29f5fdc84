"""fg-lightning fit, validate, test and predict."""

import csv

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from fg_lightning.cli.main import main
from fg_lightning.demo import DigitsDataModule
from fg_lightning.training import ImageClassifier

FAKE = "--data TorchvisionDataModule --data.name FakeData --data.size 32 --data.batch_size 10 --data.num_workers 0".split()
DIGITS = "fg_lightning.demo.DigitClassifier"
QUIET = "--trainer.logger false --trainer.enable_progress_bar false --trainer.enable_model_summary false".split()
QUIET += ["--trainer.default_root_dir", "run"]
FEW = "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1".split()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_train_then_test_then_predict(tmp_path, capsys):
    main(["fit", "--model.name", "squeezenet1_1", *FAKE, *QUIET, *FEW])
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert checkpoint.exists()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    printed = capsys.readouterr().out
    assert "run/checkpoints/best.ckpt --size 32 --mean '[0.485,0.456,0.406]'" in printed

    main(["test", "--ckpt_path", str(checkpoint), *FAKE, *QUIET, "--trainer.limit_test_batches", "1"])
    assert "test/accuracy" in capsys.readouterr().out

    main(["predict", "--ckpt_path", str(checkpoint), *FAKE, *QUIET, "--trainer.limit_predict_batches", "2"])
    with (tmp_path / "run" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["image"]) for row in rows] == list(range(20))
    assert all(row["prediction"] == row["class"] and 0.1 <= float(row["confidence"]) <= 1 for row in rows)


def test_what_a_person_has_to_change_is_one_sentence():
    with pytest.raises(SystemExit, match=r"^fg-lightning: there is no data set 'CIFAR'.*CIFAR10"):
        main(["fit", "--data", "TorchvisionDataModule", "--data.name", "CIFAR"])
    with pytest.raises(SystemExit, match=r"^fg-lightning: torchvision has no classifier 'resnet19'.*did you mean"):
        main(["fit", "--model.name", "resnet19", *QUIET])
    with pytest.raises(SystemExit, match=r"^fg-lightning: densenet121 cannot process images of shape \[1, 28, 28\]"):
        main(["fit", "--model.name", "densenet121", "--model.small_images", "false", *QUIET])


def test_an_untrained_network_is_not_measured():
    for command in ("validate", "test", "predict"):
        with pytest.raises(SystemExit, match=f"^fg-lightning: {command} needs a trained network; give its checkpoint"):
            main([command, "--model.name", "squeezenet1_1", *FAKE, *QUIET])
        with pytest.raises(SystemExit, match=f"^fg-lightning: {command} needs a trained network"):
            main([command])


def test_a_checkpoint_s_options_are_said_to_count(tmp_path, caplog):
    main(["fit", "--model.name", "squeezenet1_1", *FAKE, *QUIET, *FEW])
    again = ["--ckpt_path", "run/checkpoints/last.ckpt", "--model.lr", "0.5", "--model.warmup", "0.05"]
    with pytest.warns(UserWarning, match="Checkpoint directory .* exists"):
        main(["fit", "--model.name", "squeezenet1_1", *FAKE, *QUIET, *FEW, *again])
    assert [line for line in caplog.messages if "overrides" in line] == ["The checkpoint's lr, 0.001, overrides --model.lr 0.5"]


def test_without_validation_the_last_checkpoint_is_named(capsys):
    with pytest.warns(UserWarning, match="could not find the monitored key"):
        main(["fit", "--model.name", "squeezenet1_1", *FAKE, *QUIET, *FEW, "--trainer.limit_val_batches", "0"])
    assert "run/checkpoints/last.ckpt ... (the same --data)" in capsys.readouterr().out


def test_what_lightning_does_not_take_is_one_sentence():
    with pytest.raises(SystemExit, match=r"^fg-lightning: No supported gpu backend found! .*--trainer.accelerator auto"):
        main(["fit", "--model.name", "squeezenet1_1", *FAKE, *QUIET, "--trainer.accelerator", "gpu"])


def test_what_a_loader_s_process_raises_is_one_sentence(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "photos" / name / f"{number}.png").write_bytes(b"")
    data = "--data ImageFolderDataModule --data.root photos --data.size 32 --data.num_workers 1".split()
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--model.name", "squeezenet1_1", *data, *QUIET, *FEW])
    assert "\n" not in stopped.value.code
    assert stopped.value.code.startswith("fg-lightning: photos/")


def test_one_s_own_checkpointing_is_left_alone(tmp_path):
    own = ["--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.filename", "mine"]
    main(["fit", "--model.name", "squeezenet1_1", *FAKE, *QUIET, *FEW, *own])
    assert [path.name for path in tmp_path.rglob("*.ckpt")] == ["mine.ckpt"]


def test_one_s_own_model_and_data_are_taken_by_their_import_paths(tmp_path):
    own = ["--model", "fg_lightning.demo.DigitClassifier", "--model.width", "2", "--data", "fg_lightning.demo.DigitsDataModule"]
    main(["fit", *own, *QUIET, *FEW])
    assert list(tmp_path.rglob("*.ckpt"))


def test_a_preset_is_taken_by_its_name(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", "many_epochs", "--print_config"])
    assert "max_epochs: 300" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_says_where_the_options_of_model_and_data_are(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    printed = "".join(capsys.readouterr().out.split())  # lines are broken at hyphens, too
    assert f"fg-lightning{command}--model.helpImageClassifier" in printed
    assert "--data.helpTorchvisionDataModule" in printed
    assert "--ckpt_path" in printed


def test_a_class_of_ones_own_keeps_its_own_defaults(capsys):
    """Even for arguments that the classes that are used by default have as well, such as num_workers."""
    with pytest.raises(SystemExit):
        main(["fit", "--data", "ImageFolderDataModule", "--data.root", ".", "--model", DIGITS, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["init_args"]["num_workers"] is None
    assert printed["model"]["init_args"]["lr"] == 0.01


@pytest.mark.slow
def test_what_a_script_trained_is_measured(capsys):
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(ImageClassifier("squeezenet1_1", lr=0.01), DigitsDataModule())
    trainer.save_checkpoint("script.ckpt")
    main(["test", "--ckpt_path", "script.ckpt", "--trainer.logger", "false", "--trainer.limit_test_batches", "1"])
    assert "test/accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [{"_class_path": "subprocess.Popen", "args": "x"}, {"lr": "quickly"}])
def test_hyper_parameters_that_do_not_fit_are_one_sentence(kept, capsys):
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.5.0", "hyper_parameters": kept}, "other.ckpt")
    with pytest.raises(
        SystemExit, match=r"the hyper_parameters of other\.ckpt do not fit the model .*give the same --model"
    ) as stop:
        main(["test", "--ckpt_path", "other.ckpt"])
    assert "\n" not in str(stop.value)
    assert not capsys.readouterr().err
