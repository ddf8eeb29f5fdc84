"""The history: every look of a run, kept on disk as it is made, and read from there. See docs/monitor.md for what lies where."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fg_lightning.atomic_files import PREFIX, file_named, replacing, sweep, write_atomically, write_json
from fg_lightning.history.csv_table import as_csv, ended_lines, rows_of, sound_rows
from fg_lightning.history.growing_array import GrowingArray
from fg_lightning.history.run_folder import with_siblings
from fg_lightning.metrics.concentration import gini_index
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.snapshot import NUMBERS, Findings, Layer, Look

FORMAT = 1
"""Of the folder; it rises when a reader of an older one would be misled."""

HISTORY, IMAGES, LAYERS, MAPS = "history.csv", "images.csv", "layers.csv", "maps.npy"
COLUMNS = {
    HISTORY: ("look", "epoch", "step", *NUMBERS),
    IMAGES: (
        *("look", "image", "label", "explained", "prediction", "confidence"),
        *("output", "input_term", "bias_term", "implicit_term", "completeness_error", "map_peak"),
    ),
    LAYERS: ("look", "layer", "module", "kind", "share", "terms"),
}
"""The tables of a folder. `look` counts from 0 and says which entry of `maps.npy` belongs to a row."""


AGREEMENT = 1e-3
"""By how much the concentration of maps may differ from a look's own, since they are kept as float16."""


class History:
    """The looks of one run, in order; below a folder, or in memory alone.

    A look is in the history once its row stands in `history.csv`, which is written last, so that a process killed at any moment
    loses no more than the look in progress. Where a look cannot be written, the folder is mended before the next one: it holds
    again what the looks before left, or is begun anew. Maps stay in memory of the first and the last look only.

    Args:
        folder: made when the first look comes; None to write nothing.
        looks: the numbers of earlier looks, whose findings lie in `earlier`.
        earlier: that folder, which stays as it is unless it is the same; None if it is gone.
        lost: those of the earlier looks whose findings do not lie there.

    Attributes:
        looks: the numbers of every look.
        first_maps: the maps of the first look, [N, 1, *S]; None before it, and where they are lost.
        last_maps: likewise of the last one.
        num_unwritten: how many looks could not be written, and are not in it.
    """

    def __init__(
        self, folder: Path | None, looks: Sequence[Look] = (), earlier: Path | None = None, lost: Set[int] = frozenset()
    ) -> None:
        self.folder = folder
        self.looks = list(looks)
        self.first_maps: Tensor | None = None
        self.last_maps: Tensor | None = None
        self.num_unwritten = 0
        self._earlier = earlier
        self._lost = set(range(len(self.looks))) if earlier is None else set(lost)
        self._beginning: tuple[dict[str, Any], Probe, Sequence[npt.NDArray[np.uint8]]] | None = None
        self._left: dict[str, int] | None = None  # how long the files are that hold all looks and nothing else
        if self.looks:
            self.first_maps, self.last_maps = self._maps_left(0), self._maps_left(len(self.looks) - 1)

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
    def lies_in(self) -> Path | None:
        """The folder that the looks lie in: an earlier run's before the first look of one that goes on from it."""
        return self.folder if self._earlier is None else self._earlier

    @property
    def strip_path(self) -> Path | None:
        """Where the film strip lies once the run has ended."""
        return None if self.folder is None else self.folder / "film_strip.png"

    # --- reading

    def about(self) -> dict[str, Any]:
        """What was looked at and how; see `docs/monitor.md`."""
        return dict(json.loads(((self.lies_in or Path()) / "probe.json").read_text()))

    def probe(self) -> Probe:
        """The images as the model took them, and the labels that were explained.

        Raises:
            FileNotFoundError: if they are gone.
            ValueError: if their file is damaged.
        """
        folder = self.lies_in
        assert folder is not None
        with _damage_named(folder), (folder / "probe.npz").open("rb") as file, np.load(file) as arrays:
            labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
            return Probe(torch.from_numpy(arrays["images"]), labels)

    def maps(self, look: int, rows: Sequence[dict[str, str]] | None = None) -> Tensor:
        """The maps of a look, [N, 1, *S], from disk; NaN where they were lost with the folder of an earlier process.

        Where the look's rows in `images.csv` were lost, each map's largest magnitude is 1.

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
        array = GrowingArray((self.lies_in or self.folder) / MAPS)
        if look in self._lost:
            raise ValueError(f"the maps of look {look} are lost")
        if look >= len(array):
            raise ValueError(f"{MAPS} holds the maps of {len(array)} of {len(self.looks)} looks")
        scaled = torch.from_numpy(array.entry(look)).float()
        rows = self.images(look) if rows is None else rows
        if len(rows) not in (0, len(scaled)):
            raise ValueError(f"{IMAGES} has {len(rows)} of {len(scaled)} rows of look {look}")
        peaks = torch.tensor([float(row["map_peak"] or 1) for row in rows] or [1.0])
        return scaled * peaks.reshape(-1, *(1,) * (scaled.ndim - 1))

    def images(self, look: int | None = None) -> list[dict[str, str]]:
        """The rows of `images.csv`, of one look or all."""
        return self._table(IMAGES, look)

    def layers(self, look: int | None = None) -> list[dict[str, str]]:
        """The rows of `layers.csv`, of one look or all."""
        return self._table(LAYERS, look)

    def _table(self, name: str, look: int | None) -> list[dict[str, str]]:
        if self.lies_in is None:
            return []
        chosen = set(range(len(self.looks)) if look is None else (range(len(self.looks))[look],)) - self._lost
        return [row for row in _rows(self.lies_in / name) if int(row["look"]) in chosen]

    # --- writing

    def begin(self, about: dict[str, Any], probe: Probe, pictures: Sequence[npt.NDArray[np.uint8]]) -> None:
        """Makes the folder and says in it what is looked at; where that fails, it is done with the next look.

        Args:
            about: becomes `probe.json`.
            probe: becomes `probe.npz`.
            pictures: the images as a person sees them, [H, W, 3] in 0..255; become `probe/`.

        Raises:
            OSError: if it cannot be written.
        """
        self._beginning = about, probe, pictures
        if self.folder is not None:
            self._write_beginning()

    def add(self, look: Look, findings: Findings, labels: Tensor | None) -> None:
        """Keeps a look.

        Args:
            look: its numbers.
            findings: everything else.
            labels: of the images, as they came with them; shown where they are one number each.

        Raises:
            OSError: if it cannot be written; it is not in the history then, and the next one finds the folder mended.
        """
        self.num_unwritten += 1
        if self.folder is not None:
            if self._left is None or self._left != _sizes(self.folder):  # a look was torn, or others were at work here
                self._mend(findings.maps.shape)
            self._left = None
            self._write(self.folder, look, findings, labels)
            self._left = _sizes(self.folder)
        if not self.looks:
            self.first_maps = findings.maps
        self.last_maps = findings.maps
        self.looks.append(look)
        self.num_unwritten -= 1

    def add_sheet(self, look: Look, sheet: npt.NDArray[np.uint8]) -> None:
        """Keeps the overlays of a look as one picture, for runs without a logger that takes images."""
        if self.folder is not None:
            (self.folder / "saliency").mkdir(parents=True, exist_ok=True)
            _save_png(self.folder / "saliency" / f"epoch_{look.epoch:04d}.png", sheet)

    def _write_beginning(self) -> None:
        assert self.folder is not None
        assert self._beginning is not None
        about, probe, pictures = self._beginning
        (self.folder / "probe").mkdir(parents=True, exist_ok=True)
        for folder in with_siblings(self.folder):
            sweep(folder, deeply=True)
        for i, picture in enumerate(pictures):
            _save_png(self.folder / "probe" / f"{i:03d}.png", picture)
        arrays = {"images": probe.images, "labels": probe.labels}
        stored: dict[str, Any] = {name: _storable(tensor).numpy() for name, tensor in arrays.items() if tensor is not None}
        with replacing(self.folder / "probe.npz") as file:
            np.savez(file, **stored)
        write_json(self.folder / "probe.json", {"format": FORMAT, **about})

    def _write(self, folder: Path, look: Look, findings: Findings, labels: Tensor | None) -> None:
        index = len(self.looks)
        peaks = findings.maps.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        scaled = findings.maps / peaks.reshape(-1, *(1,) * (findings.maps.ndim - 1))
        GrowingArray(folder / MAPS).append(scaled.half().numpy())
        images = zip(*_columns(findings, labels), peaks.tolist(), strict=True)
        self._append(IMAGES, [(index, i, *row) for i, row in enumerate(images)])
        self._append(LAYERS, [(index, i, *_layer_cells(layer)) for i, layer in enumerate(findings.layers)])
        self._append(HISTORY, [_history_cells(index, look)])

    def _append(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Adds rows to a table, by one system call, which a killed process makes or does not."""
        assert self.folder is not None
        path = self.folder / name
        heading = [] if path.exists() and path.stat().st_size else [COLUMNS[name]]
        raw = as_csv([*heading, *rows])
        with file_named(path), path.open("ab", buffering=0) as file:
            if file.write(raw) != len(raw):  # so ends the last room on a disk, without an error
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    # --- mending

    def _mend(self, shape: Sequence[int]) -> None:
        """Makes the folder hold the looks that are in the history and nothing else, whatever is there.

        Args:
            shape: of a look's maps, [N, 1, *S].
        """
        assert self.folder is not None
        if self._earlier is not None and self._earlier.resolve() != self.folder.resolve():
            _copy(self._earlier, self.folder)
        self._earlier = None
        if self._beginning is not None:
            self._write_beginning()
        blank = np.full(shape, np.nan, np.float16)
        array = GrowingArray(self.folder / MAPS)
        if not array.restore(blank):
            self._lost |= {i for i in range(min(len(array), len(self.looks))) if not agree(array.entry(i), self.looks[i])}
        array.cut(len(self.looks))
        for index in sorted(self._lost):
            if index < len(array):
                array.overwrite(index, blank)
        while len(array) < len(self.looks):
            array.append(blank)
        has_maps = [index for index in range(len(self.looks)) if not np.isnan(array.entry(index)).all()]
        for name in (IMAGES, LAYERS):
            rows = self._rows_left(name)
            if name == IMAGES:  # of every map there is one, so that all of a look's are there or none
                rows = {(i, n): {"look": str(i), "image": str(n)} for i in has_maps for n in range(len(blank))} | rows
            self._rewrite(name, [[row.get(column) for column in COLUMNS[name]] for _, row in sorted(rows.items())])
        self._rewrite(HISTORY, [_history_cells(index, look) for index, look in enumerate(self.looks)])
        self._lost.clear()

    def _rows_left(self, name: str) -> dict[tuple[int, ...], dict[str, str]]:
        assert self.folder is not None
        rows, _ = sound_rows(self.folder / name, COLUMNS[name])
        return {key: row for key, row in rows.items() if key[0] < len(self.looks) and key[0] not in self._lost}

    def _rewrite(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Makes a table hold these rows and no others; without rows there is none."""
        assert self.folder is not None
        path, raw = self.folder / name, as_csv([COLUMNS[name], *rows])
        if not rows:
            path.unlink(missing_ok=True)
        elif not path.exists() or path.read_bytes() != raw:
            write_atomically(path, raw)

    def _maps_left(self, look: int) -> Tensor | None:
        """The maps of an earlier look, each relative to its own peak; None where they are lost."""
        if self._earlier is None or look in self._lost:
            return None
        try:
            return torch.from_numpy(GrowingArray(self._earlier / MAPS).entry(look)).float()
        except (OSError, ValueError, IndexError):
            return None


def agree(maps: npt.NDArray[np.generic], look: Look) -> bool:
    """Whether maps, [N, 1, *S], can be those of a look, as its number of their concentration tells."""
    concentration = look.numbers.get("fullgrad/concentration")
    found = gini_index(torch.from_numpy(maps).float().abs()).mean()
    return concentration is not None and bool((found - concentration).abs() <= AGREEMENT)


def _copy(source: Path, folder: Path) -> None:
    """Copies files and folders, with the permissions that umask gives them."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, folder / path.name)
        elif not path.name.startswith(PREFIX):
            shutil.copyfile(path, folder / path.name)


def _sizes(folder: Path) -> dict[str, int]:
    """Of the files of a history, in bytes; -1 for those that are missing."""
    paths = (folder / name for name in ("probe.json", MAPS, *COLUMNS))
    return {path.name: path.stat().st_size if path.exists() else -1 for path in paths}


def _history_cells(index: int, look: Look) -> tuple[Any, ...]:
    return index, look.epoch, look.step, *(look.numbers.get(f"fullgrad/{key}") for key in NUMBERS)


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


def _save_png(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    with replacing(path) as file:
        Image.fromarray(picture).save(file, "PNG", compress_level=1)  # a third of the time for a tenth more bytes
