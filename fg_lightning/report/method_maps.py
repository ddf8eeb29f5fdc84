"""Reads the maps of a run, for every recorded method."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fg_lightning.history import Run
from fg_lightning.history.growing_files import GrowingArray, GrowingTable, parse_number
from fg_lightning.history.records import HISTORY, MAPS
from fg_lightning.report.image_encoding import Planes
from fg_lightning.report.number_curves import FULLGRAD
from fg_lightning.visualization.film_strips import spread_indices
from fg_lightning.visualization.saliency_overlay import describe_flat, planar

PLACES = ("snapshot", "epoch", "step", "num_steps")


@dataclass(frozen=True, eq=False)
class MethodMaps:
    """The maps of one method over a run.

    Attributes:
        method: name of the method.
        maps: [snapshots, N, 1, *S], memory-mapped. None if there are none.
        numbers: numbers of the maps by name, by the index of the snapshot.
    """

    method: str
    maps: npt.NDArray[Any] | None
    numbers: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the maps as they are shown. None if there are none."""
        if self.maps is None:
            return None
        height, width = planar(torch.empty(self.maps.shape[1:], device="meta")).shape[-2:]
        return height, width

    def planes(self, index: int) -> Planes | None:
        """The maps of a snapshot, each relative to its own peak, [N, H, W]. None if they are lost."""
        if self.maps is None or index >= len(self.maps):
            return None
        maps = planar(torch.from_numpy(np.array(self.maps[index])).float())[:, 0].numpy()
        return None if np.isnan(maps).all() else np.nan_to_num(maps)

    def flat_maps(self, index: int) -> dict[int, str]:
        """Descriptions of the maps of a snapshot that are zero or constant, by image. They would look like a fault."""
        if self.maps is None or index >= len(self.maps):
            return {}
        maps = torch.from_numpy(np.array(self.maps[index]))
        return {image: words for image, saliency in enumerate(maps) if (words := describe_flat(saliency))}

    @cached_property
    def is_signed(self) -> bool:
        """Whether maps have negative values in any of a few snapshots."""
        return self.maps is not None and any(bool((self.maps[i] < 0).any()) for i in spread_indices(len(self.maps), 5))


def read_methods(run: Run) -> list[MethodMaps]:
    """The maps of every method, FullGrad's first. Other methods have folders of their names. Damage is noted in `run.notes`."""
    prefix = f"{FULLGRAD}/"
    numbers = {
        index: {key.removeprefix(prefix): value for key, value in snapshot.numbers.items() if key.startswith(prefix)}
        for index, snapshot in run.snapshots.items()
    }
    methods = [MethodMaps(FULLGRAD, run.maps, numbers)]
    for folder in sorted(path.parent for path in run.folder.glob(f"*/{HISTORY}")):
        numbers = dict(GrowingTable(folder / HISTORY, ()).read(_numbers_of_row, run.notes))
        maps = _read_maps(folder, None if run.maps is None else run.maps.shape[1:], run.notes)
        methods.append(MethodMaps(folder.name, maps, numbers))
    return methods


def _numbers_of_row(row: dict[str, str]) -> tuple[int, dict[str, float]]:
    numbers = {name: parse_number(cell) for name, cell in row.items() if name not in PLACES}
    return int(row["snapshot"]), {name: float(value) for name, value in numbers.items() if value is not None}


def _read_maps(folder: Path, expected: tuple[int, ...] | None, notes: list[str]) -> npt.NDArray[Any] | None:
    """The maps in a method's folder.

    Args:
        folder: folder of the method.
        expected: shape of FullGrad's maps of a snapshot. None if it is unknown.
        notes: a sentence is appended here if they cannot be read.
    """
    try:
        maps = GrowingArray(folder / MAPS).read()
        if maps.ndim < 4 or maps.shape[2] != 1 or not np.issubdtype(maps.dtype, np.floating):
            raise ValueError(f"expected maps [snapshots, N, 1, ...], found {maps.dtype}{list(maps.shape)}")
        if expected not in (None, maps.shape[1:]):
            raise ValueError(f"expected maps {list(expected or ())} as FullGrad's, found {list(maps.shape[1:])}")
    except FileNotFoundError:
        notes.append(f"{folder.name}/{MAPS} is missing: this method is shown without maps.")
    except (OSError, ValueError, EOFError) as error:
        notes.append(f"{folder.name}/{MAPS} is damaged: this method is shown without maps ({error}).")
    else:
        return maps
    return None
