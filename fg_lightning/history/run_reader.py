"""Reads the files of a run: strictly, or as far as they can be read."""

from __future__ import annotations

import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fg_lightning.errors import CannotRun
from fg_lightning.history.class_names import ClassNames
from fg_lightning.history.growing_files import GrowingArray, GrowingTable, Row
from fg_lightning.history.records import COLUMNS, HISTORY, IMAGES, LAYERS, MAPS, ImageRow, LayerTerms, Snapshot
from fg_lightning.metrics.concentration import gini_index

AGREEMENT = 1e-3
"""Largest difference between the concentration of stored maps and that of the snapshot. Maps are stored as float16."""

NUMERIC_TASKS = ("Task", "Entry", "Chosen")
"""Names in `probe.json` of tasks whose answers are numbers, not classes."""


class RunFiles:
    """The files of a run and their content.

    With a list `notes`, a method leaves out damaged or missing data and adds a sentence about it to the list. Without, it raises.

    Args:
        folder: folder of the run.

    Attributes:
        maps: [snapshots, N, 1, *S], each map divided by its peak, in float16.
        tables: the tables, by file name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.maps = GrowingArray(folder / MAPS)
        self.tables = {name: GrowingTable(folder / name, columns) for name, columns in COLUMNS.items()}

    def about(self) -> dict[str, Any]:
        """The content of `probe.json`; see docs/reference/keys_and_files.md."""
        return dict(json.loads((self.folder / "probe.json").read_text()))

    def probe(self) -> tuple[Tensor, Tensor | None]:
        """The images as the model takes them, [N, C, *S], and the explained labels; None without labels.

        Raises:
            FileNotFoundError: if their file is gone.
            ValueError: if their file is damaged.
        """
        with locate_damage(self.folder), (self.folder / "probe.npz").open("rb") as file, np.load(file) as arrays:
            return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]) if "labels" in arrays else None

    def probe_masks(self) -> Tensor | None:
        """Where the network should look, bool [N, 1, *S]; None for unknown. It raises the errors of `probe`."""
        with locate_damage(self.folder), (self.folder / "probe.npz").open("rb") as file, np.load(file) as arrays:
            return torch.from_numpy(arrays["masks"]) if "masks" in arrays else None

    def snapshots(self, notes: list[str] | None = None) -> list[tuple[int, Snapshot]]:
        return self.tables[HISTORY].read(lambda row: (int(row["snapshot"]), Snapshot.from_row(row)), notes)

    def images(self, notes: list[str] | None = None) -> list[tuple[int, ImageRow]]:
        """Rows with the index of their snapshot."""
        return self.tables[IMAGES].read(lambda row: (int(row["snapshot"]), ImageRow.from_row(row)), notes)

    def layers(self, notes: list[str] | None = None) -> list[tuple[int, LayerTerms]]:
        """Rows with the index of their snapshot."""
        return self.tables[LAYERS].read(lambda row: (int(row["snapshot"]), LayerTerms.from_row(row)), notes)

    def repair(self, snapshots: Sequence[Snapshot], lost: Set[int], shape: Sequence[int]) -> None:
        """Makes the files hold exactly these snapshots. Lost maps become NaN.

        Args:
            snapshots: the snapshots, in order.
            lost: indices of the snapshots whose maps and rows are missing here, or belong to another run.
            shape: shape of a snapshot's maps, (N, 1, *S).
        """
        blank, num_snapshots = np.full(shape, np.nan, np.float16), len(snapshots)
        if not self.maps.restore(blank):
            num_entries = min(len(self.maps), num_snapshots)
            lost = lost | {i for i in range(num_entries) if not agree_in_concentration(self.maps.entry(i), snapshots[i])}
        self.maps.truncate(num_snapshots)
        for index in sorted(lost):
            if index < len(self.maps):
                self.maps.overwrite(index, blank)
        while len(self.maps) < num_snapshots:
            self.maps.append(blank)
        has_maps = [index for index in range(num_snapshots) if not np.isnan(self.maps.entry(index)).all()]
        for name in (IMAGES, LAYERS):
            salvaged, _ = self.tables[name].salvage()
            rows = {key: row for key, row in salvaged.items() if key[0] < num_snapshots and key[0] not in lost}
            if name == IMAGES:  # a row for every map, so that a snapshot has all of its rows or none
                rows = {(i, n): {"snapshot": str(i), "image": str(n)} for i in has_maps for n in range(len(blank))} | rows
            self.tables[name].rewrite([[row.get(column) for column in COLUMNS[name]] for _, row in sorted(rows.items())])
        self.tables[HISTORY].rewrite([(index, *snapshot.cells()) for index, snapshot in enumerate(snapshots)])


@contextmanager
def locate_damage(folder: Path) -> Iterator[None]:
    """Turns the errors of damaged files into a ValueError that names the folder."""
    try:
        yield
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{folder} is damaged: {type(error).__name__}: {error}") from error


def agree_in_concentration(maps: npt.NDArray[np.generic], snapshot: Snapshot, method: str = "fullgrad") -> bool:
    """Whether maps, [N, 1, *S], may belong to a method in a snapshot: they have the same concentration."""
    expected = snapshot.numbers.get(f"{method}/concentration")
    concentration = gini_index(torch.from_numpy(maps).float().abs()).mean()
    return expected is not None and bool((concentration - expected).abs() <= AGREEMENT)


def unused_folder(folder: Path) -> Path:
    """The folder itself if it does not exist, otherwise the first of `..._1`, `..._2`, ... that does not exist."""
    stem, numbers = folder.name.removesuffix("_0"), count(1)
    while os.path.lexists(folder):  # unlike Path.exists, it raises no PermissionError
        folder = folder.with_name(f"{stem}_{next(numbers)}")
    return folder


def sibling_folders(folder: Path) -> list[Path]:
    """The folder, and those beside it that `unused_folder` may have given to other runs."""
    stem = folder.name.rstrip("0123456789").removesuffix("_")
    names = re.compile(re.escape(stem) + r"(_\d+)?")
    return [path for path in folder.parent.iterdir() if path.is_dir() and names.fullmatch(path.name)]


@dataclass(frozen=True, eq=False)
class Run:
    """A run, as far as its files can be read.

    Attributes:
        folder: the folder of the run.
        about: the content of `probe.json`; empty if it cannot be read.
        snapshots: the snapshots whose numbers can be read, by index.
        maps: FullGrad's maps, [snapshots, N, 1, *S], each divided by its peak, float16, mapped from the disk; None if missing.
        pictures: the images as the user sees them; None for a missing one.
        images: rows of `images.csv`, by the indices of snapshot and image.
        layers: rows of `layers.csv`, by the index of the snapshot.
        notes: sentences about data that could not be read.
    """

    folder: Path
    about: dict[str, Any]
    snapshots: dict[int, Snapshot]
    maps: npt.NDArray[np.float16] | None
    pictures: list[Image.Image | None]
    images: dict[tuple[int, int], ImageRow]
    layers: dict[int, list[LayerTerms]]
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> ClassNames:
        names = self.about.get("class_names")
        if isinstance(names, list):
            return ClassNames([str(name) for name in names])
        return ClassNames(None, are_classes=self.about.get("task") not in NUMERIC_TASKS)


def read_run(folder: Path) -> Run:
    """Reads a run, which may be unfinished or damaged.

    Args:
        folder: the folder of the run, such as `.../fullgrad`.

    Raises:
        CannotRun: if no snapshot can be read.
    """
    files, notes = RunFiles(folder), list[str]()
    snapshots = dict(sorted(dict(files.snapshots(notes)).items()))
    if not snapshots:
        raise CannotRun(
            f"{folder} is the folder of a monitored run, but its {HISTORY} holds no snapshot"
            + (f" ({' '.join(notes)})" if notes else "")
            + "; the first one is written as soon as training begins"
        )
    about = read_json(folder / "probe.json", "classes have no names here.", notes)
    maps = _read_maps(files.maps, len(snapshots), notes)
    images = {(index, row.image): row for index, row in files.images(notes)}
    layers = group_by_snapshot(files.layers(notes))
    num_images = _num_images(about, maps, images)
    held = {
        IMAGES: sum(all((index, i) in images for i in range(num_images)) for index in snapshots),
        LAYERS: sum(index in layers for index in snapshots),
    }
    for name, num_held in held.items():
        _note_fewer(folder / name, name.removesuffix(".csv"), num_held, len(snapshots), notes)
    pictures = [load_picture(folder / "probe" / f"{i:03d}.png") for i in range(num_images)]
    num_missing = sum(picture is None for picture in pictures)
    if num_missing:
        notes.append(f"{num_missing} of {num_images} images are missing from probe/.")
    if not (folder / "film_strip.png").is_file():
        notes.append("There is no film_strip.png, which is drawn when training ends: the run is not finished, or it was killed.")
    return Run(folder, about, snapshots, maps, pictures, images, layers, notes)


def group_by_snapshot(rows: Iterable[tuple[int, Row]]) -> dict[int, list[Row]]:
    """Rows by the index of their snapshot, in the order of the file."""
    groups: dict[int, list[Row]] = {}
    for index, row in rows:
        groups.setdefault(index, []).append(row)
    return groups


def read_json(path: Path, consequence: str, notes: list[str]) -> dict[str, Any]:
    """The content of a JSON file; empty if it is missing or damaged.

    Args:
        path: the file.
        consequence: the end of a note: what is unknown without the file.
        notes: the list to which the note is added.
    """
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        notes.append(f"{path.name} is {'damaged' if path.is_file() else 'missing'}: {consequence}")
        return {}


def load_picture(path: Path) -> Image.Image | None:
    """A picture; None if it is missing, damaged, or so large that Pillow warns of an attack."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(path).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
            return None


def _read_maps(array: GrowingArray, num_snapshots: int, notes: list[str]) -> npt.NDArray[np.float16] | None:
    name = array.path.name
    try:
        maps: npt.NDArray[Any] = array.read()
    except FileNotFoundError:
        notes.append(f"{name} is missing: images are shown without maps.")
        return None
    except (OSError, ValueError, EOFError) as error:
        notes.append(f"{name} is damaged: images are shown without maps ({error}).")
        return None
    if maps.ndim < 4 or maps.shape[2] != 1 or not np.issubdtype(maps.dtype, np.floating):
        shape = f"{maps.dtype}{list(maps.shape)}"
        notes.append(f"{name} holds no maps [snapshots, N, 1, ...], but {shape}: images are shown without.")
        return None
    _note_fewer(array.path, "maps", len(maps), num_snapshots, notes)
    if len(maps) > num_snapshots:
        notes.append(f"{name} holds the maps of {len(maps)} snapshots, of which {HISTORY} has {num_snapshots}.")
    return maps


def _note_fewer(path: Path, what: str, num_held: int, num_snapshots: int, notes: list[str]) -> None:
    if path.is_file() and num_held < num_snapshots:
        notes.append(f"{path.name} holds the {what} of {num_held} of {num_snapshots} snapshots.")


def _num_images(about: dict[str, Any], maps: npt.NDArray[Any] | None, images: dict[tuple[int, int], Any]) -> int:
    """Number of images of the probe."""
    if maps is not None:
        return maps.shape[1]
    shape = about.get("images")
    if isinstance(shape, list) and shape and isinstance(shape[0], int):
        return shape[0]
    return 1 + max((image for _, image in images), default=-1)
