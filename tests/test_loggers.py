"""Each logger for real, with what it wrote read back."""

import csv
import gc
import io
import logging
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread
from PIL import Image

from fg_lightning import FullGradMonitor
from fg_lightning.history.records import MASK_NUMBERS, NUMBERS
from fg_lightning.loggers import Pictures, _wandb_image, log_for
from tests.helpers.offline_wandb import history, media_folder, summary, tables
from tests.helpers.small_trainings import Classifier, loader, trainer


def fitted(folder, loggers, **options):
    pl.seed_everything(1, verbose=False)
    monitor = FullGradMonitor(num_samples=4, strict=True)
    trainer(folder, monitor, logger=loggers, **options).fit(Classifier(), loader(seed=1), loader(16, seed=2))
    return monitor


def as_logged(monitor):
    return [(snapshot.step, snapshot.numbers) for snapshot in monitor.history.snapshots]


# --- Weights & Biases


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run with W&B offline, its folder, and every call of its log."""
    folder, calls = tmp_path_factory.mktemp("wandb"), []
    logger = WandbLogger(save_dir=folder, offline=True)
    log = logger.experiment.log
    logger.experiment.log = lambda data, *args, **kwargs: (calls.append((set(data), args, kwargs)), log(data, *args, **kwargs))
    monitor = fitted(folder, logger)
    del logger.experiment.log
    logger.experiment.finish()
    return monitor, folder, calls


def test_wandb_gets_a_snapshot_in_one_call(watched):
    monitor, _, calls = watched
    ours = [call for call in calls if any(key.startswith("fullgrad/") for key in call[0])]
    assert len(ours) == len(monitor.history.snapshots) == 3
    assert all((args, kwargs) == ((), {}) for _, args, kwargs in ours)  # no step of W&B's own to go back from


def test_wandb_has_the_numbers_at_lightnings_step(watched):
    monitor, folder, _ = watched
    rows = [row for row in history(folder) if "fullgrad/saliency" in row]
    assert [row["trainer/global_step"] for row in rows] == [0, 2, 5]
    assert [row["epoch"] for row in rows] == [0, 0, 1]
    for row, (_, numbers) in zip(rows, as_logged(monitor), strict=True):
        assert {key: row[key] for key in numbers} == pytest.approx(numbers)
        assert row["fullgrad/completeness_error_max"] < 1e-4  # float32
        shares = [row[f"fullgrad/{kind}_share"] for kind in ("input", "bias", "implicit")]
        assert sum(shares) == pytest.approx(1, abs=1e-4)  # float32


def test_wandb_has_the_overlays_with_what_the_network_says(watched):
    _, folder, _ = watched
    rows = [row for row in history(folder) if "fullgrad/saliency" in row]
    for row in rows:
        assert len(row["fullgrad/saliency"]["filenames"]) == 4
        for name in row["fullgrad/saliency"]["filenames"]:
            assert name.endswith(".png")
            assert imread(media_folder(folder) / name).shape == (224 + 8, 224 + 8 + 14, 3)  # a border, and the colour bar beside it
    captions = [row["fullgrad/saliency"]["captions"][0] for row in rows]
    assert [caption.split(":")[0] for caption in captions] == ["untrained", "epoch 1", "epoch 2"]
    assert all(" · " in caption and caption.endswith(" %") for caption in captions)
    for name in ("film_strip", "bias_terms"):
        assert imread(media_folder(folder) / rows[-1][f"fullgrad/{name}"]["path"]).ndim == 3
    assert ["fullgrad/film_strip" in row for row in rows] == [False, True, True]
    assert ["fullgrad/bias_terms" in row for row in rows] == [False, False, True]


def test_wandbs_table_has_a_row_for_every_image_and_snapshot_and_grows(watched):
    monitor, folder, _ = watched
    parts = tables(folder)
    assert [part["log_mode"] for part in parts] == ["INCREMENTAL"] * 3
    assert [len(part["previous_increments_paths"]) for part in parts] == [0, 1, 2]
    columns = parts[0]["columns"]
    assert columns == [
        *("overlay", "image", "number", "epoch", "step", "label", "explained", "prediction", "confidence"),
        *("correct", "completeness_error"),
    ]
    types = parts[0]["column_types"]["params"]["type_map"]
    for name, kind in {"overlay": "image-file", "image": "image-file", "confidence": "number", "prediction": "string"}.items():
        assert kind in [allowed["wb_type"] for allowed in types[name]["params"]["allowed_types"]]
    for index, part in enumerate(parts):
        rows = [dict(zip(columns, row, strict=True)) for row in part["data"]]
        found = monitor.history.images(index)
        assert [row["number"] for row in rows] == [0, 1, 2, 3]
        assert {row["epoch"] for row in rows} == {index}
        assert [row["confidence"] for row in rows] == pytest.approx([row.confidence for row in found])
        assert [row["prediction"] for row in rows] == [str(row.prediction) for row in found]
        assert [row["completeness_error"] for row in rows] == pytest.approx([row.completeness_error for row in found])


def test_a_run_of_wandb_needs_no_logger_of_lightning(tmp_path):
    run = wandb.init(mode="offline", dir=tmp_path)
    picture = np.zeros((112, 112, 3), np.uint8)
    log = log_for(run)
    for step in (3, 5):
        log.log({"a": step}, Pictures("k", "t", [picture] * 2, ["c"] * 2, "table", {"number": [0, 1]}), step)
    log.conclude({"strip": Image.fromarray(picture)}, 5)
    run.finish()
    rows = [row for row in history(tmp_path) if "a" in row]
    assert [(row["a"], row["trainer/global_step"]) for row in rows] == [(3, 3), (5, 5)]
    assert [row["k"]["captions"] for row in rows] == [["t: c"] * 2] * 2
    assert (media_folder(tmp_path) / summary(tmp_path)["strip"]["path"]).exists()


def test_wandb_pictures_are_let_go_of(tmp_path):
    """The table of a run of any length holds no picture that was logged."""
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    log = log_for(logger)
    picture = np.zeros((112, 112, 3), np.uint8)

    def alive():
        gc.collect()
        return sum(type(thing) is wandb.Image for thing in gc.get_objects())

    counts = []
    for step in range(6):
        log.log({"a": step}, Pictures("k", "t", [picture] * 4, ["c"] * 4, "table", {"image": [picture] * 4}), step)
        counts.append(alive())
    logger.experiment.finish()
    assert counts[-1] == counts[1]


def test_a_picture_that_stays_is_encoded_once_for_wandb(tmp_path, monkeypatch):
    logger, made = WandbLogger(save_dir=tmp_path, offline=True), []
    log, same = log_for(logger), np.full((112, 112, 3), 7, np.uint8)
    monkeypatch.setattr("fg_lightning.loggers._wandb_image", lambda *args: made.append(args) or _wandb_image(*args))
    for step in range(3):
        other = np.full((112, 112, 3), step, np.uint8)
        columns = {"image": [same, same], "other": [other, other.copy()], "number": [0, 1]}
        log.log({"a": step}, Pictures("k", "t", [other] * 2, ["c"] * 2, "table", columns), step)
    assert len(made) == 3 * (2 + 2) + 1
    logger.experiment.finish()
    parts = tables(tmp_path)
    digests = [[row[1]["sha256"] for row in part["data"]] for part in parts]
    assert len({digest for part in digests for digest in part}) == 1
    assert len({row[2]["sha256"] for part in parts for row in part["data"]}) == 3
    assert [[row[3] for row in part["data"]] for part in parts] == [[0, 1]] * 3


def test_wandb_never_decodes_a_picture_that_it_stores_pixel_by_pixel(tmp_path, monkeypatch):
    """To decode each overlay takes a fifth of W&B's time."""
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    log, picture = log_for(logger), np.random.default_rng(0).integers(0, 256, (230, 250, 3), dtype=np.uint8)
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", lambda *_, **__: pytest.fail("a picture was decoded"))
        log.log({"a": 1}, Pictures("k", "t", [picture] * 2, ["c"] * 2, "table", {"image": [picture] * 2}), 1)
        log.conclude({"strip": Image.fromarray(picture)}, 1)
    logger.experiment.finish()
    with Image.open(media_folder(tmp_path) / summary(tmp_path)["strip"]["path"]) as stored:
        assert (np.asarray(stored) == picture).all()
    (row,) = [row["k"] for row in history(tmp_path) if "k" in row]
    for name in row["filenames"]:
        with Image.open(media_folder(tmp_path) / name) as stored:
            assert stored.size == (row["width"], row["height"])
            assert (np.asarray(stored)[4:-4, 4 : 4 + 250] == picture).all()


def test_where_training_ends_early_wandb_has_the_strip_in_its_summary(tmp_path):
    class Stops(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            raise KeyboardInterrupt

    logger = WandbLogger(save_dir=tmp_path, offline=True)
    run = trainer(tmp_path, FullGradMonitor(num_samples=4), Stops(), logger=logger, max_epochs=5)
    with pytest.raises(SystemExit):
        run.fit(Classifier(), loader(seed=1), loader(16))
    logger.experiment.finish()
    assert (media_folder(tmp_path) / summary(tmp_path)["fullgrad/film_strip"]["path"]).exists()


def test_wandb_has_the_animation_in_motion(tmp_path):
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    pl.seed_everything(1, verbose=False)
    trainer(tmp_path, FullGradMonitor(num_samples=4, animation=True, strict=True), logger=logger).fit(
        Classifier(), loader(seed=1), loader(16, seed=2)
    )
    logger.experiment.finish()
    (row,) = [row for row in history(tmp_path) if "fullgrad/animation" in row]
    assert row["fullgrad/animation"]["_type"] == "video-file"
    with Image.open(media_folder(tmp_path) / row["fullgrad/animation"]["path"]) as picture:
        assert (picture.format, picture.n_frames) == ("GIF", 3)


# --- the others


def test_tensorboard_has_numbers_and_sheets_at_every_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    monitor = fitted(tmp_path, logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    for key in NUMBERS.keys() - MASK_NUMBERS.keys():
        read = [(event.step, event.value) for event in events.Scalars(f"fullgrad/{key}")]
        expected = [(step, numbers[f"fullgrad/{key}"]) for step, numbers in as_logged(monitor) if f"fullgrad/{key}" in numbers]
        assert [step for step, _ in read] == [step for step, _ in expected]
        assert [value for _, value in read] == pytest.approx([value for _, value in expected], rel=1e-6)
    sheets = events.Images("fullgrad/saliency")
    assert [sheet.step for sheet in sheets] == [0, 2, 5]
    assert sheets[0].width > 4 * 112
    for sheet in sheets:
        assert Image.open(io.BytesIO(sheet.encoded_image_string)).size == (sheet.width, sheet.height)
    *_, strip = events.Images("fullgrad/film_strip")
    with Image.open(monitor.history.strip_path) as drawn:
        assert (np.asarray(Image.open(io.BytesIO(strip.encoded_image_string))) == np.asarray(drawn)).all()
    assert [event.step for event in events.Images("fullgrad/film_strip")] == [2, 5]
    assert [event.step for event in events.Images("fullgrad/bias_terms")] == [5]


def test_a_writer_that_is_not_torchs_gets_pictures_by_its_add_image():
    """Such as tensorboardX's."""
    calls = []

    class TensorBoardLogger:
        experiment = SimpleNamespace(
            add_image=lambda key, pixels, step, dataformats: calls.append((key, pixels.shape, step, dataformats)),
        )

    log_for(TensorBoardLogger()).conclude({"strip": Image.new("RGB", (20, 10))}, 9)
    assert calls == [("strip", (10, 20, 3), 9, "HWC")]


def test_mlflow_has_numbers_and_sheets_at_every_step(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path}/mlruns")
    monitor = fitted(tmp_path, logger)
    read = logger.experiment.get_metric_history(logger.run_id, "fullgrad/completeness_error")
    assert [(metric.step, metric.value) for metric in sorted(read, key=lambda metric: metric.step)] == [
        (step, pytest.approx(numbers["fullgrad/completeness_error"])) for step, numbers in as_logged(monitor)
    ]
    paths = [item.path for item in logger.experiment.list_artifacts(logger.run_id, "images")]
    for key, steps in (("saliency", (0, 2, 5)), ("film_strip", (5,)), ("bias_terms", (5,))):
        for step in steps:
            assert any(key in path and path.endswith(".png") and f"step+{step}+" in path.replace("%", "+") for path in paths)


def test_csv_has_the_numbers_and_the_overlays_go_to_disk_which_is_said_once(tmp_path, caplog):
    logger = CSVLogger(tmp_path, name="run")
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        monitor = fitted(tmp_path, logger)
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    rows = [row for row in table if row["fullgrad/completeness_error"]]
    assert [(row["step"], row["epoch"]) for row in rows[1:]] == [(row["step"], row["epoch"]) for row in table if row["val_loss"]]
    assert [int(row["step"]) for row in rows] == [0, 2, 5]
    for row, (_, numbers) in zip(rows, as_logged(monitor), strict=True):
        assert {key: float(row[key]) for key in numbers} == pytest.approx(numbers)
    sheets = sorted((tmp_path / "run" / "version_0" / "fullgrad" / "saliency").iterdir())
    assert [path.name for path in sheets] == ["epoch_0000.png", "epoch_0001.png", "epoch_0002.png"]
    assert sum("CSVLogger takes no images" in message for message in caplog.messages) == 1


def test_several_loggers_at_once(tmp_path, caplog):
    loggers = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="tb")]
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        fitted(tmp_path, loggers)
    assert "fullgrad/drift" in (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()
    assert list((tmp_path / "tb" / "version_0").glob("events*"))
    assert not (tmp_path / "csv" / "version_0" / "fullgrad" / "saliency").exists()
    assert sum("CSVLogger takes no images and gets only the numbers" in message for message in caplog.messages) == 1


def test_comet_is_given_numbers_and_sheets():
    """Comet itself asks for an account; what it is called with is what its documentation says."""
    calls = []
    experiment = SimpleNamespace(log_image=lambda image, name, step: calls.append((image.size[0] > 112, name, step)))

    class CometLogger:
        def __init__(self):
            self.experiment = experiment

        def log_metrics(self, metrics, step):
            calls.append((metrics, step))

    log = log_for(CometLogger())
    picture = np.zeros((112, 112, 3), np.uint8)
    log.log({"a": 1.0}, Pictures("key", "title", [picture], ["caption"], "table"), 7)
    log.conclude({"strip": Image.new("RGB", (500, 500))}, 9)
    assert calls == [({"a": 1.0}, 7), (True, "key", 7), (True, "strip", 9)]


def test_a_logger_that_fails_does_not_keep_the_others_from_theirs(tmp_path):
    class Offline(Logger):
        name, version, save_dir = "offline", "0", None

        def log_hyperparams(self, *args, **kwargs):
            pass

        def log_metrics(self, metrics, step=None):
            if any(key.startswith("fullgrad/") for key in metrics):
                raise ConnectionError("no route to host")

    monitor = FullGradMonitor(num_samples=4)
    loggers = [Offline(), CSVLogger(tmp_path, name="csv")]
    with pytest.warns(UserWarning, match="ConnectionError: no route to host") as caught:
        trainer(tmp_path, monitor, logger=loggers).fit(Classifier(), loader(seed=1), loader(16))
    assert sum("FullGradMonitor" in str(w.message) for w in caught) == 1
    assert len(monitor.history.snapshots) == 3
    assert "fullgrad/drift" in (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()


def test_where_a_module_steps_its_optimizers_itself_the_step_is_lightnings(tmp_path):
    """It counts batches then, which `trainer.global_step` does not."""

    class Manual(Classifier):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.step()
            self.log("batches", float(self.trainer.fit_loop.total_batch_idx))

        def configure_optimizers(self):
            import torch

            return [torch.optim.SGD(part.parameters(), 0.1) for part in (self.features, self.head)]

    run = trainer(tmp_path, monitor := FullGradMonitor(num_samples=4, strict=True), logger=CSVLogger(tmp_path, name="run"))
    run.fit(Manual(), loader(seed=1), loader(16))
    assert run.global_step == 12
    assert [snapshot.step for snapshot in monitor.history.snapshots] == [0, 2, 5]
