"""Checksums of what an experiment keeps, so that what was changed on disk is noticed where it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

SIZE = 8
"""Bytes of the checksum of one image's ranks."""

KEY = "checksum"


def checksums_of(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Of ranks [N, *S] one number for every image, [N]."""
    raw = b"".join(blake2b(row.tobytes(), digest_size=SIZE).digest() for row in rows)
    return np.frombuffer(raw, "<u8")


def digest_of(raw: bytes) -> str:
    return blake2b(raw, digest_size=16).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON holds, with its checksum."""
    return {**content, KEY: digest_of(json.dumps(content, sort_keys=True).encode())}


def unsealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """What was sealed.

    Raises:
        ValueError: if it is not what it was.
        KeyError: if it has no checksum.
    """
    rest = {key: value for key, value in content.items() if key != KEY}
    if content[KEY] != sealed(rest)[KEY]:
        raise ValueError("its checksum differs: it was changed after it was written")
    return rest
