"""What lies under `fullgrad/`, also after a crash."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import fg_lightning.history.history
from fg_lightning import FullGradMonitor, full_gradients
from fg_lightning.history.history import COLUMNS, History
from fg_lightning.recording.output_meaning import ClassNames
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.snapshot import NUMBERS
from fg_lightning.recording.snapshot_images import Artist, bias_terms
from tests import ROOT
from tests.helpers.small_trainings import LIGHTNINGS_OWN, Classifier, images_and_labels, loader, trainer
from tests.helpers.written_snapshots import findings, look, written

pytestmark = LIGHTNINGS_OWN


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
    rows = fg_lightning.history.history._rows
    monkeypatch.setattr("fg_lightning.history.history._rows", lambda path: (read.append(path.name), rows(path))[1])
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


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from tests.helpers.small_trainings import Classifier, loader, trainer
from fg_lightning import FullGradMonitor
from fg_lightning.history.history import History

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
    script = KILLED.format(root=str(ROOT), folder=str(tmp_path), calls=10)
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr[-2000:]
    folder = tmp_path / "fullgrad" / "version_0"
    assert len(np.load(folder / "maps.npy")) == 4
    read = History.read(folder)
    assert [look.epoch for look in read.looks] == [0, 1, 2]
    assert all(bool(read.maps(index).isfinite().all()) for index in range(3))
    assert len(read.images()) == 9
