"""The history: every look of a run, kept on disk as it is made, and read from there. See docs/monitor.md for what lies where."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fg_lightning.callbacks.growing import GrowingArray
from fg_lightning.callbacks.look import NUMBERS, Findings, Layer, Look
from fg_lightning.callbacks.probe import Probe
from fg_lightning.callbacks.table import as_csv, ended_lines, rows_of

FORMAT = 1
"""Of the folder; it rises when a reader of an older one would be misled."""

HISTORY, IMAGES, LAYERS = "history.csv", "images.csv", "layers.csv"
COLUMNS = {
    HISTORY: ("look", "epoch", "step", *NUMBERS),
    IMAGES: (
        *("look", "image", "label", "explained", "prediction", "confidence"),
        *("output", "input_term", "bias_term", "implicit_term", "completeness_error", "map_peak"),
    ),
    LAYERS: ("look", "layer", "module", "kind", "share", "terms"),
}
"""The tables of a folder. `look` counts from 0 and says which entry of `maps.npy` belongs to a row."""


class History:
    """The looks of one run, in order; below a folder, or in memory alone.

    A look is in the history once its row stands in `history.csv`, which is written last, so that a process killed at any moment
    loses no more than the look in progress. Maps stay in memory of the first and the last look only.

    Args:
        folder: made when the first look comes; None to write nothing.

    Attributes:
        looks: the numbers of every look.
        first_maps: the maps of the first look, [N, 1, *S]; None before it.
        last_maps: likewise of the last one.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.looks: list[Look] = []
        self.first_maps: Tensor | None = None
        self.last_maps: Tensor | None = None
        self._is_torn = False  # by a look that could not be written to its end

    @classmethod
    def read(cls, folder: Path) -> History:
        """The history that lies in a folder.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, or a later version of the package wrote it.
        """
        history = cls(folder)
        with _damage_named(folder):
            written = history.about().get("format")
            if written == FORMAT:
                history._take_up()
        if written != FORMAT:
            raise ValueError(f"{folder} has format {written}, this version of fg-lightning reads format {FORMAT}; update it")
        return history

    def _take_up(self) -> None:
        """The looks that stand in the folder."""
        assert self.folder is not None
        for row in _rows(self.folder / HISTORY):
            if int(row["look"]) != len(self.looks):
                raise ValueError(f"look {len(self.looks)} is missing from {HISTORY}")
            numbers = {f"fullgrad/{key}": float(row[key]) for key in NUMBERS if row.get(key)}
            self.looks.append(Look(int(row["epoch"]), int(row["step"]), numbers))
        for name in (IMAGES, LAYERS):
            self._table(name, None)  # raises where rows belong to no look
        if self.looks:
            self.first_maps, self.last_maps = self.maps(0), self.maps(-1)

    @property
    def strip_path(self) -> Path | None:
        """Where the film strip lies once the run has ended."""
        return None if self.folder is None else self.folder / "film_strip.png"

    # --- reading

    def about(self) -> dict[str, Any]:
        """What was looked at and how; see `docs/monitor.md`."""
        return dict(json.loads(((self.folder or Path()) / "probe.json").read_text()))

    def probe(self) -> Probe:
        """The images as the model took them, and the labels that were explained.

        Raises:
            FileNotFoundError: if they are gone.
            ValueError: if their file is damaged.
        """
        assert self.folder is not None
        with _damage_named(self.folder), (self.folder / "probe.npz").open("rb") as file, np.load(file) as arrays:
            labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
            return Probe(torch.from_numpy(arrays["images"]), labels)

    def maps(self, look: int, rows: Sequence[dict[str, str]] | None = None) -> Tensor:
        """The maps of a look, [N, 1, *S], from disk; NaN where they were lost with the folder of an earlier process.

        Args:
            look: its index, from the end if negative.
            rows: `images(look)`, which says how large they are, where it has been read already.

        Raises:
            ValueError: if they are not there: only those of the first and the last look are without a folder.
        """
        look = range(len(self.looks))[look]
        if self.folder is None:
            kept = {0: self.first_maps, len(self.looks) - 1: self.last_maps}
            if kept.get(look) is None:
                raise ValueError("this history is kept in memory alone, where there are the maps of the first and last look")
            return kept[look]  # type: ignore[return-value]
        entries = GrowingArray(self.folder / "maps.npy").read()
        if look >= len(entries):
            raise ValueError(f"maps.npy holds the maps of {len(entries)} of {len(self.looks)} looks")
        scaled = torch.from_numpy(np.array(entries[look])).float()
        rows = self.images(look) if rows is None else rows
        if len(rows) not in (0, len(scaled)):
            raise ValueError(f"{IMAGES} has {len(rows)} of {len(scaled)} rows of look {look}")
        peaks = torch.tensor([float(row["map_peak"]) for row in rows] or [torch.nan])
        return scaled * peaks.reshape(-1, *(1,) * (scaled.ndim - 1))

    def images(self, look: int | None = None) -> list[dict[str, str]]:
        """The rows of `images.csv`, of one look or all."""
        return self._table(IMAGES, look)

    def layers(self, look: int | None = None) -> list[dict[str, str]]:
        """The rows of `layers.csv`, of one look or all."""
        return self._table(LAYERS, look)

    def _table(self, name: str, look: int | None) -> list[dict[str, str]]:
        if self.folder is None:
            return []
        chosen = range(len(self.looks)) if look is None else (range(len(self.looks))[look],)
        return [row for row in _rows(self.folder / name) if int(row["look"]) in chosen]

    # --- writing

    def begin(self, about: dict[str, Any], probe: Probe, pictures: Sequence[npt.NDArray[np.uint8]]) -> None:
        """Makes the folder and says in it what is looked at.

        Args:
            about: becomes `probe.json`.
            probe: becomes `probe.npz`.
            pictures: the images as a person sees them, [H, W, 3] in 0..255; become `probe/`.
        """
        if self.folder is None:
            return
        (self.folder / "probe").mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pictures):
            _save_png(self.folder / "probe" / f"{i:03d}.png", picture)
        arrays = {"images": probe.images, "labels": probe.labels}
        buffer = io.BytesIO()
        stored: dict[str, Any] = {name: _storable(tensor).numpy() for name, tensor in arrays.items() if tensor is not None}
        np.savez(buffer, **stored)
        _write(self.folder / "probe.npz", buffer.getvalue())
        _write(self.folder / "probe.json", json.dumps({"format": FORMAT, **about}, indent=1).encode())

    def add(self, look: Look, findings: Findings, labels: Tensor | None) -> None:
        """Keeps a look.

        Args:
            look: its numbers.
            findings: everything else.
            labels: of the images, as they came with them; shown where they are one number each.
        """
        index = len(self.looks)
        if self.folder is not None:
            if self._is_torn:
                self.cut(index)
            self._is_torn = True
            peaks = findings.maps.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
            scaled = findings.maps / peaks.reshape(-1, *(1,) * (findings.maps.ndim - 1))
            GrowingArray(self.folder / "maps.npy").append(scaled.half().numpy())
            images = zip(*_columns(findings, labels), peaks.tolist(), strict=True)
            self._append(IMAGES, [(index, i, *row) for i, row in enumerate(images)])
            self._append(LAYERS, [(index, i, *_layer_cells(layer)) for i, layer in enumerate(findings.layers)])
            self._append(HISTORY, [(index, look.epoch, look.step, *(look.numbers.get(f"fullgrad/{key}") for key in NUMBERS))])
            self._is_torn = False
        self.looks.append(look)
        self.last_maps = findings.maps
        if self.first_maps is None:
            self.first_maps = findings.maps

    def add_lost(self, looks: Sequence[Look], shape: Sequence[int]) -> None:
        """Takes over the numbers of looks whose maps, [N, 1, *S], are lost."""
        if self.folder is None or not looks:
            return
        for look in looks:
            GrowingArray(self.folder / "maps.npy").append(np.full(shape, np.nan, dtype=np.float16))
            numbers = (look.numbers.get(f"fullgrad/{key}") for key in NUMBERS)
            self._append(HISTORY, [(len(self.looks), look.epoch, look.step, *numbers)])
            self.looks.append(look)
        self.last_maps = self.maps(-1)
        self.first_maps = self.maps(0)

    def cut(self, count: int) -> None:
        """Forgets the looks behind the first so many, and what a killed process left of another."""
        assert self.folder is not None
        self.looks = self.looks[:count]
        for name in COLUMNS:
            rows = [row for row in _rows(self.folder / name) if int(row["look"]) < count]
            _write(self.folder / name, as_csv([COLUMNS[name], *([row.get(key) for key in COLUMNS[name]] for row in rows)]))
        GrowingArray(self.folder / "maps.npy").cut(count)
        self.last_maps = self.maps(-1) if self.looks else None
        self.first_maps = self.maps(0) if self.looks else None

    def move_to(self, folder: Path) -> None:
        """Goes on in a copy of its folder, which stays as it is."""
        assert self.folder is not None
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        self.folder = folder

    def add_sheet(self, look: Look, sheet: npt.NDArray[np.uint8]) -> None:
        """Keeps the overlays of a look as one picture, for runs without a logger that takes images."""
        if self.folder is not None:
            (self.folder / "saliency").mkdir(parents=True, exist_ok=True)
            _save_png(self.folder / "saliency" / f"epoch_{look.epoch:04d}.png", sheet)

    def _append(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Adds rows to a table, by one system call, which a killed process makes or does not."""
        assert self.folder is not None
        path = self.folder / name
        heading = [] if path.exists() else [COLUMNS[name]]
        with path.open("ab", buffering=0) as file:
            file.write(as_csv([*heading, *rows]))


def _columns(findings: Findings, labels: Tensor | None) -> list[Sequence[Any]]:
    """The columns of `images.csv` from label to completeness_error, as far as they are defined."""
    count = len(findings.maps)
    answers = findings.answers
    values = [labels, answers.explained, answers.predicted, answers.confidence, *findings.terms.values()]
    return [[None] * count if value is None or value.ndim != 1 else value.tolist() for value in values]


def _layer_cells(layer: Layer) -> tuple[str, str, float | None, str]:
    """The columns of `layers.csv` from module on; the images' terms in one cell, with spaces between."""
    return layer.module, layer.kind, layer.share, " ".join(f"{term:.5g}" for term in layer.terms)


def _storable(tensor: Tensor) -> Tensor:
    """In a type that numpy has."""
    return tensor.float() if tensor.dtype is torch.bfloat16 else tensor


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table: the last line counts only if it was ended.

    Raises:
        ValueError: if a row is not whole.
    """
    rows = list(rows_of(ended_lines(path)[0])) if path.exists() else []
    for place, row in enumerate(rows):
        if None in row or None in row.values():
            raise ValueError(f"row {place} of {path.name} has other cells than the heading")
    return rows


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """Whatever damaged files raise becomes a ValueError that says where they lie."""
    try:
        yield
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{folder} is damaged: {type(error).__name__}: {error}") from error


def _write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _save_png(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    Image.fromarray(picture).save(path, compress_level=1)  # a third of the time for a tenth more bytes
