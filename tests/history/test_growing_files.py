"""An array that grows on disk, whatever happens in between."""

from pathlib import Path

import numpy as np
import pytest

from fg_lightning.history.growing_files import GrowingArray


def entries(count):
    return [np.full((2, 3), i, dtype=np.float16) for i in range(count)]


@pytest.fixture
def array(tmp_path):
    return GrowingArray(tmp_path / "array.npy")


def test_numpy_reads_it_after_every_entry(array):
    for i, entry in enumerate(entries(12)):  # past a length of one digit
        array.append(entry)
        assert np.array_equal(np.load(array.path), np.stack(entries(i + 1)))
    assert len(array) == 12


def test_bytes_that_a_killed_process_left_are_not_read_and_are_overwritten(array):
    for entry in entries(2):
        array.append(entry)
    with array.path.open("ab") as file:
        file.write(b"half an entry")
    assert np.array_equal(np.load(array.path), np.stack(entries(2)))
    array.append(entries(3)[2])
    assert np.array_equal(np.load(array.path), np.stack(entries(3)))


@pytest.mark.parametrize(("missing", "whole"), [(1, 2), (12, 2), (13, 1), (36, 0)])
def test_of_a_file_that_was_cut_short_the_whole_entries_are_read(array, missing, whole):
    for entry in entries(3):
        array.append(entry)
    array.path.write_bytes(array.path.read_bytes()[:-missing])
    assert np.array_equal(array.read(), np.stack(entries(3))[:whole])


@pytest.mark.parametrize("content", [np.float16(1), np.array([None])], ids=["no entries", "objects"])
def test_an_array_of_something_else_is_refused(array, content):
    np.save(array.path, content, allow_pickle=True)
    with pytest.raises(ValueError, match="an array of entries is expected"):
        array.read()


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_it_forgets_what_is_behind(array, count):
    for entry in entries(3):
        array.append(entry)
    array.truncate(count)
    assert len(array) == min(count, 3)
    array.append(entries(6)[5])
    assert np.array_equal(np.load(array.path), np.stack([*entries(3)[:count], entries(6)[5]]))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="takes Linux")
def test_a_full_disk_is_named_with_the_file(array, monkeypatch):
    array.append(entries(1)[0])
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened(Path("/dev/full") if mode == "r+b" else self, mode))
    with pytest.raises(OSError, match=r"No space left on device: '.*array.npy'"):
        array.append(entries(2)[1])
    monkeypatch.undo()
    assert np.array_equal(np.load(array.path), np.stack(entries(1)))


def test_an_entry_of_another_shape_is_refused(array):
    array.append(entries(1)[0])
    with pytest.raises(ValueError, match=r"holds entries float16\[2, 3\], not float16\[3, 3\]"):
        array.append(np.zeros((3, 3), dtype=np.float16))
