"""What a monitored run left on disk, as far as it can be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fg_lightning.errors import CannotRun
from fg_lightning.history.csv_table import facts_of, number, readable_rows
from fg_lightning.history.growing_array import GrowingArray
from fg_lightning.history.history import HISTORY, IMAGES, LAYERS
from fg_lightning.recording.output_meaning import ClassNames
from fg_lightning.recording.snapshot import NUMBERS, Look
from fg_lightning.recording.snapshot_images import planar
from fg_lightning.recording.task import TASKS
from fg_lightning.report.sprites import picture_in
from fg_lightning.visualization.film_strip import evenly_spaced

ANSWERS = ("label", "explained", "prediction", "confidence")
TERMS = ("output", "input_term", "bias_term", "implicit_term", "completeness_error")


@dataclass(frozen=True)
class LayerRow:
    """What the biases of a module, or the input, add to the output at one look: of all images together (None where that is not
    defined), and of each."""

    module: str
    kind: str
    share: float | None
    terms: tuple[float, ...]

    @property
    def name(self) -> str:
        return "input" if self.kind == "input" else self.module or "(root)"


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        folder: that all of it lies in.
        about: what stands in `probe.json`; empty if it is not there.
        looks: those whose numbers can be read, by their index into the maps.
        maps: [looks, N, 1, *S], mapped from the disk; None if there are none.
        pictures: the images as a person sees them, None for those that are not there.
        images: rows of `images.csv`, by look and image.
        layers: rows of `layers.csv`, by look.
        notes: what could not be read, in sentences.
    """

    folder: Path
    about: dict[str, Any]
    looks: dict[int, Look]
    maps: npt.NDArray[np.float16] | None
    pictures: list[Image.Image | None]
    images: dict[tuple[int, int], dict[str, float | None]]
    layers: dict[int, list[LayerRow]]
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> ClassNames:
        names = self.about.get("class_names")
        if isinstance(names, list):
            return ClassNames([str(name) for name in names])
        task = self.about.get("task")
        return ClassNames(None, are_classes=TASKS[task].tells_classes if task in TASKS else task != "Chosen")

    @property
    def plane(self) -> tuple[int, int] | None:
        """Height and width of every map; None if there are none."""
        if self.maps is None:
            return None
        height, width = planar(torch.empty(self.maps.shape[1:], device="meta")).shape[-2:]
        return height, width

    def maps_of(self, look: int) -> npt.NDArray[np.float32] | None:
        """The maps of a look, each relative to its own peak, [N, H, W]; None where they are lost."""
        if self.maps is None or look >= len(self.maps):
            return None
        found = planar(torch.from_numpy(np.array(self.maps[look])).float())[:, 0].numpy()
        return None if np.isnan(found).all() else np.nan_to_num(found)

    @cached_property
    def is_signed(self) -> bool:
        """Whether maps have negative values, as a few looks tell."""
        return self.maps is not None and any(bool((self.maps[i] < 0).any()) for i in evenly_spaced(len(self.maps), 5))


def read_run(folder: Path) -> Run:
    """
    Raises:
        CannotRun: if not one look can be read.
    """
    notes: list[str] = []
    looks = dict(readable_rows(folder / HISTORY, _look, notes))
    if not looks:
        raise CannotRun(
            f"{folder} is the folder of a monitored run, but no look stands in its {HISTORY}"
            + (f" ({' '.join(notes)})" if notes else "")
            + "; the first one is there as soon as training begins"
        )
    about = facts_of(folder / "probe.json", "classes have no names here.", notes)
    maps = _maps(folder / "maps.npy", len(looks), notes)
    images = dict(readable_rows(folder / IMAGES, _image, notes))
    layers: dict[int, list[LayerRow]] = {}
    for look, row in readable_rows(folder / LAYERS, _layer, notes):
        layers.setdefault(look, []).append(row)
    count = _count(about, maps, images)
    _note_fewer(folder / IMAGES, "images", sum(all((look, i) in images for i in range(count)) for look in looks), len(looks), notes)
    _note_fewer(folder / LAYERS, "layers", sum(look in layers for look in looks), len(looks), notes)
    pictures = [picture_in(folder / "probe" / f"{i:03d}.png") for i in range(count)]
    missing = sum(picture is None for picture in pictures)
    if missing:
        notes.append(f"{missing} of {count} images are missing from probe/.")
    if not (folder / "film_strip.png").is_file():
        notes.append("There is no film_strip.png, which is drawn when training ends: the run goes on, or it was killed.")
    return Run(folder, about, dict(sorted(looks.items())), maps, pictures, images, layers, notes)


def _look(row: dict[str, str]) -> tuple[int, Look]:
    numbers = {key: number(row.get(key)) for key in NUMBERS}
    known = {key: float(value) for key, value in numbers.items() if value is not None}
    return int(row["look"]), Look(int(row["epoch"]), int(row["step"]), known)


def _image(row: dict[str, str]) -> tuple[tuple[int, int], dict[str, float | None]]:
    return (int(row["look"]), int(row["image"])), {key: number(row[key]) for key in (*ANSWERS, *TERMS)}


def _layer(row: dict[str, str]) -> tuple[int, LayerRow]:
    terms = tuple(float(term) for term in (row.get("terms") or "").split())
    return int(row["look"]), LayerRow(row["module"], row["kind"], number(row["share"]), terms)


def _maps(path: Path, looks: int, notes: list[str]) -> npt.NDArray[np.float16] | None:
    try:
        maps: npt.NDArray[Any] = GrowingArray(path).read()
    except FileNotFoundError:
        notes.append(f"{path.name} is missing: images are shown without maps.")
        return None
    except (OSError, ValueError, EOFError) as error:
        notes.append(f"{path.name} is damaged: images are shown without maps ({error}).")
        return None
    if maps.ndim < 4 or maps.shape[2] != 1 or not np.issubdtype(maps.dtype, np.floating):
        notes.append(f"{path.name} holds no maps [looks, N, 1, ...], but {maps.dtype}{list(maps.shape)}: images are shown without.")
        return None
    _note_fewer(path, "maps", len(maps), looks, notes)
    if len(maps) > looks:
        notes.append(f"{path.name} holds the maps of {len(maps)} looks, of which {HISTORY} has {looks}.")
    return maps


def _note_fewer(path: Path, what: str, found: int, looks: int, notes: list[str]) -> None:
    if path.is_file() and found < looks:
        notes.append(f"{path.name} holds the {what} of {found} of {looks} looks.")


def _count(about: dict[str, Any], maps: npt.NDArray[Any] | None, images: dict[tuple[int, int], Any]) -> int:
    """How many images the probe has."""
    if maps is not None:
        return maps.shape[1]
    shape = about.get("images")
    if isinstance(shape, list) and shape and isinstance(shape[0], int):
        return shape[0]
    return 1 + max((image for _, image in images), default=-1)
