"""A saliency store whose files were lost, cut or changed: what is noticed, and what is made again."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fg_lightning.atomic_files import PREFIX
from fg_lightning.roar import ROARDataModule, SaliencyStore, StoreError
from fg_lightning.roar.saliency_store_files import StoreWriter
from tests.helpers.tiny_squares import SIDE, Data


def copy_of(store, tmp_path):
    return Path(shutil.copytree(store.path, tmp_path / "copy"))


def test_no_store_missing_truncated_and_damaged_are_told_apart(store, tmp_path):
    with pytest.raises(StoreError, match=r"is not a saliency store: it has no manifest"):
        SaliencyStore(tmp_path)
    folder = copy_of(store, tmp_path)
    path = folder / "val.ranks"
    raw = path.read_bytes()
    path.write_bytes(raw[:-2])
    with pytest.raises(StoreError, match=r"val.ranks has 1,278 bytes, but 10 images of 8 x 8 take 1,280"):
        SaliencyStore(folder)
    path.write_bytes(bytes(len(raw)))
    with pytest.raises(StoreError, match=r"damaged: the ranks of image 0 were changed after .*. Copy it again, or call"):
        SaliencyStore(folder)
    path.unlink()
    with pytest.raises(StoreError, match=r"val.ranks is missing"):
        SaliencyStore(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"manifest.json is damaged"):
        SaliencyStore(folder)


def test_a_store_of_another_format_is_refused(store, tmp_path):
    folder = copy_of(store, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(StoreError, match=r"is of format 99.*remove .*copy and make the store again"):
        SaliencyStore(folder)


@pytest.mark.parametrize(
    "change", [{"channel_mean": [3.0]}, {"seed": 1}, {"shape": [4, 16]}, {"checksum": "0"}, {"checksum": None}]
)
def test_a_manifest_that_was_changed_is_refused(store, tmp_path, change):
    folder = copy_of(store, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text()) | change
    (folder / "manifest.json").write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))
    with pytest.raises(StoreError, match=r"manifest.json is damaged \(.*checksum.*remove .* and make the store again"):
        SaliencyStore(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"text"', "null", '{"format": 4}', "\xff"])
def test_a_manifest_that_is_none_is_one_sentence(store, tmp_path, content):
    folder = copy_of(store, tmp_path)
    (folder / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        SaliencyStore(folder)


def flip(path, byte):
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1
    path.write_bytes(raw)


def test_ranks_that_were_changed_are_noticed_where_they_are_read(store, tmp_path):
    folder = copy_of(store, tmp_path)
    row = SIDE * SIDE * 2
    raw = bytearray((folder / "train.ranks").read_bytes())
    raw[3 * row : 4 * row], raw[5 * row : 6 * row] = raw[5 * row : 6 * row], raw[3 * row : 4 * row]  # orders of pixels, of others
    (folder / "train.ranks").write_bytes(raw)
    changed = SaliencyStore(folder)
    assert np.array_equal(changed.read("train", [0, 4, -1]), store.ranks("train")[[0, 4, -1]])
    for index in (3, 5):
        with pytest.raises(StoreError, match=rf"train.ranks is damaged: the ranks of image {index} were changed after"):
            changed.read("train", [0, index])
    data = ROARDataModule(Data(), changed, 0.5)
    data.setup("fit")
    with pytest.raises(StoreError, match="the ranks of image 3 were changed after they were written"):
        list(data.train_dataloader())
    with pytest.raises(StoreError, match="the ranks of image 3 were changed after they were written"):
        data.masks("train", 10)


def test_checksums_that_were_changed_are_noticed_at_once(store, tmp_path):
    folder = copy_of(store, tmp_path)
    flip(folder / "val.checksums", 20)
    with pytest.raises(StoreError, match=r"val.checksums is missing or damaged\. Copy it again, or call SaliencyStore.make"):
        SaliencyStore(folder)


DAMAGES = {
    "one bit": lambda folder: flip(folder / "train.ranks", 1000),
    "a bit of the test images": lambda folder: flip(folder / "test.ranks", 5),
    "zeros": lambda folder: (folder / "val.ranks").write_bytes(bytes((folder / "val.ranks").stat().st_size)),
    "cut": lambda folder: os.truncate(folder / "train.ranks", 999),
    "gone": lambda folder: (folder / "test.ranks").unlink(),
    "another's": lambda folder: shutil.copy(folder / "val.ranks", folder / "test.ranks"),
    "checksums": lambda folder: flip(folder / "val.checksums", 3),
    "no checksums": lambda folder: (folder / "train.checksums").unlink(),
    "checksums cut": lambda folder: os.truncate(folder / "train.checksums", 17),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again_and_nothing_else(store, net, tmp_path, monkeypatch, damage):
    folder = copy_of(store, tmp_path)
    DAMAGES[damage](folder)
    made, real = [], StoreWriter.write
    monkeypatch.setattr(StoreWriter, "write", lambda self, *given: (made.append(given[:2]), real(self, *given)))
    with pytest.warns(UserWarning, match="was changed after it was written, as its checksums show: .* are made again"):
        again = SaliencyStore.make(folder, net, Data(), "gradient", batch_size=7)
    assert again.manifest == store.manifest
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {p.name: p.read_bytes() for p in store.path.iterdir()}
    assert len(made) == (1 if "bit" in damage else len(made))
    assert 0 < len(made) < 11
    made.clear()
    SaliencyStore.make(folder, net, Data(), "gradient", batch_size=7)
    assert not made


def test_bytes_behind_the_ranks_are_cut_off(store, net, tmp_path):
    folder = copy_of(store, tmp_path)
    os.truncate(folder / "train.ranks", 99_999)
    with pytest.raises(StoreError, match="truncated, or from another store"):
        SaliencyStore(folder)
    SaliencyStore.make(folder, net, Data(), "gradient", batch_size=7)
    assert (folder / "train.ranks").read_bytes() == (store.path / "train.ranks").read_bytes()


def test_what_a_killed_process_left_is_swept_up(store, net, tmp_path):
    folder = copy_of(store, tmp_path)
    for name in ("train.done", "val.sums", f"{PREFIX}0"):
        (folder / name).touch()
    SaliencyStore.make(folder, net, Data(), "gradient", batch_size=7)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in store.path.iterdir())


def test_what_was_changed_in_a_draft_is_made_again(store, net, tmp_path, monkeypatch):
    written, real = [], StoreWriter.write

    def write(self, *given):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(given[:2])
        real(self, *given)

    monkeypatch.setattr(StoreWriter, "write", write)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        SaliencyStore.make(tmp_path / "s", net, Data(), "gradient", batch_size=7)
    flip(tmp_path / "s" / f"{written[1][0]}.ranks", written[1][1] * 7 * SIDE * SIDE * 2)
    monkeypatch.setattr(StoreWriter, "write", lambda self, *given: (written.append(given[:2]), real(self, *given)))
    again = SaliencyStore.make(tmp_path / "s", net, Data(), "gradient", batch_size=7)
    assert sorted(written) == sorted([*{*written}, written[1]])
    assert (again.path / "train.ranks").read_bytes() == (store.path / "train.ranks").read_bytes()


@pytest.mark.parametrize("cut", [0, 1, 16, 30, 40])
def test_sums_that_were_cut_are_not_taken_for_a_mean(store, tmp_path, cut):
    draft = StoreWriter(tmp_path, replace(store.manifest, finished=False, channel_mean=()))
    draft.begin()
    for split, identity in store.manifest.splits.items():
        for number in range(-(-identity.length // 7)):
            draft.write(split, number, store.ranks(split)[number * 7 : number * 7 + 7], np.array([5.0, 6.0]))
    os.truncate(tmp_path / "train.sums", cut)
    with pytest.raises(StoreError, match=r"train.sums is damaged; remove .* and make the store again"):
        draft.finish()
