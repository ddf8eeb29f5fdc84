"""Files that are written whole or not at all, and the removal of what killed processes leave of them."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no such locks, and nothing is swept up there
    fcntl = None  # type: ignore[assignment]

PREFIX = ".fg_lightning_"
"""The names of files that are being written begin with it. 16 hexadecimal digits follow."""


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file beside a path. It replaces the path's file, on disk, when it is written to its end.

    A reader finds the old file or the new one. The new one has the permissions that umask and an old file allow. A device or a
    pipe, such as /dev/stdout, is written to directly.

    Args:
        path: of the file. A link stays, and the file that it leads to is replaced.

    Raises:
        OSError: if there is no room or no permission. It names the path, and the old file is still there.
    """
    path = Path(os.path.realpath(path))
    with name_file_in_errors(path):
        old = path.stat() if path.exists() else None
        if old is not None and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        if old is not None and not stat.S_ISREG(old.st_mode):
            with path.open("wb") as file:
                yield file
            return
        beside, handle = _open_beside(path, 0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o666)
        try:
            with os.fdopen(handle, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if fcntl is not None:
                    os.replace(beside, path)  # while it is locked, so that no process sweeps it up
            if fcntl is None:
                os.replace(beside, path)  # Windows moves no open file
        except BaseException:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Makes an error of the operating system name the path, if it names no file or one beside the path."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or PREFIX in str(error.filename)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file as `replace_file` does, and raises what it raises."""
    with replace_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON as `write_atomically` does. Keys keep their order."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def sweep(folder: Path, *, deeply: bool = False) -> None:
    """Removes what killed processes left of `replace_file` in a folder: files with its names that no living process holds.

    Args:
        folder: may be missing.
        deeply: also in the folders below it, except those of Weights & Biases.
    """
    for where, names, files in os.walk(folder):
        names[:] = [name for name in names if name != "wandb"] if deeply else []
        for name in files:
            if name.startswith(PREFIX):
                _remove_if_left(Path(where, name))


def _open_beside(path: Path, mode: int) -> tuple[Path, int]:
    """A new file in the same folder, and its handle, which is locked as long as it is open."""
    while True:
        beside = path.with_name(PREFIX + secrets.token_hex(8))
        handle = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        if fcntl is not None:
            with suppress(OSError):  # some network file systems have no locks; nothing is swept up there
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return beside, handle
        os.close(handle)  # it was swept up before it was locked


def _remove_if_left(path: Path) -> None:
    if fcntl is None:
        return
    with suppress(OSError):
        handle = os.open(path, os.O_RDWR)  # over NFS a lock takes a handle that may write
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(handle)
