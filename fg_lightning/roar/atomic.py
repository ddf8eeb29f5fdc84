"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file beside its place and moves it there, so that whoever looks sees the old one or the new one, and it is on disk.

    Raises:
        OSError: if there is no room or no permission; what was there before is still there.
    """
    raw = content.encode() if isinstance(content, str) else content
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """As `write_atomically`, with keys in the order in which they stand."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")
