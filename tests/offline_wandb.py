"""Reads what W&B wrote in offline mode: a log in LevelDB's format whose records are protocol buffers."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def history(folder: Path) -> list[dict[str, Any]]:
    """Every row logged to the only offline run below a folder, by key."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows = []
    for data in _records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                *outer, key = item.nested_key or [item.key]
                place = row
                for name in outer:
                    place = place.setdefault(name, {})
                place[key] = json.loads(item.value_json)
            rows.append(row)
    return rows


def media_folder(folder: Path) -> Path:
    (path,) = folder.glob("wandb/offline-run-*/files")
    return path


def _records(raw: bytes) -> Iterator[bytes]:
    position, parts = HEADER, b""  # the file begins with a header of its own, as long as a record's
    while position + HEADER <= len(raw):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[position : position + HEADER])
        parts += raw[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (FULL, LAST):
            yield parts
            parts = b""
