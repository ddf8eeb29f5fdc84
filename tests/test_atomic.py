"""Files that are there whole or not at all; what a kill, a full disk and umask do to them."""

import errno
import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager

import pytest

from fg_lightning import atomic_files as atomic
from fg_lightning.atomic_files import PREFIX, replace_file, sweep, write_atomically, write_json


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_umask_holds(tmp_path, mask, mode):
    with umask(mask):
        write_atomically(tmp_path / "a", "text")
        write_json(tmp_path / "b", {"key": 1})
    assert (tmp_path / "a").read_text() == "text"
    assert mode_of(tmp_path / "a") == mode_of(tmp_path / "b") == mode
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_the_user_closed_to_others_stays_closed(tmp_path):
    (tmp_path / "a").touch(mode=0o600)
    with umask(0o022):
        write_atomically(tmp_path / "a", "text")
    assert mode_of(tmp_path / "a") == 0o600


def test_what_was_there_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with replace_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), OSError(errno.ENOSPC, "No space left on device")])
def test_whatever_is_raised_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")

    def write_half():
        with replace_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a", "old")]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_names_the_file_that_was_to_be_written(tmp_path, monkeypatch, call):
    def full(given, *more):
        raise OSError(errno.ENOSPC, "No space left on device", *([] if call == "fsync" else [str(given)]))

    monkeypatch.setattr(atomic.os, call, full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/a'"):
        write_atomically(tmp_path / "a", b"text")
    assert not list(tmp_path.iterdir())


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_device_is_written_to_and_stays_one(tmp_path):
    write_atomically(tmp_path / "a", "")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_name_as_long_as_names_can_be(tmp_path):
    write_atomically(tmp_path / ("n" * 255), "text")
    assert (tmp_path / ("n" * 255)).read_text() == "text"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_is_protected_is_not_replaced(tmp_path):
    (tmp_path / "a").touch(mode=0o444)
    with pytest.raises(PermissionError):
        write_atomically(tmp_path / "a", "text")


def test_the_leftovers_of_the_dead_are_swept_up_and_those_of_the_living_stay(tmp_path):
    deep = tmp_path / "deep"
    logged = tmp_path / "wandb"
    for folder in (tmp_path, deep, logged):
        folder.mkdir(exist_ok=True)
        (folder / f"{PREFIX}0123456789abcdef").touch()
        (folder / "of the user").touch()
    with replace_file(deep / "a") as file:
        file.write(b"text")
        sweep(tmp_path, deeply=True)
    assert (deep / "a").read_text() == "text"
    assert sorted(path.name for path in deep.iterdir()) == ["a", "of the user"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "of the user", "wandb"]
    assert len(list(logged.iterdir())) == 2
    sweep(tmp_path / "missing")


def test_not_deeply_the_folder_alone_is_swept(tmp_path):
    (tmp_path / "deep").mkdir()
    for folder in (tmp_path, tmp_path / "deep"):
        (folder / f"{PREFIX}0123456789abcdef").touch()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert len(list((tmp_path / "deep").iterdir())) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from fg_lightning.atomic_files import replace_file
with replace_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_kill_leaves_the_old_file_and_one_to_sweep_up(tmp_path):
    (tmp_path / "a").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    sweep(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]
