"""The folder of an experiment: one run at a time, with room enough."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fg_lightning.atomic_files import sweep, write_atomically, write_json
from fg_lightning.errors import CannotRun

NAME = "experiment.json"
HOLDER = "running.json"

FAULTS = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
"""Of the operating system, which trying again later may get over."""

SPARE = 100 * 2**20
"""Bytes that results and pictures may take beside the stores."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder for this process alone, until it leaves or dies.

    Raises:
        CannotRun: if another process holds it, or it cannot be written to.
    """
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ".probe", b"0")
        (folder / ".probe").unlink()
        (folder / ".lock").touch()
        # The mode that umask gave it: FileLock sets its own otherwise.
        lock = FileLock(folder / ".lock", mode=stat.S_IMODE((folder / ".lock").stat().st_mode))
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CannotRun(f"{folder} is at work already ({_holder(folder)}): wait for it, stop it, or take another folder") from error
    except OSError as error:
        raise CannotRun(f"{folder} cannot be written to: {error.strerror}; take another folder with --output") from error
    try:
        sweep(folder, deeply=True)
        write_json(folder / HOLDER, {"process": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


@contextmanager
def room(folder: Path | None = None) -> Iterator[None]:
    """
    Args:
        folder: whose files may not be out of reach either, by their permissions or a fault of the disk; by default none's.

    Raises:
        CannotRun: if what is in it finds a disk full or not to be written to, or those files out of reach.
    """
    try:
        yield
    except OSError as error:
        is_ours = folder is not None and str(error.filename).startswith(f"{folder}{os.sep}")
        if is_ours and error.errno in FAULTS:
            raise CannotRun(f"{error.strerror} ({error.filename}): mend that, and start again to go on") from error
        if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        what = "mend that" if error.errno == errno.EROFS else "make room"
        raise CannotRun(f"{error.strerror}{where}: {what}, and start again to go on") from error


def check_room(folder: Path, needed: int) -> None:
    """
    Args:
        folder: of the experiment.
        needed: bytes.

    Raises:
        CannotRun: if there are fewer on its disk.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise CannotRun(
            f"the ranks of all methods take {needed / 1e9:.2f} GB in {folder}, but there are {free / 1e9:.2f} GB on its disk; "
            "make room, or take fewer methods or another folder with --output"
        )


def _holder(folder: Path) -> str:
    try:
        found = json.loads((folder / HOLDER).read_text())
        return f"process {found['process']} on {found['host']}"
    except (OSError, ValueError, KeyError):
        return "by another process"
