"""Writes files completely or not at all, and removes the temporary files that killed processes leave."""

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
except ImportError:  # Windows has no such locks; `sweep` removes nothing there
    fcntl = None  # type: ignore[assignment]

PREFIX = ".fg_lightning_"
"""Prefix of the names of temporary files. 16 hexadecimal digits follow."""


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside a path. It replaces the file at the path after it is written to disk without an error.

    A reader finds the old file or the new one, never a part. The new file has the permissions of the old one, without those to
    execute; if there was no old file, umask sets them. A device or a pipe, such as /dev/stdout, is written to directly.

    Args:
        path: the file to write. If it is a link, the link stays, and its target is replaced.

    Raises:
        OSError: if there is no room or no permission. The error names the path, and the old file is unchanged.
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
    """Puts the path into an error of the operating system that names no file, or a temporary file beside the path."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or PREFIX in str(error.filename)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file as `replace_file` does, with the same errors."""
    with replace_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON as `write_atomically` does. Keys keep their order."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def sweep(folder: Path, *, deeply: bool = False) -> None:
    """Removes temporary files of `replace_file` from a folder, if no running process holds a lock on them.

    Args:
        folder: the folder. It may be missing.
        deeply: whether to search its subfolders, too, except those named "wandb". Default: False.
    """
    for where, names, files in os.walk(folder):
        names[:] = [name for name in names if name != "wandb"] if deeply else []
        for name in files:
            if name.startswith(PREFIX):
                _remove_if_left(Path(where, name))


def _open_beside(path: Path, mode: int) -> tuple[Path, int]:
    """A new file in the same folder and its handle. The file is locked while the handle is open."""
    while True:
        beside = path.with_name(PREFIX + secrets.token_hex(8))
        handle = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        if fcntl is not None:
            with suppress(OSError):  # some network file systems have no locks; `sweep` removes nothing there
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return beside, handle
        os.close(handle)  # another process removed the file before it was locked


def _remove_if_left(path: Path) -> None:
    if fcntl is None:
        return
    with suppress(OSError):
        handle = os.open(path, os.O_RDWR)  # over NFS, only a writable handle can be locked
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(handle)
