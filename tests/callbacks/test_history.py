"""What lies under `fullgrad/`, also after a crash."""

import errno
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from matplotlib.image import imread
from networks import LIGHTNINGS_OWN, Classifier, images_and_labels, loader, trainer

import fg_lightning.callbacks.history
from fg_lightning import FullGradMonitor, atomic, full_gradients
from fg_lightning.callbacks.drawing import Artist, bias_terms
from fg_lightning.callbacks.growing import GrowingArray
from fg_lightning.callbacks.history import COLUMNS, History
from fg_lightning.callbacks.look import NUMBERS, Findings, Layer, Look
from fg_lightning.callbacks.naming import ClassNames
from fg_lightning.callbacks.probe import Probe
from fg_lightning.callbacks.table import as_csv
from fg_lightning.callbacks.task import Answers

pytestmark = LIGHTNINGS_OWN


def findings(seed=0, n=2, size=4, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    terms = ("output", "input_term", "bias_term", "implicit_term", "completeness_error")
    return Findings(
        maps=scale * torch.rand(n, 1, size, size, generator=generator),
        answers=Answers(torch.tensor([1, 0]), torch.tensor([1, 1]), torch.tensor([0.75, 0.5])),
        terms={name: torch.rand(n, generator=generator) for name in terms},
        layers=[Layer("", "input", 0.5), Layer("head.0", "explicit", 0.25), Layer("act", "implicit", 0.25)],
    )


def look(epoch):
    return Look(epoch, 3 * epoch, {f"fullgrad/{key}": epoch + i / 7 for i, key in enumerate(NUMBERS) if key != "drift"})


def written(folder, looks=3, **options):
    history = History(folder)
    history.begin({"psi": "absolute"}, Probe(torch.rand(2, 1, 4, 4), torch.tensor([1, 0])), [np.zeros((4, 4, 3), np.uint8)] * 2)
    for epoch in range(looks):
        history.add(look(epoch), findings(epoch, **options), torch.tensor([1, 0]))
    return history


def test_what_was_written_is_read_back(tmp_path):
    history = written(tmp_path)
    read = History.read(tmp_path)
    assert read.looks == history.looks
    assert read.about() == {"format": 1, "psi": "absolute"}
    assert torch.equal(read.probe().labels, torch.tensor([1, 0]))
    for index in range(3):
        # float16 keeps 11 bits of what is scaled to 1
        assert torch.allclose(read.maps(index), findings(index).maps, atol=2**-11)
    assert torch.equal(read.maps(-1), read.maps(2))
    row = read.images(1)[0]
    assert (row["label"], row["explained"], row["prediction"], row["confidence"]) == ("1", "1", "1", "0.75")
    assert float(row["output"]) == findings(1).terms["output"][0].item()
    assert [(row["module"], row["kind"], row["share"]) for row in read.layers(2)] == [
        ("", "input", "0.5"),
        ("head.0", "explicit", "0.25"),
        ("act", "implicit", "0.25"),
    ]


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_maps_of_any_magnitude_keep_it(tmp_path, scale):
    """float16 ends at 65504, and at 6e-8; the sum of a map's terms and channels does not."""
    history = written(tmp_path, looks=1, scale=scale)
    assert torch.allclose(history.maps(0), findings(0, scale=scale).maps, atol=scale * 2**-11, rtol=0)


def test_maps_stay_in_memory_of_the_first_and_the_last_look_alone(tmp_path):
    history = written(tmp_path, looks=20)
    kept = [value for value in vars(history).values() if isinstance(value, torch.Tensor)]
    assert len(kept) == 2
    assert not any(isinstance(value, torch.Tensor) for look in history.looks for value in vars(look).values())


def test_without_a_folder_nothing_is_written_and_the_ends_are_known(tmp_path):
    history = written(None, looks=3)
    assert torch.equal(history.maps(0), findings(0).maps)
    assert torch.equal(history.maps(-1), findings(2).maps)
    with pytest.raises(ValueError, match="kept in memory alone"):
        history.maps(1)


def test_it_forgets_the_looks_behind_a_checkpoint(tmp_path):
    history = History(tmp_path, written(tmp_path, looks=5).looks[:2], tmp_path)
    history.add(look(7), findings(7), None)
    read = History.read(tmp_path)
    assert [look.epoch for look in read.looks] == [0, 1, 7]
    assert torch.allclose(read.maps(2), findings(7).maps, atol=2**-11)
    assert [row["look"] for row in read.images()] == ["0", "0", "1", "1", "2", "2"]
    assert len(read.layers()) == 9


@pytest.mark.parametrize("until", ["maps.npy", "images.csv", "layers.csv"])
def test_a_look_that_was_cut_short_is_not_in_the_history(tmp_path, until):
    """Everything of a look up to one file, as a killed process leaves it: `history.csv` comes last."""
    written(tmp_path / "whole", looks=3)
    written(tmp_path / "short", looks=2)
    for name in ["maps.npy", "images.csv", "layers.csv"]:
        (tmp_path / "short" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
        if name == until:
            break
    read = History.read(tmp_path / "short")
    assert len(read.looks) == 2
    assert {row["look"] for row in read.images()} == {"0", "1"}
    read.add(look(9), findings(9), None)
    assert torch.allclose(History.read(tmp_path / "short").maps(2), findings(9).maps, atol=2**-11)
    assert len(History.read(tmp_path / "short").layers(2)) == 3


def test_a_row_without_its_end_does_not_count(tmp_path):
    written(tmp_path, looks=3)
    path = tmp_path / "history.csv"
    path.write_bytes(path.read_bytes()[:-5])
    assert len(History.read(tmp_path).looks) == 2


FAULTS = [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT]
STAGES = ["probe/000.png", "probe.npz", "probe.json", "maps.npy", "images.csv", "layers.csv", "history.csv"]


@contextmanager
def faulty(monkeypatch, stage, code, *, short=0, only=None):
    """A disk that raises where one file is written, after so many bytes of a table; only as long as the last says."""
    real_append, real_replacing, real_array = History._append, fg_lightning.callbacks.history.replacing, GrowingArray.append

    def fail(path):
        if str(path).endswith(stage) and (only is None or only.is_faulty):
            raise OSError(code, os.strerror(code), str(path))

    def append(self, name, rows):
        if name == stage and short:
            with (self.folder / name).open("ab") as file:
                file.write(as_csv([COLUMNS[name], *rows])[:short])
        fail(name)
        real_append(self, name, rows)

    def replacing(path):
        fail(path)
        return real_replacing(path)

    def write_json(path, content):
        fail(path)
        atomic.write_json(path, content)

    def grown(self, entry):
        fail(self.path)
        real_array(self, entry)

    with monkeypatch.context() as patched:
        patched.setattr(History, "_append", append)
        patched.setattr("fg_lightning.callbacks.history.replacing", replacing)
        patched.setattr("fg_lightning.callbacks.history.write_json", write_json)
        patched.setattr(GrowingArray, "append", grown)
        yield


@pytest.mark.parametrize("code", FAULTS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_at_the_first_look_costs_that_look_alone(tmp_path, monkeypatch, stage, code):
    folder = tmp_path / "fullgrad"
    history, pictures = History(folder), [np.zeros((4, 4, 3), np.uint8)] * 2
    with faulty(monkeypatch, stage, code):
        if stage.startswith("probe"):
            with pytest.raises(OSError, match=os.strerror(code)):
                history.begin({"psi": "absolute"}, Probe(torch.rand(2, 1, 4, 4)), pictures)
        else:
            history.begin({"psi": "absolute"}, Probe(torch.rand(2, 1, 4, 4)), pictures)
        with pytest.raises(OSError, match=os.strerror(code)):
            history.add(look(0), findings(0), None)
    for epoch in (1, 2):
        history.add(look(epoch), findings(epoch), None)
    read = History.read(folder)
    assert [one.epoch for one in read.looks] == [1, 2]
    assert torch.allclose(read.maps(0), findings(1).maps, atol=2**-11)
    assert [(row["look"], row["image"]) for row in read.images()] == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    assert len(read.layers()) == 6
    assert read.probe().images.shape == (2, 1, 4, 4)
    assert len(list((folder / "probe").glob("*.png"))) == 2


@pytest.mark.parametrize("short", [0, 1, 7, 40])
@pytest.mark.parametrize("stage", STAGES[3:])
def test_a_look_that_cannot_be_written_leaves_the_next_one_whole(tmp_path, monkeypatch, stage, short):
    history = written(tmp_path, looks=1)
    with faulty(monkeypatch, stage, errno.ENOSPC, short=short):
        for epoch in (1, 2):
            with pytest.raises(OSError, match="No space"):
                history.add(look(epoch), findings(epoch), None)
    history.add(look(3), findings(3), None)
    read = History.read(tmp_path)
    assert [look.epoch for look in read.looks] == [0, 3]
    assert torch.allclose(read.maps(0), findings(0).maps, atol=2**-11)
    assert torch.allclose(read.maps(1), findings(3).maps, atol=2**-11)
    assert len(read.images()) == 4
    assert len(read.layers()) == 6


def test_a_write_that_ends_early_without_an_error_is_one(tmp_path, monkeypatch):
    """The last room on a disk takes a part of a row, and the system call says how much."""
    history = written(tmp_path, looks=1)
    opened = Path.open

    class Short(io.FileIO):
        def write(self, raw):
            return super().write(raw[:9])

    def short(self, *given, **options):
        return Short(self, "ab") if (self.name, given) == ("images.csv", ("ab",)) else opened(self, *given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", short)
        with pytest.raises(OSError, match=r"No space left on device: '.*images.csv'"):
            history.add(look(1), findings(1), None)
    history.add(look(2), findings(2), None)
    assert [look.epoch for look in History.read(tmp_path).looks] == [0, 2]


@pytest.mark.parametrize("name", ["history.csv", "images.csv", "layers.csv", "maps.npy", "probe.json", "."])
def test_what_is_removed_while_it_runs_is_written_again(tmp_path, name):
    folder = tmp_path / "fullgrad"
    history = written(folder, looks=2)
    (shutil.rmtree if name == "." else Path.unlink)(folder / name)
    history.add(look(2), findings(2), None)
    read = History.read(folder)
    assert read.looks == history.looks == [look(0), look(1), look(2)]
    assert torch.allclose(read.maps(2), findings(2).maps, atol=2**-11)
    assert read.maps(0).isnan().all() == (name in (".", "maps.npy"))


def test_looks_whose_maps_are_lost_keep_their_numbers(tmp_path):
    history = History(tmp_path, [look(0), look(1)])
    history.begin({}, Probe(torch.rand(2, 1, 4, 4)), [])
    history.add(look(2), findings(2), None)
    read = History.read(tmp_path)
    assert read.looks == [look(0), look(1), look(2)]
    assert bool(read.maps(0).isnan().all())
    assert torch.allclose(read.maps(2), findings(2).maps, atol=2**-11)


def test_a_later_format_is_refused(tmp_path):
    written(tmp_path)
    (tmp_path / "probe.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match=r"has format 99.*update"):
        History.read(tmp_path)


def cut_to(share):
    return lambda content: content[: int(len(content) * share)]


DAMAGE = {
    "facts that are a list": ("probe.json", lambda content: b"[1]", "TypeError"),
    "facts cut short": ("probe.json", cut_to(0.5), "JSONDecodeError"),
    "a short row": (
        "history.csv",
        lambda content: b"look,epoch,step\n0,0\n",
        "row 0 of history.csv",
    ),
    "a line that was broken": (
        "history.csv",
        lambda content: content.replace(b"\n1,1,", b"\n1,\r1,"),
        "row 1 of history.csv",
    ),
    "a row with a quote": (
        "images.csv",
        lambda content: content.replace(b"\n1,0,", b'\n1,",'),
        "row 2 of images.csv",
    ),
    "a row that is missing": ("history.csv", lambda content: content.replace(b"\n1,1,", b"\n2,1,"), "look 1 is missing"),
    "another heading": ("history.csv", lambda content: content.replace(b"look", b"lock"), "KeyError: 'look'"),
    "images cut short": ("images.csv", lambda content: content[: content.index(b"\n2,1,") + 1], "has 1 of 2 rows of look 2"),
    "layers of no look": ("layers.csv", lambda content: content.replace(b"\n1,0,", b"\nx,0,"), "invalid literal"),
    "maps cut short": ("maps.npy", cut_to(0.9), "maps of 2 of 3 looks"),
    "maps that are none": ("maps.npy", lambda content: b"", "ValueError"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_and_it_is_said_where(tmp_path, damage):
    name, damaged, reason = DAMAGE[damage]
    written(tmp_path)
    (tmp_path / name).write_bytes(damaged((tmp_path / name).read_bytes()))
    with pytest.raises(ValueError, match=rf"{tmp_path} is damaged: .*{reason}"):
        History.read(tmp_path)


def test_a_damaged_probe_is_refused_alone(tmp_path):
    written(tmp_path)
    (tmp_path / "probe.npz").write_bytes((tmp_path / "probe.npz").read_bytes()[:300])
    with pytest.raises(ValueError, match="is damaged: BadZipFile"):
        History.read(tmp_path).probe()


def test_pictures_of_the_whole_run_read_every_table_once(tmp_path, monkeypatch):
    history, read = written(tmp_path, looks=6), []
    rows = fg_lightning.callbacks.history._rows
    monkeypatch.setattr("fg_lightning.callbacks.history._rows", lambda path: (read.append(path.name), rows(path))[1])
    artist = Artist(
        torch.rand(2, 1, 4, 4), [np.zeros((4, 4, 3), np.uint8)] * 2, torch.tensor([0, 1]), None, ClassNames(["cat", "dog"])
    )
    artist.film_strip(history)
    artist.animation(history)
    bias_terms(history)
    assert read == ["images.csv", "images.csv", "layers.csv"]


# --- of a run


def test_a_run_leaves_all_that_was_found(tmp_path):
    monitor = FullGradMonitor(num_samples=4, strict=True)
    module = Classifier()
    trainer(tmp_path, monitor).fit(module, loader(seed=1), loader(16, seed=2))
    folder = tmp_path / "fullgrad" / "version_0"
    read = History.read(folder)
    assert [(look.epoch, look.step) for look in read.looks] == [(0, 0), (1, 2), (2, 5)]
    assert set(read.looks[1].numbers) == {f"fullgrad/{key}" for key in NUMBERS}
    probe = read.probe()
    assert torch.equal(probe.images, images_and_labels(16, seed=2)[0][[0, 5, 10, 15]])
    terms = full_gradients(module, probe.images, probe.labels)
    rows = read.images(-1)
    assert [float(row["output"]) for row in rows] == pytest.approx(terms.output.tolist(), rel=1e-5)
    assert [float(row["input_term"]) for row in rows] == pytest.approx(terms.input_term.tolist(), rel=1e-4)
    confidence, predicted = module.eval()(probe.images).softmax(1).max(1)
    assert [int(row["prediction"]) for row in rows] == predicted.tolist()
    assert [float(row["confidence"]) for row in rows] == pytest.approx(confidence.tolist(), rel=1e-5)
    shares = {(row["kind"], row["module"]): float(row["share"]) for row in read.layers(-1)}
    total = terms.output.abs().sum()
    for name, term in terms.bias_terms.items():
        assert shares["explicit", name] == pytest.approx(float((terms.output.sign() * term).sum() / total), abs=1e-5)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)  # float32
    by_image = {
        row["module"]: [float(term) for term in row["terms"].split()] for row in read.layers(-1) if row["kind"] == "explicit"
    }
    for name, term in terms.bias_terms.items():
        assert by_image[name] == pytest.approx(term.tolist(), rel=1e-4, abs=1e-5)  # float32, and five digits
    assert [path.name for path in sorted((folder / "probe").iterdir())] == ["000.png", "001.png", "002.png", "003.png"]
    assert imread(folder / "probe" / "000.png").shape[:2] == (8, 8)
    assert imread(folder / "saliency" / "epoch_0002.png").shape[0] > 112
    assert imread(folder / "film_strip.png").shape[0] > 4 * 112
    assert imread(folder / "bias_terms.png").ndim == 3
    assert sorted(read.about()["class_names"] or []) == []
    assert (folder / "history.csv").read_text().splitlines()[0].split(",") == list(COLUMNS["history.csv"])


def fit_on_a_faulty_disk(folder, monkeypatch, stage, code, epochs, **options):
    """A training at whose first looks, of so many epochs, one file cannot be written; its weights, and what was warned of."""
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
    assert [one.epoch for one in read.looks] == [2, 3, 4]
    assert monitor.history.num_unwritten == 2
    assert "3 looks, see" in caplog.text
    assert "2 more could not be written" in caplog.text
    assert read.looks == monitor.history.looks
    assert all(bool(read.maps(index).isfinite().all()) for index in range(3))
    assert len(read.images()) == 12
    assert (monitor.history.folder / "film_strip.png").stat().st_size > 1000


def test_where_nothing_can_ever_be_written_training_goes_on(tmp_path, monkeypatch):
    torch.manual_seed(3)
    monitor, module, said = fit_on_a_faulty_disk(tmp_path, monkeypatch, "probe/000.png", errno.EROFS, 99)
    assert len(said) == 1
    assert not monitor.history.looks
    torch.manual_seed(3)
    _, other, _ = fit_on_a_faulty_disk(tmp_path / "other", monkeypatch, "probe/000.png", errno.EROFS, 0)
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), other.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_really_is(tmp_path, fault):
    """A file system of one megabyte that cannot be written to before the first look, and can after the first epoch."""
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
        assert [one.epoch for one in History.read(folder).looks] == [2, 3]
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


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from networks import Classifier, loader, trainer
from fg_lightning import FullGradMonitor
from fg_lightning.callbacks.history import History

append, count = History._append, 0

def killed(self, name, rows):
    global count
    count += 1
    if count == {calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, name, rows)

History._append = killed
trainer({folder!r}, FullGradMonitor(num_samples=3), max_epochs=5).fit(Classifier(), loader(seed=1), loader(16))
"""


def test_a_killed_process_loses_the_look_in_progress_alone(tmp_path):
    # The tenth of three tables a look is the fourth look's first, when its maps are written already.
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path), calls=10)
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr[-2000:]
    folder = tmp_path / "fullgrad" / "version_0"
    assert len(np.load(folder / "maps.npy")) == 4
    read = History.read(folder)
    assert [look.epoch for look in read.looks] == [0, 1, 2]
    assert all(bool(read.maps(index).isfinite().all()) for index in range(3))
    assert len(read.images()) == 9
