"""A run that goes on from a checkpoint goes on with its history."""

import errno
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fg_lightning import FullGradMonitor, FullGradRecorder
from fg_lightning.history import History
from fg_lightning.history import run_history as history_module
from fg_lightning.recording import resume as resume_module
from fg_lightning.recording.resume import ResumedRun
from fg_lightning.report import write_report
from tests import ROOT
from tests.helpers.small_trainings import Classifier, images_and_labels, loader, trainer


def fit(folder, monitor, epochs, resume=None, val=None, logger=False, saved=None, **options):
    pl.seed_everything(1, verbose=False)
    saved = saved or ModelCheckpoint(folder / "saved", save_top_k=-1, filename="{epoch}")
    options = {"enable_checkpointing": True, "max_epochs": epochs, "logger": logger} | options
    module = Classifier()
    data = loader(seed=1, shuffle=True), loader(16, seed=2) if val is None else val
    trainer(folder, monitor, saved, **options).fit(module, *data, ckpt_path=resume)
    return module


def epochs_of(history):
    return [snapshot.epoch for snapshot in history.snapshots]


def test_the_strip_goes_on_where_it_stopped(tmp_path):
    """In one go and in two halves: the same snapshots, numbers and maps."""
    whole = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path / "whole", whole, 4)
    fit(tmp_path / "halves", FullGradMonitor(num_samples=4, strict=True), 2)
    half = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path / "halves", half, 4, resume=tmp_path / "halves/saved/epoch=1.ckpt")
    assert epochs_of(half.history) == epochs_of(whole.history) == [0, 1, 2, 3, 4]
    for index in range(5):
        # The second half draws its batches in another order; the snapshots before are the same.
        if index <= 2:
            assert half.history.snapshots[index] == whole.history.snapshots[index]
            assert torch.equal(half.history.maps(index), whole.history.maps(index))
    assert {"fullgrad/drift", "fullgrad/drift_from_untrained"} <= set(half.history.snapshots[3].numbers)
    assert (half.history.folder / "film_strip.png").stat().st_size > 1000


def test_the_drift_over_the_gap_is_that_of_the_maps(tmp_path):
    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 1)
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, 2, resume=tmp_path / "saved/epoch=0.ckpt")
    maps = [monitor.history.maps(index).flatten(1) for index in range(3)]
    for key, earlier in (("drift", 1), ("drift_from_untrained", 0)):
        expected = 1 - torch.cosine_similarity(maps[2], maps[earlier]).mean()
        assert monitor.history.snapshots[2].numbers[f"fullgrad/{key}"] == pytest.approx(float(expected), abs=1e-5)  # float16 maps


def test_the_earlier_run_keeps_what_it_found(tmp_path):
    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 3)
    first = History.read(tmp_path / "fullgrad" / "version_0")
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, 2, resume=tmp_path / "saved/epoch=0.ckpt")
    assert monitor.history.folder == tmp_path / "fullgrad" / "version_1"
    assert epochs_of(monitor.history) == [0, 1, 2]
    assert History.read(tmp_path / "fullgrad" / "version_0").snapshots == first.snapshots


def test_a_logger_that_goes_on_in_its_folder_takes_the_history_with_it(tmp_path):
    def logger():
        return CSVLogger(tmp_path, name="run", version="the_same")

    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 3, logger=logger())
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, 4, resume=tmp_path / "saved/epoch=1.ckpt", logger=logger())
    assert monitor.history.folder == tmp_path / "run" / "the_same" / "fullgrad"
    assert epochs_of(History.read(monitor.history.folder)) == [0, 1, 2, 3, 4]
    assert [path.name for path in (tmp_path / "run" / "the_same").glob("fullgrad*")] == ["fullgrad"]


def test_there_is_one_snapshot_of_the_moment_of_the_checkpoint(tmp_path):
    fit(tmp_path, FullGradMonitor(every_n_epochs=2, num_samples=4, strict=True), 3)
    monitor = FullGradMonitor(every_n_epochs=2, num_samples=4, strict=True)
    fit(tmp_path, monitor, 6, resume=tmp_path / "saved/epoch=2.ckpt")
    assert epochs_of(monitor.history) == [0, 2, 4, 6]


def test_a_checkpoint_within_an_epoch(tmp_path):
    def saved():
        return ModelCheckpoint(tmp_path / "saved", every_n_train_steps=4, save_top_k=-1, filename="{step}")

    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 2, saved=saved())
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, 3, resume=tmp_path / "saved/step=4.ckpt", saved=saved())
    assert epochs_of(monitor.history) == [0, 1, 2, 3]


def test_a_checkpoint_without_the_monitor_begins_a_history_there(tmp_path):
    pl.seed_everything(1, verbose=False)
    saved = ModelCheckpoint(tmp_path / "saved", filename="{epoch}")
    trainer(tmp_path, saved, enable_checkpointing=True, max_epochs=1).fit(Classifier(), loader(seed=1), loader(16))
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, 3, resume=tmp_path / "saved/epoch=0.ckpt")
    assert [snapshot.title for snapshot in monitor.history.snapshots] == ["epoch 1", "epoch 2", "epoch 3"]
    assert not any("fullgrad/drift_from_untrained" in snapshot.numbers for snapshot in monitor.history.snapshots)


def test_a_second_fit_without_the_checkpoint_begins_anew(tmp_path):
    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 1)
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, 2, resume=tmp_path / "saved/epoch=0.ckpt")
    fit(tmp_path, monitor, 1)
    assert epochs_of(monitor.history) == [0, 1]


# --- what changed meanwhile


def test_other_images_are_noticed_and_the_old_ones_still_explained(tmp_path):
    fit(tmp_path, FullGradMonitor(num_samples=4), 1)
    images, labels = images_and_labels(16, seed=2)
    images[10] += 1
    changed = DataLoader(TensorDataset(images, labels), 8)
    monitor = FullGradMonitor(num_samples=4)
    with pytest.warns(UserWarning, match="ProbeChanged: since the checkpoint was written, images 1 differ.*still explained"):
        fit(tmp_path, monitor, 2, resume=tmp_path / "saved/epoch=0.ckpt", val=changed)
    assert torch.equal(monitor.probe.images, images_and_labels(16, seed=2)[0][[3, 10, 11, 8]])
    assert epochs_of(monitor.history) == [0, 1, 2]
    with pytest.raises(ValueError, match="images 1 differ"):
        fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 2, resume=tmp_path / "saved/epoch=0.ckpt", val=changed)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_samples": 5}, r"the images were \[4, 1, 8, 8\] and are \[5, 1, 8, 8\]"),
        ({"num_samples": 4, "psi": "signed"}, "psi was absolute and is signed"),
        ({"num_samples": 4, "target": 1}, "target was None and is 1"),
        ({"probe": images_and_labels(4, seed=7)}, "images 0, 1, 2, 3 differ"),
    ],
)
def test_what_cannot_be_compared_begins_a_new_history(tmp_path, options, reason):
    fit(tmp_path, FullGradMonitor(num_samples=4), 1)
    monitor = FullGradMonitor(**options)
    with pytest.warns(UserWarning, match=f"ProbeChanged.*{reason}.*a new history begins"):
        fit(tmp_path, monitor, 2, resume=tmp_path / "saved/epoch=0.ckpt")
    assert epochs_of(monitor.history) == [1, 2]
    assert epochs_of(History.read(tmp_path / "fullgrad" / "version_0")) == [0, 1]


class Stream(IterableDataset):
    def __init__(self, seed):
        self.seed = seed

    def __iter__(self):
        yield from TensorDataset(*images_and_labels(16, self.seed))


def test_of_a_stream_the_images_of_the_checkpoint_are_explained(tmp_path):
    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 1, val=DataLoader(Stream(2), 8))
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, 2, resume=tmp_path / "saved/epoch=0.ckpt", val=DataLoader(Stream(3), 8))
    assert torch.equal(monitor.probe.images, images_and_labels(16, seed=2)[0][[1, 5, 7, 4]])  # of the first batch
    assert epochs_of(monitor.history) == [0, 1, 2]


# --- what a checkpoint keeps


def kept(path):
    return torch.load(path, weights_only=True)["callbacks"]["FullGradMonitor"]


def test_a_checkpoint_keeps_little_and_nothing_that_torch_does_not_trust(tmp_path):
    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 2)
    first, second = (kept(tmp_path / f"saved/epoch={epoch}.ckpt") for epoch in (0, 1))
    of_probe = {"images", "inputs", "num_inputs", "labels", "shown_labels", "masks", "masks_from", "indices", "chosen"}
    assert set(first) == {"folder", "snapshots", "fingerprint", "settings", "task", *of_probe}
    assert [row["epoch"] for row in second["snapshots"]] == [0, 1, 2]
    assert len(second["snapshots"]) == len(first["snapshots"]) + 1
    assert second["images"].shape == (4, 1, 8, 8)
    assert second["labels"].dtype is torch.uint8


def test_images_that_are_not_small_lie_in_the_runs_folder_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("fg_lightning.recording.resume.MOST_BYTES", 100)
    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 1, val=DataLoader(Stream(2), 8))
    assert kept(tmp_path / "saved/epoch=0.ckpt")["images"] is None
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, 2, resume=tmp_path / "saved/epoch=0.ckpt", val=DataLoader(Stream(3), 8))
    assert torch.equal(monitor.probe.images, images_and_labels(16, seed=2)[0][[1, 5, 7, 4]])  # of the first batch


def test_where_the_folder_is_gone_the_numbers_go_on(tmp_path):
    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 1)
    before = History.read(tmp_path / "fullgrad" / "version_0").snapshots
    (tmp_path / "fullgrad").rename(tmp_path / "elsewhere")
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, 2, resume=tmp_path / "saved/epoch=0.ckpt")
    read = History.read(tmp_path / "fullgrad" / "version_0")
    assert epochs_of(read) == [0, 1, 2]
    assert read.snapshots[:2] == before
    assert bool(read.maps(0).isnan().all())
    assert bool(read.maps(2).isfinite().all())
    assert "fullgrad/drift" not in read.snapshots[2].numbers
    assert (tmp_path / "fullgrad" / "version_0" / "film_strip.png").exists()


def a_logger(folder):
    return CSVLogger(folder, name="run", version="the_same")


@pytest.mark.parametrize("is_same", [False, True])
@pytest.mark.parametrize("name", ["probe.json", "history.csv", "images.csv", "layers.csv", "maps.npy"])
def test_a_damaged_folder_is_said_and_what_is_left_goes_on(tmp_path, name, is_same):
    logger = a_logger if is_same else lambda folder: False
    first = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, first, 1, logger=logger(tmp_path))
    path = first.history.folder / name
    path.write_bytes(path.read_bytes()[:-20])
    monitor = FullGradMonitor(num_samples=4)
    with pytest.warns(UserWarning, match=rf"Damage: {path.parent} is damaged: .*the run continues with the numbers") as caught:
        fit(tmp_path, monitor, 2, resume=tmp_path / "saved/epoch=0.ckpt", logger=logger(tmp_path))
    assert sum("FullGradMonitor" in str(w.message) for w in caught) == 1
    assert (monitor.history.folder == first.history.folder) == is_same
    read = History.read(monitor.history.folder)
    assert epochs_of(read) == [0, 1, 2]
    assert read.snapshots[:2] == first.history.snapshots
    assert [bool(read.maps(index).isnan().any()) for index in range(3)] == [False, name == "maps.npy", False]
    assert [len(rows) for rows in read.images_by_snapshot().values()] == [4, 4, 4]
    assert (read.folder / "film_strip.png").stat().st_size > 1000
    assert write_report(read.folder).stat().st_size > 10_000
    assert ("fullgrad/drift" in read.snapshots[2].numbers) == (name != "maps.npy")
    assert "fullgrad/drift_from_untrained" in read.snapshots[2].numbers


@pytest.mark.parametrize("name", ["snapshots", "folder", "settings", "task", "fingerprint"])
def test_a_state_of_another_version_begins_a_new_history(tmp_path, name):
    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 1)
    path = tmp_path / "saved/epoch=0.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["callbacks"]["FullGradMonitor"][name]
    torch.save(checkpoint, path)
    monitor = FullGradMonitor(num_samples=4)
    with pytest.warns(UserWarning, match=rf"state of the monitor became unreadable \(KeyError: '{name}'\).*a new history begins"):
        fit(tmp_path, monitor, 2, resume=path)
    assert epochs_of(History.read(monitor.history.folder)) == [1, 2]


def test_a_run_that_goes_on_without_a_snapshot_reads_what_there_was(tmp_path):
    first = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, first, 2)
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, 2, resume=tmp_path / "saved/epoch=1.ckpt")
    if monitor.history is not None:
        assert monitor.history.snapshots == first.history.snapshots
        assert torch.equal(monitor.history.maps(1), first.history.maps(1))
        assert monitor.history.images_by_snapshot() == first.history.images_by_snapshot()
    assert not (tmp_path / "fullgrad" / "version_1" / "history.csv").exists()


def test_damage_raises_under_strict(tmp_path):
    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 1)
    (tmp_path / "fullgrad" / "version_0" / "images.csv").unlink()
    with pytest.raises(ValueError, match=r"is damaged: images.csv lacks rows of snapshots 0, 1"):
        fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 2, resume=tmp_path / "saved/epoch=0.ckpt")


def test_a_folder_that_cannot_be_read_now_stays_as_it_is(tmp_path, monkeypatch):
    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 1)
    folder = tmp_path / "fullgrad" / "version_0"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    real = resume_module.find_lost_snapshots

    def faulty(*given):
        real(*given)
        raise OSError(errno.EIO, "Input/output error", str(folder / "history.csv"))

    monkeypatch.setattr(resume_module, "find_lost_snapshots", faulty)
    monitor = FullGradMonitor(num_samples=4)
    with pytest.warns(UserWarning, match="Input/output error"):
        fit(tmp_path, monitor, 2, resume=tmp_path / "saved/epoch=0.ckpt")
    assert epochs_of(monitor.history) == [0, 1, 2]
    assert monitor.history.folder == tmp_path / "fullgrad" / "version_1"
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_copy_that_finds_the_disk_full_is_made_with_the_next_snapshot(tmp_path, monkeypatch):
    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 1)
    real, calls = history_module._copy_tree, []

    def full_at_first(*given):
        calls.append(given)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*given)

    monkeypatch.setattr(history_module, "_copy_tree", full_at_first)
    monitor = FullGradMonitor(num_samples=4)
    with pytest.warns(UserWarning, match="No space left on device"):
        fit(tmp_path, monitor, 4, resume=tmp_path / "saved/epoch=0.ckpt")
    read = History.read(monitor.history.folder)
    assert epochs_of(read) == [0, 1, 3, 4]
    assert all(bool(read.maps(index).isfinite().all()) for index in range(4))


def test_a_checkpoint_before_the_next_snapshot_knows_the_folder(tmp_path):
    """A run that goes on and is stopped again before a snapshot."""
    fit(tmp_path, FullGradMonitor(every_n_epochs=2, num_samples=4, strict=True), 2)
    monitor = FullGradMonitor(every_n_epochs=4, num_samples=4, strict=True)
    fit(tmp_path, monitor, 4, resume=tmp_path / "saved/epoch=1.ckpt")
    state = kept(tmp_path / "saved/epoch=2.ckpt")
    assert state["folder"] == str((tmp_path / "fullgrad" / "version_0").resolve())
    last = FullGradMonitor(every_n_epochs=2, num_samples=4, strict=True)
    fit(tmp_path, last, 4, resume=tmp_path / "saved/epoch=2.ckpt")
    assert epochs_of(last.history) == [0, 2, 4]
    assert all(bool(last.history.maps(index).isfinite().all()) for index in range(3))


def test_images_that_lie_in_a_damaged_folder_alone_are_looked_for_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("fg_lightning.recording.resume.MOST_BYTES", 100)
    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 1)
    path = tmp_path / "fullgrad" / "version_0" / "probe.npz"
    path.write_bytes(path.read_bytes()[:300])
    monitor = FullGradMonitor(num_samples=4)
    with pytest.warns(UserWarning, match="is damaged: BadZipFile"):
        fit(tmp_path, monitor, 2, resume=tmp_path / "saved/epoch=0.ckpt")
    assert epochs_of(monitor.history) == [0, 1, 2]


def test_a_table_that_ends_before_the_checkpoint_keeps_maps_and_numbers_together(tmp_path):
    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 2)
    first = History.read(tmp_path / "fullgrad" / "version_0")
    path = first.folder / "history.csv"
    path.write_bytes(path.read_bytes()[:-5])
    monitor = FullGradMonitor(num_samples=4)
    with pytest.warns(UserWarning, match="history.csv lacks snapshot 2"):
        fit(tmp_path, monitor, 3, resume=tmp_path / "saved/epoch=1.ckpt")
    assert monitor.history.snapshots[:3] == first.snapshots
    for index in range(3):
        assert torch.equal(monitor.history.maps(index), first.maps(index))


def test_a_checkpoint_of_another_branch_takes_what_is_its_own(tmp_path):
    """Two runs in one folder: the second went back to an earlier checkpoint, and a third goes on from the first's last one."""

    def logger():
        return CSVLogger(tmp_path, name="run", version="the_same")

    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 3, logger=logger())
    (tmp_path / "saved").rename(tmp_path / "first")
    second = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, second, 3, resume=tmp_path / "first/epoch=0.ckpt", logger=logger(), gradient_clip_val=1e-3)
    third = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, third, 4, resume=tmp_path / "first/epoch=2.ckpt", logger=logger())
    states = kept(tmp_path / "first/epoch=2.ckpt")["snapshots"]
    read = History.read(third.history.folder)
    assert [{"epoch": snapshot.epoch, "step": snapshot.step, **snapshot.numbers} for snapshot in read.snapshots[:4]] == states
    assert [bool(read.maps(index).isnan().any()) for index in range(5)] == [False, False, True, True, False]


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from tests.recording.test_resume import fit
from fg_lightning import FullGradMonitor
from pathlib import Path

folder, epochs, *resume = sys.argv[1:]
monitor = FullGradMonitor(num_samples=4, strict=True)
fit(Path(folder), monitor, int(epochs), resume=resume[0] if resume else None)
print([snapshot.epoch for snapshot in monitor.history.snapshots])
"""


@pytest.mark.slow
def test_in_a_new_process(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT.format(root=str(ROOT)), str(tmp_path)]
    subprocess.run([*command, "1"], check=True, capture_output=True)
    resumed = subprocess.run([*command, "2", str(tmp_path / "saved/epoch=0.ckpt")], check=True, capture_output=True, text=True)
    assert resumed.stdout.splitlines()[-1] == "[0, 1, 2]"


class Elsewhere(Tensor):
    """Stands for a tensor on a GPU, which a checkpoint that is read with `map_location` holds."""

    def cpu(self):
        return self.as_subclass(Tensor)


def test_a_checkpoint_may_be_read_to_any_device(tmp_path):
    images, labels = images_and_labels(4, seed=3)
    with FullGradRecorder(tmp_path / "run", (images, labels, torch.ones(4, *images.shape[2:])), task="classes") as recorder:
        recorder.snapshot(Classifier(), step=0, epoch=0)
    state = apply_to_collection(recorder.state_dict(), Tensor, lambda tensor: tensor.as_subclass(Elsewhere))
    resumed = ResumedRun.from_state(state)
    kinds = [type(tensor) for tensor in (resumed.probe.images, resumed.probe.labels, resumed.probe.masks, resumed.shown_labels)]
    assert kinds == [Tensor] * 4


def test_the_images_of_a_checkpoint_keep_their_labels(tmp_path):
    """Not those of the images that stand in their place since."""
    fit(tmp_path, FullGradMonitor(num_samples=4, strict=True), 1)
    monitor = FullGradMonitor(num_samples=4)
    images, labels = images_and_labels(16, seed=3)
    val = DataLoader(TensorDataset(images, (labels + 1) % 3), 8)
    with pytest.warns(UserWarning, match="since the checkpoint was written, images .* differ"):
        fit(tmp_path, monitor, 2, resume=tmp_path / "saved/epoch=0.ckpt", val=val)
    before, now = monitor.history.images(0), monitor.history.images(2)
    assert [row.label for row in now] == [row.label for row in before]
