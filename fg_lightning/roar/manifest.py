"""Checksums of what an experiment keeps, so that what was changed on disk is noticed where it is used.

What a saliency store says of itself: a JSON file beside its ranks.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fg_lightning.atomic_files import write_json
from fg_lightning.errors import StoreError

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


NAME = "manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class SplitIdentity:
    """
    Attributes:
        length: number of images.
        fingerprint: a hash of what a few of them hold.
        dataset: the class that they came from, for a person to read.
        checksum: of the checksums of their ranks; empty as long as not all are ranked.
    """

    length: int
    fingerprint: str
    dataset: str
    checksum: str = ""


@dataclass(frozen=True)
class Manifest:
    """
    Attributes:
        method: its name, or what `described` says of its factory.
        settings: of the method, by name, as JSON.
        target: the class explained: "predicted" or "label".
        model: class and fingerprint of the network.
        shape: of an image's plane, such as (H, W).
        chunk: so many consecutive images are explained as one batch, always the same ones.
        splits: by name.
        seed: of the ties.
        finished: whether every image is ranked.
        channel_mean: of the training images on their plane, before their transform; in their own units.
        versions: of what made it.
    """

    method: Any
    settings: Mapping[str, Any]
    target: str
    model: str
    shape: tuple[int, ...]
    chunk: int
    splits: Mapping[str, SplitIdentity]
    seed: int = 0
    finished: bool = False
    channel_mean: tuple[float, ...] = ()
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    format: int = FORMAT

    @property
    def pixels(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> npt.DTypeLike:
        """Two bytes a rank where they suffice."""
        return np.uint16 if self.pixels <= 2**16 else np.uint32

    @property
    def row(self) -> int:
        """Bytes of one image."""
        return self.pixels * np.dtype(self.dtype).itemsize

    def difference(self, other: Manifest) -> str:
        """What two stores differ in, as a sentence's end; empty if they are of the same maps."""
        mine, others = _identity(self), _identity(other)
        return "; ".join(f"{key} {mine[key]!r} there, {others[key]!r} here" for key in mine if mine[key] != others[key])

    def write(self, folder: Path) -> None:
        write_json(folder / NAME, sealed(json.loads(json.dumps(asdict(self)))))


def read_manifest(folder: Path) -> Manifest:
    """
    Raises:
        StoreError: if there is none in the folder or it cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        raise StoreError(f"{folder} is no saliency store: there is no {NAME} in it; make one with SaliencyStore.make")
    try:
        found = json.loads(path.read_text())
        if found["format"] != FORMAT:
            raise StoreError(
                f"{path} is of format {found['format']}, but this version reads format {FORMAT}; remove {folder} and make the "
                "store again"
            )
        found = unsealed(found)
        splits = {name: SplitIdentity(**split) for name, split in found["splits"].items()}
        known = {one.name: found[one.name] for one in fields(Manifest)}
        known |= {"splits": splits, "shape": tuple(found["shape"]), "channel_mean": tuple(found["channel_mean"])}
    except StoreError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise StoreError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove {folder} and make the store again"
        ) from error
    return Manifest(**known)


def model_fingerprint(model: nn.Module) -> str:
    """The class of a network and a hash of its parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{type(model).__qualname__} {digest.hexdigest()[:16]}"


def versions() -> dict[str, str]:
    from fg_lightning import __version__

    return {"fg_lightning": __version__, "torch": torch.__version__.split("+")[0], "python": platform.python_version()}


def _identity(manifest: Manifest) -> dict[str, Any]:
    names = "method settings target model shape chunk seed".split()
    splits = {
        f"{name} {what}": getattr(split, what) for name, split in manifest.splits.items() for what in ("length", "fingerprint")
    }
    found = {name: getattr(manifest, name) for name in names} | {"splits": ", ".join(manifest.splits)} | splits
    return dict(json.loads(json.dumps(found)))  # tuples are lists in a manifest that was read
