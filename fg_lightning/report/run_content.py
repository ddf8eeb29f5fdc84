"""The content of a run's page as JSON: constants, and the snapshots, which may grow in number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fg_lightning.history import Run
from fg_lightning.history.records import MAP_NUMBERS, MASK_NUMBERS, NUMBERS, TERMS, ImageRow
from fg_lightning.history.run_reader import RunFiles
from fg_lightning.report.image_encoding import (
    BUDGET,
    Encoding,
    choose_encoding,
    encode_maps,
    encode_outline,
    encode_picture,
    num_columns,
    palette,
    to_base64,
)
from fg_lightning.report.method_maps import MethodMaps, read_methods
from fg_lightning.report.number_curves import FULLGRAD, Axis, round_numbers

Track = Callable[[str, Sequence[Any]], Iterable[Any]]


class RunContent:
    """The content of a run's page.

    Args:
        run: the run.
        encoding: encoding of its maps. Default: the best that fits the budget.
        sprites: maps that are already encoded in base64, by method and snapshot.
        track: see `write_report`.
        num_sharing: number of snapshots that share the budget of a page, if it is more than the run has. Default: 0.

    Attributes:
        snapshots: snapshots of the run, in order.
        methods: maps of each method, FullGrad's first.
        notes: sentences on what could not be read.
        axis: horizontal axis of the curves.
    """

    def __init__(
        self,
        run: Run,
        encoding: Encoding | None = None,
        sprites: dict[tuple[str, int], str] | None = None,
        track: Track = lambda what, items: items,
        num_sharing: int = 0,
    ) -> None:
        self.run = run
        self.methods = read_methods(run)
        self.notes = run.notes
        self.indices = list(run.snapshots)
        self.snapshots = list(run.snapshots.values())
        self.axis = Axis.of(self.snapshots)
        self._sprites = {} if sprites is None else sprites
        self._track = track
        self.encoding = self._choose_encoding(num_sharing) if encoding is None else encoding

    def _choose_encoding(self, num_sharing: int) -> Encoding:
        def encode(key: tuple[MethodMaps, int], encoding: Encoding) -> bytes:
            return _encode(*key, encoding)

        budget = BUDGET * len(self.indices) // max(len(self.indices), num_sharing)
        return choose_encoding([(method, index) for method in self.methods for index in self.indices], encode, budget)

    @property
    def map_size(self) -> tuple[int, int] | None:
        """Height and width of the maps. None if there are none."""
        return next((method.size for method in self.methods if method.size is not None), None)

    def describe_maps(self) -> str:
        """A sentence on the size and the encoding of the maps."""
        return "" if self.map_size is None else self.encoding.describe(*self.map_size)

    # --- constants

    def constants(self) -> dict[str, Any]:
        """Values that are the same for all snapshots."""
        height, width = (1, 1) if self.map_size is None else self.encoding.size(*self.map_size)
        return {
            "columns": num_columns(len(self.run.pictures)),
            "height": height,
            "width": width,
            "methods": [
                {"name": m.method, "palette": palette(is_signed=m.is_signed), "is_signed": m.is_signed} for m in self.methods
            ],
            "numbers": self._list_numbers(),
        }

    def pictures(self) -> list[dict[str, Any]]:
        """The images of the probe, for the template."""
        masks = self._read_masks()
        return [self._picture(image, None if masks is None else masks[image]) for image in range(len(self.run.pictures))]

    def _read_masks(self) -> Tensor | None:
        """Masks of where the network should look, bool [N, 1, *S]. None if there are none, or they cannot be read."""
        try:
            masks = RunFiles(self.run.folder).probe_masks()
        except (OSError, ValueError):
            return None
        return None if masks is None or len(masks) != len(self.run.pictures) else masks

    def _picture(self, image: int, mask: Tensor | None) -> dict[str, Any]:
        picture = self.run.pictures[image]
        label = next((self.run.classes.name_of(row.label) for (_, i), row in self.run.images.items() if i == image), "")
        values = {"number": image, "label": label, "content": "", "width": 1, "height": 1, "outline": ""}
        if picture is not None:
            values |= {"content": to_base64(encode_picture(picture)), "width": picture.width, "height": picture.height}
            values["outline"] = "" if mask is None else to_base64(encode_outline(mask, picture.height, picture.width))
        return values

    def _list_numbers(self) -> list[dict[str, str]]:
        """The columns of the table of numbers: key, name and meaning."""
        keys = dict.fromkeys(f"{FULLGRAD}/{name}" for name in NUMBERS)
        for method in self.methods[1:]:
            known = {name for numbers in method.numbers.values() for name in numbers}
            keys |= dict.fromkeys(f"{method.method}/{name}" for name in MAP_NUMBERS if name in known or name not in MASK_NUMBERS)
        names = [(key, *key.partition("/")[::2]) for key in keys]
        return [
            {
                "key": key,
                "name": name.replace("_", " ") if method == FULLGRAD else f"{method} {name.replace('_', ' ')}",
                "meaning": NUMBERS[name],
            }
            for key, method, name in names
        ]

    def signature(self, count: int) -> str:
        """A digest of a page with the first `count` snapshots. New snapshots do not change it; any other change does."""
        shown = [
            self.constants(),
            [self.encoding.max_side, self.encoding.quality, self.axis.label, len(self.run.pictures)],
            self.run.about,
            [[s.epoch, s.step, sorted(s.numbers.items())] for s in self.snapshots[:count]],
        ]
        return hashlib.sha256(json.dumps(shown, default=str).encode()).hexdigest()[:16]

    # --- the snapshots

    def entries(self, start: int = 0) -> dict[str, list[Any]]:
        """The snapshots from `start` on: their titles and numbers, and the values of each image and each layer."""
        indices = self.indices[start:]
        return {
            "snapshots": [self._entry(i, index) for i, index in enumerate(indices, start)],
            "images": [[self.image(index, i) for i in range(len(self.run.pictures))] for index in indices],
            "layers": [
                [
                    {"name": row.name, "kind": row.kind, "share": round_numbers([row.share], 4)[0]}
                    for row in self.run.layers.get(index, [])
                ]
                for index in indices
            ],
        }

    def _entry(self, place: int, index: int) -> dict[str, Any]:
        snapshot = self.snapshots[place]
        numbers = {f"{m.method}/{name}": v for m in self.methods for name, v in m.numbers.get(index, {}).items()}
        return {
            "title": self.axis.title(snapshot),
            "moment": self.axis.moment(snapshot),
            "epoch": snapshot.epoch,
            "step": snapshot.step,
            "at": self.axis.place(snapshot),
            "flat": self.flat_maps(index),
            "numbers": dict(zip(numbers, round_numbers(list(numbers.values()), 4), strict=True)),
        }

    def flat_maps(self, index: int) -> dict[str, dict[int, str]]:
        """For every method, descriptions of the maps of a snapshot that are zero or constant, by image."""
        return {m.method: flat for m in self.methods if (flat := m.flat_maps(index))}

    def image(self, index: int, image: int) -> dict[str, Any] | None:
        """The label, the prediction and the terms of an image at a snapshot. None if they are unknown."""
        row = self.run.images.get((index, image))
        if row is None:
            return None
        label, prediction, classes = row.label, row.prediction, self.run.classes
        return {
            "label": classes.name_of(label),
            "explained": classes.name_of(row.explained),
            "prediction": "" if prediction is None else classes.answer(prediction, row.confidence),
            "right": is_right(row),
            "terms": round_numbers([getattr(row, term) for term in TERMS]),
        }

    def sprites(self, start: int = 0) -> dict[str, list[str]]:
        """For every method and every snapshot from `start` on, all maps in one picture, in base64. Empty if they are lost."""
        keys = [(method, index) for method in self.methods for index in self.indices[start:]]
        for method, index in self._track("encoding maps", keys):
            self.sprite(method, index)
        return {m.method: [self.sprite(m, index) for index in self.indices[start:]] for m in self.methods}

    def sprite(self, method: MethodMaps, index: int) -> str:
        """All maps of a method at a snapshot in one picture, in base64. Empty if they are lost."""
        key = method.method, index
        if not self._sprites.get(key):  # missing maps may be written later
            self._sprites[key] = to_base64(_encode(method, index, self.encoding))
        return self._sprites[key]

    def layer_terms(self, start: int = 0) -> list[dict[str, Any] | None]:
        """For every snapshot from `start` on, the term of each layer for each image, [layers, N] in 16 bits.

        None if the files do not hold it.
        """
        return [self._terms(index) for index in self.indices[start:]]

    def _terms(self, index: int) -> dict[str, Any] | None:
        rows = self.run.layers.get(index, [])
        if not rows or any(len(row.terms) != len(self.run.pictures) for row in rows):
            return None
        terms = np.array([row.terms for row in rows], dtype=np.float64)
        if not np.isfinite(terms).all():
            return None
        scale = float(np.abs(terms).max()) / 32767 or 1.0
        return {"scale": scale, "content": to_base64((terms / scale).round().astype("<i2").tobytes())}


def is_right(row: ImageRow) -> bool | None:
    """Whether the predicted class is the label. None if that is unknown."""
    if row.correct is not None:
        return bool(row.correct)
    is_class = isinstance(row.label, int) and isinstance(row.prediction, int) and row.confidence is not None
    return row.label == row.prediction if is_class else None  # an earlier version wrote the file


def _encode(method: MethodMaps, index: int, encoding: Encoding) -> bytes:
    """The maps of a snapshot in one picture. Empty if they are lost."""
    maps = method.planes(index)
    return b"" if maps is None else encode_maps(maps, encoding, is_signed=method.is_signed)
