"""Reads what W&B wrote in offline mode: a log in LevelDB's format whose records are protocol buffers."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def history(folder: Path) -> list[dict[str, Any]]:
    """Every row logged to the only offline run below a folder, by key."""
    return [_items(record.history.item) for record in records(folder, "history")]


def summary(folder: Path) -> dict[str, Any]:
    """The summary of the only offline run below a folder, as it stood at the end."""
    merged: dict[str, Any] = {}
    for record in records(folder, "summary"):
        merged |= _items(record.summary.update)
    return merged


def tables(folder: Path) -> list[dict[str, Any]]:
    """The tables that went into artifacts, as JSON, in the order in which they were logged."""
    contents = [entry for record in records(folder, "artifact") for entry in record.artifact.manifest.contents]
    return [json.loads(Path(entry.local_path).read_text()) for entry in contents if entry.path.endswith(".table.json")]


def records(folder: Path, kind: str) -> list[Record]:
    """The records of one kind in the log of the only offline run below a folder, which is awaited to its end."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    for _ in range(100):
        found = [Record.FromString(data) for data in _records(path.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            break
        time.sleep(0.1)
    return [record for record in found if record.WhichOneof("record_type") == kind]


def media_folder(folder: Path) -> Path:
    (path,) = folder.glob("wandb/offline-run-*/files")
    return path


def _items(items: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for item in items:
        *outer, key = item.nested_key or [item.key]
        place = row
        for name in outer:
            place = place.setdefault(name, {})
        place[key] = json.loads(item.value_json)
    return row


def _records(raw: bytes) -> Iterator[bytes]:
    position, parts = HEADER, b""  # the file begins with a header of its own, as long as a record's
    while position + HEADER <= len(raw):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[position : position + HEADER])
        if position + HEADER + length > len(raw):
            return  # the run is still writing this record
        parts += raw[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (FULL, LAST):
            yield parts
            parts = b""
