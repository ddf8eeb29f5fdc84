"""What is taken over from a folder that lost a part of its files, cut at every place."""

import csv
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fg_lightning.atomic_files import PREFIX
from fg_lightning.history import History
from fg_lightning.history.lost_snapshots import OtherRun, find_lost_snapshots
from fg_lightning.history.records import COLUMNS
from fg_lightning.metrics.concentration import gini_index
from tests.helpers.written_snapshots import explanation, snapshot

SNAPSHOTS = 4
FILES = ["probe.json", "maps.npy", *COLUMNS]


def true_snapshot(epoch, found):
    one = snapshot(epoch)
    return replace(one, numbers=one.numbers | {"fullgrad/concentration": float(gini_index(found.maps.abs()).mean())})


def written(folder, seed=0):
    history = History(folder)
    about = {"fingerprint": "of the probe", "psi": "absolute"}
    history.begin(about, torch.rand(2, 1, 4, 4), torch.tensor([1, 0]), [np.zeros((4, 4, 3), np.uint8)] * 2)
    for epoch in range(SNAPSHOTS):
        found = explanation(seed + epoch)
        history.add(true_snapshot(epoch, found), found, torch.tensor([1, 0]))
    return history


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return written(tmp_path_factory.mktemp("run") / "fullgrad")


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole.folder, tmp_path / "fullgrad")


def gone_on(folder, snapshots, *, at=None):
    """A run that goes on in the folder, or in another one, with a snapshot more; what is read of it, and what was said."""
    lost, damages = find_lost_snapshots(folder, snapshots, "of the probe")
    history = History(at or folder, snapshots, folder, lost)
    history.begin({"fingerprint": "of the probe"}, torch.rand(2, 1, 4, 4), None, [])
    history.add(snapshot(9), explanation(9), None)
    return History.read(at or folder), damages


def check(read, whole, maps_there):
    """Every snapshot once, its numbers, and the maps that were there."""
    assert read.snapshots == [*whole.snapshots, snapshot(9)]
    for index in range(SNAPSHOTS):
        maps = read.maps(index)
        if index in maps_there:
            relative = maps / maps.flatten(1).amax(1).reshape(-1, 1, 1, 1)
            expected = whole.maps(index)
            assert torch.allclose(relative, expected / expected.flatten(1).amax(1).reshape(-1, 1, 1, 1), atol=1e-3)  # float16
        else:
            assert bool(maps.isnan().all())
    assert torch.allclose(read.maps(SNAPSHOTS), explanation(9).maps, atol=2**-11)
    for name, key in (("images.csv", "image"), ("layers.csv", "layer")):
        path = read.folder / name
        rows = csv.DictReader(path.read_text().splitlines()) if path.exists() else ()
        places = [(int(row["snapshot"]), int(row[key])) for row in rows]
        assert places == sorted(set(places))


def cuts(length):
    """Every place near either end, and many between."""
    return sorted({*range(12), *range(0, length, max(1, length // 60)), *range(max(0, length - 12), length)} & set(range(length)))


@pytest.mark.parametrize("name", FILES)
def test_of_a_file_that_is_cut_anywhere_the_rest_goes_on(copied, whole, name):
    path = copied / name
    content = path.read_bytes()
    first = len(content) - SNAPSHOTS * 2 * 4 * 4 * 2  # of the maps
    originals = {other: (copied / other).read_bytes() for other in FILES}
    for cut in cuts(len(content.rstrip())):
        for other, original in originals.items():
            (copied / other).write_bytes(original)
        path.write_bytes(content[:cut])
        read, damages = gone_on(copied, whole.snapshots)
        there = max(0, cut - first) // 64 if name == "maps.npy" else SNAPSHOTS
        check(read, whole, range(there))
        assert [f"{copied} is damaged: " in damage for damage in damages] == [True], cut


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone(copied, whole, name):
    (copied / name).unlink()
    read, damages = gone_on(copied, whole.snapshots)
    check(read, whole, [] if name == "maps.npy" else range(SNAPSHOTS))
    assert len(damages) == 1


def test_nothing_is_said_of_a_folder_that_is_as_it_was(copied, whole):
    lost, damages = find_lost_snapshots(copied, whole.snapshots, "of the probe")
    assert not lost
    assert not damages
    images = (copied / "images.csv").read_bytes()
    read, _ = gone_on(copied, whole.snapshots)
    check(read, whole, range(SNAPSHOTS))
    assert torch.equal(read.maps(1), whole.maps(1))
    assert (copied / "images.csv").read_bytes().startswith(images)


DAMAGES = {
    "rows are missing": (
        "history.csv",
        lambda raw: raw.replace(b"\n1,1,", b"\nx,1,").replace(b"\n2,2,", b"\n,2,"),
        "lacks snapshots 1, 2",
    ),
    "a row is there twice": ("history.csv", lambda raw: raw + raw.splitlines(keepends=True)[2], ""),
    "rows in another order": ("history.csv", lambda raw: b"".join(np.array(raw.splitlines(keepends=True))[[0, 3, 1, 2, 4]]), ""),
    "the heading is gone": ("history.csv", lambda raw: raw.split(b"\n", 1)[1], "lacks snapshot 0"),
    "another heading": ("images.csv", lambda raw: raw.replace(b"snapshot", b"snapshat", 1), ""),
    "a stray quote": ("images.csv", lambda raw: raw.replace(b"\n1,0,", b'\n1,"0,'), "images.csv lacks rows of snapshot 1"),
    "zeros at the end": ("layers.csv", lambda raw: raw + bytes(100), ""),
    "zeros instead of the end": ("images.csv", lambda raw: raw[:-60] + bytes(60), "images.csv lacks rows of snapshot 3"),
    "no text": ("layers.csv", lambda raw: bytes(range(256)) * 9, "layers.csv lacks rows of snapshots 0, 1, 2, 3"),
    "a snapshot that was torn": ("images.csv", lambda raw: raw + b"4,0,1,1", ""),
    "no facts": ("probe.json", lambda raw: b"[1]", "probe.json cannot be read"),
    "maps without a header": ("maps.npy", lambda raw: bytes(128) + raw[128:], "maps.npy has no header"),
    "maps of another header": ("maps.npy", lambda raw: raw.replace(b"(4, 2, 1", b"(4, 1, 2"), ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_other_kinds(copied, whole, damage):
    name, damaged, said = DAMAGES[damage]
    path = copied / name
    before = path.read_bytes()
    path.write_bytes(damaged(before))
    assert path.read_bytes() != before
    read, damages = gone_on(copied, whole.snapshots)
    check(read, whole, range(SNAPSHOTS))
    assert said in "".join(damages)
    assert bool(damages) == bool(said)


def test_the_earlier_folder_stays_as_it_is(copied, whole, tmp_path):
    (copied / "images.csv").write_bytes((copied / "images.csv").read_bytes()[:-30])
    before = {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()}
    read, _ = gone_on(copied, whole.snapshots, at=tmp_path / "fullgrad_1")
    check(read, whole, range(SNAPSHOTS))
    assert {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()} == before


def test_snapshots_of_another_branch_are_not_taken_for_ones_own(copied, tmp_path):
    """Two runs in one folder: the maps behind rows that are gone are told by what they show, not by their place."""
    other = written(tmp_path / "other", seed=50)
    lost, damages = find_lost_snapshots(copied, other.snapshots, "of the probe")
    assert lost == {0, 1, 2, 3}
    assert not damages
    (copied / "history.csv").unlink()
    lost, _ = find_lost_snapshots(copied, other.snapshots, "of the probe")
    assert lost == {0, 1, 2, 3}


class FolderCopies:
    """Copies of a folder as it is whenever a file of it is opened, renamed or removed: what a kill leaves at that moment."""

    def __init__(self, folder, to):
        self.folder, self.to, self.is_on, self.count = folder, to, False, 0
        sys.addaudithook(self)

    def __call__(self, event, given):
        if self.is_on and event in ("open", "os.rename", "os.remove", "os.mkdir") and str(given[0]).startswith(str(self.folder)):
            self.is_on = False
            shutil.copytree(self.folder, self.to / str(self.count))
            self.count += 1
            self.is_on = True


def test_a_kill_at_any_moment_leaves_what_a_later_process_goes_on_with(tmp_path):
    folder, copies = tmp_path / "run" / "fullgrad", FolderCopies(tmp_path / "run", tmp_path / "killed")
    (tmp_path / "run").mkdir()
    known = {}
    history = History(folder)
    copies.is_on = True
    history.begin({"fingerprint": "of the probe"}, torch.rand(2, 1, 4, 4), None, [np.zeros((4, 4, 3), np.uint8)] * 2)
    for epoch in range(3):
        found = explanation(epoch)
        history.add(true_snapshot(epoch, found), found, torch.tensor([1, 0]))
        known[copies.count] = list(history.snapshots)
    copies.is_on = False
    assert copies.count > 20
    for number in range(copies.count):
        killed = tmp_path / "killed" / str(number) / "fullgrad"
        at_checkpoint = [snapshots for count, snapshots in known.items() if count <= number]
        snapshots = at_checkpoint[-1] if at_checkpoint else []
        if not snapshots:
            continue
        read, damages = gone_on(killed, snapshots)
        assert not damages
        assert read.snapshots == [*snapshots, snapshot(9)]
        assert all(bool(read.maps(index).isfinite().all()) for index in range(len(read.snapshots)))
        assert [len(rows) for rows in read.images_by_snapshot().values()] == [2] * len(read.snapshots)
        assert not list(killed.rglob(f"{PREFIX}*"))


def test_another_run_and_a_later_format_are_told_apart(copied, whole):
    with pytest.raises(OtherRun):
        find_lost_snapshots(copied, whole.snapshots, "of another probe")
    (copied / "probe.json").write_text(json.dumps({"format": 99, "fingerprint": "of the probe"}))
    with pytest.raises(ValueError, match=r"has format 99.*update"):
        find_lost_snapshots(copied, whole.snapshots, "of the probe")
    for name in FILES:
        (copied / name).unlink()
    with pytest.raises(OtherRun):
        find_lost_snapshots(copied, whole.snapshots, "of the probe")
