"""What lies under `fullgrad/`, also after a crash."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from fg_lightning import FullGradMonitor, full_gradients
from fg_lightning.history import History
from fg_lightning.history.class_names import ClassNames
from fg_lightning.history.growing_files import GrowingTable
from fg_lightning.history.records import COLUMNS, MASK_NUMBERS, NUMBERS, LayerTerms
from fg_lightning.history.run_reader import NUMERIC_TASKS
from fg_lightning.recording.snapshot_images import Renderer, plot_bias_terms
from fg_lightning.recording.task import TASKS
from tests import ROOT
from tests.helpers.small_trainings import Classifier, images_and_labels, loader, trainer
from tests.helpers.written_snapshots import explanation, snapshot, written


def test_what_was_written_is_read_back(tmp_path):
    history = written(tmp_path)
    read = History.read(tmp_path)
    assert read.snapshots == history.snapshots
    assert read.about() == {"format": 1, "psi": "absolute"}
    assert torch.equal(read.probe()[1], torch.tensor([1, 0]))
    for index in range(3):
        # float16 keeps 11 bits of what is scaled to 1
        assert torch.allclose(read.maps(index), explanation(index).maps, atol=2**-11)
    assert torch.equal(read.maps(-1), read.maps(2))
    row = read.images(1)[0]
    assert (row.label, row.explained, row.prediction, row.confidence) == (1, 1, 1, 0.75)
    assert row.output == explanation(1).terms["output"][0].item()
    assert [(layer.module, layer.kind, layer.share) for layer in read.layers(2)] == [
        ("", "input", 0.5),
        ("head.0", "explicit", 0.25),
        ("act", "implicit", 0.25),
    ]


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_maps_of_any_magnitude_keep_it(tmp_path, scale):
    """float16 ends at 65504, and at 6e-8; the sum of a map's terms and channels does not."""
    history = written(tmp_path, num_snapshots=1, scale=scale)
    assert torch.allclose(history.maps(0), explanation(0, scale=scale).maps, atol=scale * 2**-11, rtol=0)


def test_maps_stay_in_memory_of_the_first_and_the_last_snapshot_alone(tmp_path):
    history = written(tmp_path, num_snapshots=20)
    kept = [value for value in vars(history).values() if isinstance(value, torch.Tensor)]
    assert len(kept) == 2
    assert not any(isinstance(value, torch.Tensor) for one in history.snapshots for value in vars(one).values())


def test_without_a_folder_nothing_is_written_and_the_ends_are_known(tmp_path, monkeypatch):
    history = written(None, num_snapshots=3)
    monkeypatch.chdir(tmp_path)
    for name in ("images.csv", "layers.csv"):  # the user's own
        (tmp_path / name).write_text("file,width\na.png,3\n")
    assert history.images_by_snapshot() == history.layers_by_snapshot() == {}
    assert torch.equal(history.maps(0), explanation(0).maps)
    assert torch.equal(history.maps(-1), explanation(2).maps)
    with pytest.raises(ValueError, match="only in memory"):
        history.maps(1)


def test_it_forgets_the_snapshots_behind_a_checkpoint(tmp_path):
    history = History(tmp_path, written(tmp_path, num_snapshots=5).snapshots[:2], tmp_path)
    history.add(snapshot(7), explanation(7), None)
    read = History.read(tmp_path)
    assert [one.epoch for one in read.snapshots] == [0, 1, 7]
    assert torch.allclose(read.maps(2), explanation(7).maps, atol=2**-11)
    assert {index: len(rows) for index, rows in read.images_by_snapshot().items()} == {0: 2, 1: 2, 2: 2}
    assert {index: len(rows) for index, rows in read.layers_by_snapshot().items()} == {0: 3, 1: 3, 2: 3}


@pytest.mark.parametrize("until", ["maps.npy", "images.csv", "layers.csv"])
def test_a_snapshot_that_was_cut_short_is_not_in_the_history(tmp_path, until):
    """Everything of a snapshot up to one file, as a killed process leaves it: `history.csv` comes last."""
    written(tmp_path / "whole", num_snapshots=3)
    written(tmp_path / "short", num_snapshots=2)
    for name in ["maps.npy", "images.csv", "layers.csv"]:
        (tmp_path / "short" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
        if name == until:
            break
    read = History.read(tmp_path / "short")
    assert len(read.snapshots) == 2
    assert set(read.images_by_snapshot()) == {0, 1}
    read.add(snapshot(9), explanation(9), None)
    assert torch.allclose(History.read(tmp_path / "short").maps(2), explanation(9).maps, atol=2**-11)
    assert len(History.read(tmp_path / "short").layers(2)) == 3


def test_a_row_without_its_end_does_not_count(tmp_path):
    written(tmp_path, num_snapshots=3)
    path = tmp_path / "history.csv"
    path.write_bytes(path.read_bytes()[:-5])
    assert len(History.read(tmp_path).snapshots) == 2


def test_snapshots_whose_maps_are_lost_keep_their_numbers(tmp_path):
    history = History(tmp_path, [snapshot(0), snapshot(1)])
    history.begin({}, torch.rand(2, 1, 4, 4), None, [])
    history.add(snapshot(2), explanation(2), None)
    read = History.read(tmp_path)
    assert read.snapshots == [snapshot(0), snapshot(1), snapshot(2)]
    assert bool(read.maps(0).isnan().all())
    assert torch.allclose(read.maps(2), explanation(2).maps, atol=2**-11)


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
        lambda content: b"snapshot,epoch,step\n0,0\n",
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
    "a row that is missing": ("history.csv", lambda content: content.replace(b"\n1,1,", b"\n2,1,"), "snapshot 1 is missing"),
    "another heading": ("history.csv", lambda content: content.replace(b"snapshot", b"snapshat"), "KeyError: 'snapshot'"),
    "images cut short": ("images.csv", lambda content: content[: content.index(b"\n2,1,") + 1], "has 1 of 2 rows of snapshot 2"),
    "layers of no snapshot": ("layers.csv", lambda content: content.replace(b"\n1,0,", b"\nx,0,"), "invalid literal"),
    "maps cut short": ("maps.npy", cut_to(0.9), "maps of 2 of 3 snapshots"),
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
    history, read = written(tmp_path, num_snapshots=6), []
    read_table = GrowingTable.read
    monkeypatch.setattr(GrowingTable, "read", lambda self, *given: (read.append(self.path.name), read_table(self, *given))[1])
    renderer = Renderer(
        torch.rand(2, 1, 4, 4), [np.zeros((4, 4, 3), np.uint8)] * 2, torch.tensor([0, 1]), None, ClassNames(["cat", "dog"])
    )
    renderer.film_strip(history)
    renderer.animation(history)
    plot_bias_terms(history)
    assert read == ["images.csv", "images.csv", "layers.csv"]


def test_a_module_whose_name_has_several_lines_is_read_back(tmp_path):
    history = written(tmp_path, num_snapshots=1)
    layers = [LayerTerms("", "input", 0.5), LayerTerms('a\r\nb,"', "explicit", 0.5)]
    history.add(snapshot(1), replace(explanation(1), layers=layers), None)
    assert [layer.module for layer in History.read(tmp_path).layers(1)] == ["", 'a b,"']


def test_the_tasks_whose_integers_are_numbers_are_known_to_the_reader():
    """It reads their names from `probe.json` and lies below the tasks."""
    assert set(NUMERIC_TASKS) == {name for name, task in TASKS.items() if not task.has_classes} | {"Chosen"}


# --- of a run


def test_a_run_leaves_all_that_was_found(tmp_path):
    monitor = FullGradMonitor(num_samples=4, strict=True)
    module = Classifier()
    trainer(tmp_path, monitor).fit(module, loader(seed=1), loader(16, seed=2))
    folder = tmp_path / "fullgrad" / "version_0"
    read = History.read(folder)
    assert [(one.epoch, one.step) for one in read.snapshots] == [(0, 0), (1, 2), (2, 5)]
    assert set(read.snapshots[1].numbers) == {f"fullgrad/{key}" for key in NUMBERS if key not in MASK_NUMBERS}
    images, labels = read.probe()
    assert torch.equal(images, images_and_labels(16, seed=2)[0][[3, 10, 11, 8]])
    terms = full_gradients(module, images, labels)
    rows = read.images(-1)
    assert [row.output for row in rows] == pytest.approx(terms.output.tolist(), rel=1e-5)
    assert [row.input_term for row in rows] == pytest.approx(terms.input_term.tolist(), rel=1e-4)
    confidence, predicted = module.eval()(images).softmax(1).max(1)
    assert [row.prediction for row in rows] == predicted.tolist()
    assert [row.confidence for row in rows] == pytest.approx(confidence.tolist(), rel=1e-5)
    shares = {(layer.kind, layer.module): layer.share for layer in read.layers(-1)}
    total = terms.output.abs().sum()
    for name, term in terms.bias_terms.items():
        assert shares["explicit", name] == pytest.approx(float((terms.output.sign() * term).sum() / total), abs=1e-5)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)  # float32
    by_image = {layer.module: list(layer.terms) for layer in read.layers(-1) if layer.kind == "explicit"}
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
from fg_lightning.history.growing_files import GrowingTable

append, count = GrowingTable.append, 0

def killed(self, rows):
    global count
    count += 1
    if count == {calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, rows)

GrowingTable.append = killed
trainer({folder!r}, FullGradMonitor(num_samples=3), max_epochs=5).fit(Classifier(), loader(seed=1), loader(16))
"""


@pytest.mark.slow
def test_a_killed_process_loses_the_snapshot_in_progress_alone(tmp_path):
    # The tenth of three tables a snapshot is the fourth snapshot's first, when its maps are written already.
    script = KILLED.format(root=str(ROOT), folder=str(tmp_path), calls=10)
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr[-2000:]
    folder = tmp_path / "fullgrad" / "version_0"
    assert len(np.load(folder / "maps.npy")) == 4
    read = History.read(folder)
    assert [one.epoch for one in read.snapshots] == [0, 1, 2]
    assert all(bool(read.maps(index).isfinite().all()) for index in range(3))
    assert {index: len(rows) for index, rows in read.images_by_snapshot().items()} == {0: 3, 1: 3, 2: 3}
