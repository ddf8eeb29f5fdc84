"""The folder of an experiment: its lock, the space on its disk, and the settings that may not change."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dis import get_instructions
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from filelock import FileLock, Timeout

from fg_lightning.atomic_files import sweep, write_atomically, write_json
from fg_lightning.errors import CannotRun

EXPERIMENT_FILE = "experiment.json"
HOLDER_FILE = "running.json"

GROWING = {"methods": "method", "fills": "fill", "checkpoints": "checkpoint"}
"""Settings that may get more entries later, and the word for one entry."""

TEMPORARY_FAULTS = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
"""Error codes of the operating system that may not occur at the next try."""

SPARE_BYTES = 100 * 2**20
"""Space for results and pictures, in addition to the stores."""

CHECKSUM = "checksum"


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Locks a folder for this process until the `with` block or the process ends.

    Raises:
        CannotRun: if another process holds the lock, or the folder cannot be written to.
    """
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ".probe", b"0")
        (folder / ".probe").unlink()
        (folder / ".lock").touch()
        # FileLock would set its own mode; this one follows the umask.
        lock = FileLock(folder / ".lock", mode=stat.S_IMODE((folder / ".lock").stat().st_mode))
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CannotRun(
            f"another process already uses {folder} ({_holder(folder)}): wait for it, stop it, or use another folder"
        ) from error
    except OSError as error:
        raise CannotRun(f"{folder} cannot be written to: {error.strerror}; use another folder with --output") from error
    try:
        sweep(folder, deeply=True)
        write_json(folder / HOLDER_FILE, {"process": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER_FILE).unlink(missing_ok=True)
        lock.release()


@contextmanager
def explain_disk_faults(folder: Path | None = None) -> Iterator[None]:
    """Turns errors of the disk into one sentence.

    Args:
        folder: also covers permissions and temporary errors of files in this folder. None: of no file.

    Raises:
        CannotRun: if the disk is full or read-only, or a file in the folder cannot be accessed.
    """
    try:
        yield
    except OSError as error:
        is_ours = folder is not None and str(error.filename).startswith(f"{folder}{os.sep}")
        if is_ours and error.errno in TEMPORARY_FAULTS:
            raise CannotRun(f"{error.strerror} ({error.filename}): correct that, then start again to continue") from error
        if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        advice = "correct that" if error.errno == errno.EROFS else "make room"
        raise CannotRun(f"{error.strerror}{where}: {advice}, then start again to continue") from error


def check_disk_space(folder: Path, num_bytes: int) -> None:
    """Raises CannotRun if the disk of a folder has less than `num_bytes` and SPARE_BYTES free."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes + SPARE_BYTES:
        raise CannotRun(
            f"the ranks of all methods need {num_bytes / 1e9:.2f} GB in {folder}, but its disk has {free / 1e9:.2f} GB free; "
            "make room, or use fewer methods or another folder with --output"
        )


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER_FILE).read_text())
        return f"process {holder['process']} on {holder['host']}"
    except (OSError, ValueError, KeyError):
        return "its number is unknown"


def digest(raw: bytes) -> str:
    """A checksum of 16 bytes, in hexadecimal."""
    return blake2b(raw, digest_size=16).hexdigest()


def add_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a JSON file, with its checksum."""
    return {**content, CHECKSUM: digest(json.dumps(content, sort_keys=True).encode())}


def verify_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content without its checksum.

    Raises:
        ValueError: if the content was changed.
        KeyError: if it has no checksum.
    """
    rest = {key: value for key, value in content.items() if key != CHECKSUM}
    if content[CHECKSUM] != add_checksum(rest)[CHECKSUM]:
        raise ValueError("its checksum differs: it was changed after it was written")
    return rest


def check_identity(folder: Path, identity: Mapping[str, Any], is_begun: bool = True) -> None:
    """Compares the settings of an experiment with `compare_identity`, then writes them to its folder."""
    write_json(folder / EXPERIMENT_FILE, compare_identity(folder, identity, is_begun))


def compare_identity(folder: Path, identity: Mapping[str, Any], is_begun: bool) -> dict[str, Any]:
    """Compares the settings of an experiment with those in its folder.

    Args:
        folder: folder of the experiment.
        identity: the settings that the results depend on, as JSON, see `ROARConfig.identity`.
        is_begun: whether the folder holds anything that depends on them. If not, the settings in it are ignored.

    Returns:
        The new content of the experiment's file: the settings in it, and the methods, fills and checkpoints that are new.

    Raises:
        CannotRun: if the folder holds another experiment.
    """
    path = folder / EXPERIMENT_FILE
    here: dict[str, Any] = json.loads(json.dumps(identity))
    if not path.exists() or not is_begun:
        return here
    try:
        there = json.loads(path.read_text())
        known = {key: dict(there.get(key, {})) for key in GROWING}
    except (ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise CannotRun(f"{path} is damaged ({error}); use another folder, or remove this one") from error
    pairs = {key: (there.get(key), value) for key, value in here.items() if key not in GROWING}
    for key, word in GROWING.items():
        pairs |= {f"{word} {name}": (known[key].get(name, value), value) for name, value in here.get(key, {}).items()}
    different = [f"{key} {old!r} there, {new!r} here" for key, (old, new) in pairs.items() if old != new]
    if different:
        raise CannotRun(
            f"{folder} holds another experiment: {'; '.join(different)}. Use another folder with --output, or the same settings. "
            "Fractions and seeds may change, and methods, fills and networks may be added"
        )
    return there | {key: known[key] | here[key] for key in GROWING if key in here}


def check_network(folder: Path, network: int, path: Path) -> None:
    """Compares an explained network with its hash in the experiment's file, and writes the hash if there is none.

    Args:
        folder: folder of the experiment.
        network: number of the network.
        path: file of its weights.

    Raises:
        CannotRun: if the weights are not those that the experiment started with.
    """
    about = folder / EXPERIMENT_FILE
    there, here = json.loads(about.read_text()), hash_file(path)
    networks = there.get("networks", {})
    if str(network) not in networks:
        write_json(about, {**there, "networks": {**networks, str(network): here}})
    elif networks[str(network)] != here:
        raise CannotRun(
            f"{path} was changed: its weights are not those that this experiment explains. Restore it from a copy, or use another "
            "folder with --output"
        )


def hash_file(path: Path) -> str:
    """A hash of a checkpoint's bytes. Raises CannotRun if the file cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise CannotRun(f"the checkpoint {path} cannot be read: {error.strerror}") from error


def describe(value: Any) -> Any:
    """A factory, function or setting as JSON, the same in every process.

    A class or function becomes its import path. A lambda, or a function made by another function, has none and becomes a hash, see
    `_hash_function`.
    """
    if isinstance(value, partial):
        # jsonargparse turns a class path into a partial of its own functions, with the class as the last argument.
        function = value.args[-1] if value.func.__module__.startswith("jsonargparse") else value.func
        args = () if function is not value.func else value.args
        return {"calls": describe(function), **({"args": describe(args)} if args else {}), **_describe_items(value.keywords)}
    if _is_plain(value):
        return value
    if isinstance(value, Mapping):
        return _describe_items(value)
    if isinstance(value, (list, tuple)):
        return [*map(describe, value)]
    name = getattr(value, "__qualname__", None)
    if name is None:
        return repr(value) if " at 0x" not in repr(value) else type(value).__qualname__
    has_no_path = isinstance(value, FunctionType) and ("<lambda>" in name or "<locals>" in name)
    return f"{value.__module__}.{name}" + (f" {_hash_function(value)}" if has_no_path else "")


def _describe_items(items: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): describe(item) for key, item in items.items()}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _hash_function(function: FunctionType) -> str:
    """A hash of what a function runs: its code, defaults, the variables that it closes over, and the plain globals that it reads.

    Simpler ways do not work. The name is the same for `lambda: Net(lr=0.1)` and `lambda: Net(lr=0.2)`. The source of a lambda is
    the whole statement around it, is missing in an interpreter, and holds no variables. A pickle (cloudpickle) has line numbers and
    the order of sets in it, which differ between processes.
    """
    codes = [*_codes(function.__code__)]
    runs = [[code.co_code.hex(), _constants(code), code.co_names] for code in codes]
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell.cell_contents is not function]
    names = {step.argval for code in codes for step in get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    plain = {name: function.__globals__.get(name) for name in sorted(names) if _is_plain(function.__globals__.get(name))}
    settings = describe([function.__defaults__, function.__kwdefaults__, cells, plain])
    return hashlib.sha256(json.dumps([runs, settings]).encode()).hexdigest()[:16]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _constants(code: CodeType) -> list[str]:
    """The constants of some code. Sets are sorted: their order differs between processes."""
    constants = (constant for constant in code.co_consts if not isinstance(constant, CodeType))
    return [repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value) for value in constants]


def stores_folder(folder: Path, network: int) -> Path:
    """The folder of an explained network's stores: `stores` for the first network, `stores_1` for the next."""
    return folder / ("stores" if network == 0 else f"stores_{network}")
