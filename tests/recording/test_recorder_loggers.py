"""FullGradRecorder with every kind of logger, in a loop that Lightning does not run."""

import csv

import pytest
import torch
from lightning.fabric.loggers import CSVLogger as FabricCSVLogger
from lightning.fabric.loggers import TensorBoardLogger as FabricTensorBoardLogger
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import nn

from fg_lightning import FullGradRecorder
from fg_lightning.history import History
from tests.helpers.offline_wandb import history as wandb_history
from tests.helpers.small_trainings import images_and_labels

KEY = "fullgrad/concentration"


def read_csv(logger, folder):
    logger.save()
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return [(int(row["step"]), float(row[KEY])) for row in csv.DictReader(file)]


def read_tensorboard(logger, folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger.finalize("success")
    (path,) = folder.rglob("events*")
    events = EventAccumulator(str(path)).Reload()
    assert [image.step for image in events.Images("fullgrad/saliency")] == [0, 7]
    return [(event.step, event.value) for event in events.Scalars(KEY)]


def read_mlflow(logger, folder):
    read = logger.experiment.get_metric_history(logger.run_id, KEY)
    assert logger.experiment.list_artifacts(logger.run_id, "images")
    return sorted((metric.step, metric.value) for metric in read)


def read_wandb(logger, folder):
    logger.experiment.finish()
    return [(row["trainer/global_step"], row[KEY]) for row in wandb_history(folder) if KEY in row]


LOGGERS = {
    "none": (None, None),
    "csv": (lambda folder: CSVLogger(folder, name="run"), read_csv),
    "fabric csv": (lambda folder: FabricCSVLogger(folder, name="run"), read_csv),
    "tensorboard": (TensorBoardLogger, read_tensorboard),
    "fabric tensorboard": (FabricTensorBoardLogger, read_tensorboard),
    "mlflow": (lambda folder: MLFlowLogger(tracking_uri=f"file:{folder}/mlruns"), read_mlflow),
    "wandb": (lambda folder: WandbLogger(save_dir=folder, offline=True), read_wandb),
}


@pytest.mark.parametrize("kind", LOGGERS)
def test_every_logger_gets_the_numbers_at_the_steps_of_the_loop(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    make, read = LOGGERS[kind]
    logger = None if make is None else make(tmp_path / "logs")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    loggers = [] if logger is None else [logger]
    with FullGradRecorder(tmp_path / "run", images_and_labels(2), task="classes", loggers=loggers, strict=True) as recorder:
        recorder.snapshot(model, step=0, epoch=0)
        nn.init.ones_(model[3].weight)
        recorder.snapshot(model, step=7, epoch=1)
    snapshots = History.read(tmp_path / "run").snapshots
    assert [snapshot.step for snapshot in snapshots] == [0, 7]
    if logger is not None:
        expected = [(snapshot.step, pytest.approx(snapshot.numbers[KEY])) for snapshot in snapshots]
        assert read(logger, tmp_path / "logs") == expected
