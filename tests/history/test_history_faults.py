"""Faults of the disk: what they cost, and what is repaired."""

import errno
import io
import os
import shutil
import stat
import subprocess
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

import fg_lightning.history.run_history
from fg_lightning import FullGradMonitor
from fg_lightning import atomic_files as atomic
from fg_lightning.history import History
from fg_lightning.history.growing_files import GrowingArray, GrowingTable
from tests.helpers.small_trainings import Classifier, loader, trainer
from tests.helpers.written_snapshots import explanation, snapshot, written

FAULTS = [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT]
STAGES = ["probe/000.png", "probe.npz", "probe.json", "maps.npy", "images.csv", "layers.csv", "history.csv"]


@contextmanager
def faulty(monkeypatch, stage, code, *, short=0, only=None):
    """A disk that raises where one file is written, after so many bytes of a table; only as long as the last says."""
    real_append, real_replace_file, real_array = (
        GrowingTable.append,
        fg_lightning.history.run_history.replace_file,
        GrowingArray.append,
    )

    def fail(path):
        if str(path).endswith(stage) and (only is None or only.is_faulty):
            raise OSError(code, os.strerror(code), str(path))

    def append(self, rows):
        if self.path.name == stage and short:
            whole = self.path.with_name("whole.csv")
            real_append(GrowingTable(whole, self.columns), rows)
            with self.path.open("ab") as file:
                file.write(whole.read_bytes()[:short])
            whole.unlink()
        fail(self.path)
        real_append(self, rows)

    def replace_file(path):
        fail(path)
        return real_replace_file(path)

    def write_json(path, content):
        fail(path)
        atomic.write_json(path, content)

    def grown(self, entry):
        fail(self.path)
        real_array(self, entry)

    with monkeypatch.context() as patched:
        patched.setattr(GrowingTable, "append", append)
        patched.setattr("fg_lightning.history.run_history.replace_file", replace_file)
        patched.setattr("fg_lightning.history.run_history.write_json", write_json)
        patched.setattr(GrowingArray, "append", grown)
        yield


@pytest.mark.parametrize("code", FAULTS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_at_the_first_snapshot_costs_that_snapshot_alone(tmp_path, monkeypatch, stage, code):
    folder = tmp_path / "fullgrad"
    history, pictures = History(folder), [np.zeros((4, 4, 3), np.uint8)] * 2
    with faulty(monkeypatch, stage, code):
        if stage.startswith("probe"):
            with pytest.raises(OSError, match=os.strerror(code)):
                history.begin({"psi": "absolute"}, torch.rand(2, 1, 4, 4), None, pictures)
        else:
            history.begin({"psi": "absolute"}, torch.rand(2, 1, 4, 4), None, pictures)
        with pytest.raises(OSError, match=os.strerror(code)):
            history.add(snapshot(0), explanation(0), None)
    for epoch in (1, 2):
        history.add(snapshot(epoch), explanation(epoch), None)
    read = History.read(folder)
    assert [one.epoch for one in read.snapshots] == [1, 2]
    assert torch.allclose(read.maps(0), explanation(1).maps, atol=2**-11)
    assert {index: [row.image for row in rows] for index, rows in read.images_by_snapshot().items()} == {0: [0, 1], 1: [0, 1]}
    assert [len(rows) for rows in read.layers_by_snapshot().values()] == [3, 3]
    assert read.probe()[0].shape == (2, 1, 4, 4)
    assert len(list((folder / "probe").glob("*.png"))) == 2


@pytest.mark.parametrize("short", [0, 1, 7, 40])
@pytest.mark.parametrize("stage", STAGES[3:])
def test_a_snapshot_that_cannot_be_written_leaves_the_next_one_whole(tmp_path, monkeypatch, stage, short):
    history = written(tmp_path, num_snapshots=1)
    with faulty(monkeypatch, stage, errno.ENOSPC, short=short):
        for epoch in (1, 2):
            with pytest.raises(OSError, match="No space"):
                history.add(snapshot(epoch), explanation(epoch), None)
    history.add(snapshot(3), explanation(3), None)
    read = History.read(tmp_path)
    assert [one.epoch for one in read.snapshots] == [0, 3]
    assert torch.allclose(read.maps(0), explanation(0).maps, atol=2**-11)
    assert torch.allclose(read.maps(1), explanation(3).maps, atol=2**-11)
    assert [len(rows) for rows in read.images_by_snapshot().values()] == [2, 2]
    assert [len(rows) for rows in read.layers_by_snapshot().values()] == [3, 3]


def test_a_write_that_ends_early_without_an_error_is_one(tmp_path, monkeypatch):
    """The last room on a disk takes a part of a row, and the system call says how much."""
    history = written(tmp_path, num_snapshots=1)
    opened = Path.open

    class Short(io.FileIO):
        def write(self, raw):
            return super().write(raw[:9])

    def short(self, *given, **options):
        return Short(self, "ab") if (self.name, given) == ("images.csv", ("ab",)) else opened(self, *given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", short)
        with pytest.raises(OSError, match=r"No space left on device: '.*images.csv'"):
            history.add(snapshot(1), explanation(1), None)
    history.add(snapshot(2), explanation(2), None)
    assert [one.epoch for one in History.read(tmp_path).snapshots] == [0, 2]


@pytest.mark.parametrize("name", ["history.csv", "images.csv", "layers.csv", "maps.npy", "probe.json", "."])
def test_what_is_removed_while_it_runs_is_written_again(tmp_path, name):
    folder = tmp_path / "fullgrad"
    history = written(folder, num_snapshots=2)
    (shutil.rmtree if name == "." else Path.unlink)(folder / name)
    history.add(snapshot(2), explanation(2), None)
    read = History.read(folder)
    assert read.snapshots == history.snapshots == [snapshot(0), snapshot(1), snapshot(2)]
    assert torch.allclose(read.maps(2), explanation(2).maps, atol=2**-11)
    assert read.maps(0).isnan().all() == (name in (".", "maps.npy"))


# --- of a run


def fit_on_a_faulty_disk(folder, monkeypatch, stage, code, epochs, **options):
    """A training at whose first snapshots, of so many epochs, one file cannot be written; its weights, and what was warned of."""
    monitor, module = FullGradMonitor(num_samples=4, **options), Classifier()
    healing = Healing(epochs)
    with faulty(monkeypatch, stage, code, only=healing), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(folder, healing, monitor, max_epochs=4).fit(module, loader(seed=1), loader(16, seed=2))
    return monitor, module, [str(one.message) for one in caught if "FullGradMonitor" in str(one.message)]


class Healing(Callback):
    """A disk that can be written to from the end of an epoch on."""

    def __init__(self, epochs):
        self.epochs = epochs
        self.is_faulty = epochs > 0

    def on_train_epoch_end(self, trainer, pl_module):
        self.is_faulty = trainer.current_epoch + 1 < self.epochs


@pytest.mark.parametrize("code", FAULTS)
@pytest.mark.parametrize("stage", [STAGES[0], *STAGES[2:]])
def test_a_training_on_a_disk_that_is_full_at_first_is_recorded_from_then_on(tmp_path, monkeypatch, caplog, stage, code):
    monitor, _, said = fit_on_a_faulty_disk(tmp_path, monkeypatch, stage, code, 2)
    assert len(said) == 1
    assert os.strerror(code) in said[0]
    read = History.read(tmp_path / "fullgrad" / "version_0")
    assert [one.epoch for one in read.snapshots] == [2, 3, 4]
    assert monitor.history.num_unwritten == 2
    assert "3 snapshots, see" in caplog.text
    assert "2 more could not be written" in caplog.text
    assert read.snapshots == monitor.history.snapshots
    assert all(bool(read.maps(index).isfinite().all()) for index in range(3))
    assert [len(rows) for rows in read.images_by_snapshot().values()] == [4, 4, 4]
    assert (monitor.history.folder / "film_strip.png").stat().st_size > 1000


def test_where_nothing_can_ever_be_written_training_goes_on(tmp_path, monkeypatch):
    torch.manual_seed(3)
    monitor, module, said = fit_on_a_faulty_disk(tmp_path, monkeypatch, "probe/000.png", errno.EROFS, 99)
    assert len(said) == 1
    assert not monitor.history.snapshots
    torch.manual_seed(3)
    _, other, _ = fit_on_a_faulty_disk(tmp_path / "other", monkeypatch, "probe/000.png", errno.EROFS, 0)
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), other.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_really_is(tmp_path, fault):
    """A file system of one megabyte that cannot be written to before the first snapshot, and can after the first epoch."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("nothing can be mounted here")

    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)

    class Healing(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                (disk / "fill").unlink() if fault == "full" else remount("rw")

    try:
        if fault == "full":
            with (disk / "fill").open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(512)):
                    pass
        else:
            remount("ro")
        said = {"full": "No space left on device", "read-only": "Read-only file system"}[fault]
        monitor = FullGradMonitor(num_samples=4)
        with pytest.warns(UserWarning, match=said) as caught:
            trainer(disk, Healing(), monitor, max_epochs=3).fit(Classifier(), loader(seed=1), loader(16, seed=2))
        assert sum("FullGradMonitor" in str(one.message) for one in caught) == 1
        (folder,) = (disk / "fullgrad").iterdir()
        assert [one.epoch for one in History.read(folder).snapshots] == [2, 3]
        assert not list(disk.rglob(f"{atomic.PREFIX}*"))
        assert all(path.stat().st_size for path in disk.rglob("*") if path.is_file())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_umask_holds_for_all_that_is_written(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        monitor = FullGradMonitor(num_samples=2, animation=True, report=True, strict=True)
        trainer(tmp_path, monitor).fit(Classifier(), loader(seed=1), loader(16))
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "fullgrad").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}


def test_the_next_run_sweeps_up_what_a_killed_one_left(tmp_path):
    left = [tmp_path / "fullgrad" / "version_0" / name for name in (f"{atomic.PREFIX}0", f"probe/{atomic.PREFIX}1")]
    left[1].parent.mkdir(parents=True)
    for path in left:
        path.touch()
    trainer(tmp_path, FullGradMonitor(num_samples=2, strict=True)).fit(Classifier(), loader(seed=1), loader(16))
    assert not any(path.exists() for path in left)
    assert (tmp_path / "fullgrad" / "version_1" / "history.csv").exists()
