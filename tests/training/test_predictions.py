"""predictions.csv has every image once, and says which it is."""

import csv

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fg_lightning.training import ImageClassifier
from fg_lightning.training.predictions_table import PredictionsTable

IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(IMAGES, range(5), strict=True))


@pytest.fixture(scope="module")
def model():
    return ImageClassifier("squeezenet1_1", num_classes=10)


def places(trainer, model, loaders):
    trainer.predict(model, loaders, return_predictions=False)
    with open(f"{trainer.default_root_dir}/predictions.csv") as file:
        return [(int(row["loader"]), int(row["image"]), int(row["label"])) for row in csv.DictReader(file)]


def quiet_trainer(folder):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(logger=False, default_root_dir=folder, callbacks=[PredictionsTable()], **quiet)


def test_a_stream_is_counted_through_and_anew_each_time(tmp_path, model):
    trainer, stream = quiet_trainer(tmp_path), DataLoader(Stream(), 2)
    counted = [(0, number, number) for number in range(5)]
    assert places(trainer, model, stream) == counted
    assert places(trainer, model, stream) == counted


def test_several_loaders_are_told_apart(tmp_path, model):
    plain = DataLoader(TensorDataset(IMAGES, torch.arange(5)), 2)
    found = places(quiet_trainer(tmp_path), model, [plain, DataLoader(Stream(), 3)])
    assert found == [(loader, number, number) for loader in (0, 1) for number in range(5)]


@pytest.mark.parametrize("error", [ValueError("no image"), KeyboardInterrupt()])
def test_a_prediction_that_is_broken_off_leaves_the_table_that_was_there(tmp_path, model, error):
    class Broken(Stream):
        def __iter__(self):
            yield IMAGES[0], 0
            raise error

    (tmp_path / "predictions.csv").write_text("of an earlier run")
    with pytest.raises((ValueError, SystemExit, KeyboardInterrupt)):
        quiet_trainer(tmp_path).predict(model, DataLoader(Broken(), 1), return_predictions=False)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("predictions.csv", "of an earlier run")]
