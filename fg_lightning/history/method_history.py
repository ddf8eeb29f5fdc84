"""The maps of one further method over a run, in a subfolder of the run or only in memory."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fg_lightning.history.growing_files import GrowingArray, GrowingTable, parse_number
from fg_lightning.history.records import HISTORY, MAP_NUMBERS, MAPS, METHOD_COLUMNS, Snapshot
from fg_lightning.history.run_reader import agree_in_concentration


class MethodHistory:
    """The maps of a further method in all snapshots.

    The subfolder `<method>/` of the run has `maps.npy`, [snapshots, N, 1, *S] in float16, and `history.csv` with the numbers of the
    maps. Each map is divided by its peak; it is NaN if the method failed. Only the maps of the first and the last snapshot stay in
    memory.

    Args:
        method: key of the method.

    Attributes:
        first_maps: the maps of the first snapshot, [N, 1, *S]. None if there is no snapshot, the method failed or they are lost.
        last_maps: the maps of the last snapshot, likewise.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self.first_maps: Tensor | None = None
        self.last_maps: Tensor | None = None

    def paths(self, folder: Path) -> list[Path]:
        """Its files in the folder of a run."""
        return [folder / self.method / name for name in (MAPS, HISTORY)]

    def maps(self, folder: Path, index: int) -> Float[Tensor, "n 1 *s"]:
        """Reads the maps of a snapshot, each relative to its peak; NaN if the method failed or they were lost.

        Raises:
            OSError, IndexError, ValueError: if they cannot be read.
        """
        return torch.from_numpy(self._array(folder).entry(index)).float()

    def numbers(self, folder: Path) -> dict[int, dict[str, float]]:
        """The numbers of the maps: index of the snapshot -> log key -> number.

        Raises:
            KeyError, ValueError: if a row is damaged.
        """
        return dict(self._table(folder).read(self._parse))

    def load(self, folder: Path | None, num_snapshots: int, lost: Set[int] = frozenset()) -> None:
        """Reads the maps of the first and the last snapshot, if they exist."""
        if folder is None:
            return
        self.first_maps, self.last_maps = (self._find(folder, index, lost) for index in (0, num_snapshots - 1))

    def write(self, folder: Path, index: int, snapshot: Snapshot, maps: Tensor | None, shape: Sequence[int]) -> None:
        """Appends a snapshot to the files.

        Args:
            folder: folder of the run.
            index: index of the snapshot.
            snapshot: the numbers of the snapshot.
            maps: [N, 1, *S]; None if the method failed.
            shape: shape of the maps, (N, 1, *S).

        Raises:
            OSError: if it cannot be written.
        """
        (folder / self.method).mkdir(parents=True, exist_ok=True)
        maps = torch.full(tuple(shape), torch.nan) if maps is None else maps
        peaks = maps.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        self._array(folder).append((maps / peaks.reshape(-1, *(1,) * (maps.ndim - 1))).half().numpy())
        self._table(folder).append([self._cells(index, snapshot)])

    def keep(self, maps: Tensor | None, *, is_first: bool) -> None:
        """Keeps the maps of a snapshot in memory."""
        self.first_maps = maps if is_first else self.first_maps
        self.last_maps = maps

    def repair(self, folder: Path, snapshots: Sequence[Snapshot], lost: Set[int], shape: Sequence[int]) -> None:
        """Makes the files hold exactly these snapshots. Maps that are missing, or do not belong to the snapshot, become NaN.

        Args:
            folder: folder of the run.
            snapshots: the snapshots, in order.
            lost: indices of the snapshots whose maps are missing here, or belong to another run.
            shape: shape of a snapshot's maps, (N, 1, *S).
        """
        (folder / self.method).mkdir(parents=True, exist_ok=True)
        array, blank = self._array(folder), np.full(shape, np.nan, np.float16)
        if not array.restore(blank):
            num_entries = min(len(array), len(snapshots))
            agree = [agree_in_concentration(array.entry(i), snapshots[i], self.method) for i in range(num_entries)]
            lost = lost | {i for i in range(num_entries) if not agree[i]}
        array.truncate(len(snapshots))
        for index in sorted(lost):
            if index < len(array):
                array.overwrite(index, blank)
        while len(array) < len(snapshots):
            array.append(blank)
        self._table(folder).rewrite([self._cells(index, snapshot) for index, snapshot in enumerate(snapshots)])

    def _find(self, folder: Path, index: int, lost: Set[int]) -> Tensor | None:
        try:
            maps = None if index in lost else self.maps(folder, index)
        except (OSError, ValueError, IndexError):
            return None
        return None if maps is None or bool(maps.isnan().all()) else maps

    def _array(self, folder: Path) -> GrowingArray:
        return GrowingArray(folder / self.method / MAPS)

    def _table(self, folder: Path) -> GrowingTable:
        return GrowingTable(folder / self.method / HISTORY, METHOD_COLUMNS)

    def _cells(self, index: int, snapshot: Snapshot) -> tuple[float | None, ...]:
        numbers = (snapshot.numbers.get(f"{self.method}/{name}") for name in MAP_NUMBERS)
        return index, snapshot.epoch, snapshot.step, snapshot.num_steps, *numbers

    def _parse(self, row: dict[str, str]) -> tuple[int, dict[str, float]]:
        cells = {name: parse_number(row.get(name, "")) for name in MAP_NUMBERS}
        return int(row["snapshot"]), {f"{self.method}/{name}": float(value) for name, value in cells.items() if value is not None}
