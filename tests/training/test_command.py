"""fg-lightning fit, validate, test and predict."""

import csv

import pytest

from fg_lightning.cli import main

pytestmark = [
    # Lightning's own use of torch, and its advice
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\)"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]

FAKE = "--data TorchvisionDataModule --data.name FakeData --data.size 32 --data.batch_size 10 --data.num_workers 0".split()
QUIET = "--trainer.logger false --trainer.enable_progress_bar false --trainer.enable_model_summary false".split()
QUIET += ["--trainer.default_root_dir", "run"]
FEW = "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1".split()


@pytest.fixture(autouse=True)
def _as_a_process(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["fg-lightning"])  # Lightning warns where there are pytest's arguments beside ours
    monkeypatch.chdir(tmp_path)


def test_train_then_test_then_predict(tmp_path, capsys):
    main(["fit", "--model.name", "squeezenet1_1", *FAKE, *QUIET, *FEW])
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert checkpoint.exists()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    printed = capsys.readouterr().out
    assert "run/checkpoints/best.ckpt' --size 32 --mean '[0.485,0.456,0.406]'" in printed

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
    with pytest.raises(SystemExit, match=r"^fg-lightning: densenet121 takes no images of shape \[1, 28, 28\]"):
        main(["fit", "--model.name", "densenet121", "--model.small_images", "false", *QUIET])


def test_one_s_own_checkpointing_is_left_alone(tmp_path):
    own = ["--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.filename", "mine"]
    main(["fit", "--model.name", "squeezenet1_1", *FAKE, *QUIET, *FEW, *own])
    assert [path.name for path in tmp_path.rglob("*.ckpt")] == ["mine.ckpt"]


def test_one_s_own_model_and_data_are_taken_by_their_import_paths(tmp_path):
    own = ["--model", "fg_lightning.demo.DigitClassifier", "--model.width", "2", "--data", "fg_lightning.demo.DigitsDataModule"]
    main(["fit", *own, *QUIET, *FEW])
    assert list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_says_where_the_options_of_model_and_data_are(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    printed = "".join(capsys.readouterr().out.split())  # lines are broken at hyphens, too
    assert f"fg-lightning{command}--model.helpImageClassifier" in printed
    assert "--data.helpTorchvisionDataModule" in printed
    assert "--ckpt_path" in printed
