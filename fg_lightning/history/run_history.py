"""The history of a run: writes its snapshots as they come, reads them back, and repairs what a killed process left."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fg_lightning.atomic_files import PREFIX, replace_file, sweep, write_json
from fg_lightning.errors import list_briefly
from fg_lightning.history.growing_files import Row
from fg_lightning.history.records import COLUMNS, FORMAT, HISTORY, IMAGES, LAYERS, MAPS, Explanation, ImageRow, LayerTerms, Snapshot
from fg_lightning.history.run_reader import RunFiles, agree_in_concentration, group_by_snapshot, locate_damage, sibling_folders
from fg_lightning.visualization.png_encoding import encode_png


class History:
    """The snapshots of one run, in order; in a folder, or in memory alone.

    `history.csv` is written last, and a snapshot counts once its row is there. A process killed at any moment loses no more than
    the snapshot in progress. If a snapshot cannot be written, the folder is repaired before the next one. Maps stay in memory of
    the first and the last snapshot only.

    Args:
        folder: created with the first snapshot; None to write nothing.
        snapshots: the numbers of earlier snapshots, whose maps and tables lie in `earlier`.
        earlier: that folder, which stays as it is unless it is `folder`; None if it is gone.
        lost: the earlier snapshots whose maps and rows do not lie there.

    Attributes:
        snapshots: the numbers of every snapshot.
        first_maps: the maps of the first snapshot, [N, 1, *S]; None before it, and if they are lost.
        last_maps: likewise of the last one.
        num_unwritten: number of snapshots that could not be written, and are not in the history.
    """

    def __init__(
        self, folder: Path | None, snapshots: Sequence[Snapshot] = (), earlier: Path | None = None, lost: Set[int] = frozenset()
    ) -> None:
        self.folder = folder
        self.snapshots = list(snapshots)
        self.first_maps: Tensor | None = None
        self.last_maps: Tensor | None = None
        self.num_unwritten = 0
        self._earlier = earlier
        self._lost = set(range(len(self.snapshots))) if earlier is None else set(lost)
        self._start: tuple[dict[str, Any], Tensor, Tensor | None, Sequence[npt.NDArray[np.uint8]]] | None = None
        self._sizes: dict[str, int] | None = None  # of the files while they hold all snapshots and nothing else
        if self.snapshots:
            self.first_maps, self.last_maps = self._earlier_maps(0), self._earlier_maps(len(self.snapshots) - 1)

    @classmethod
    def read(cls, folder: Path) -> History:
        """The history that lies in a folder.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, or a later version of the package wrote it.
        """
        history = cls(folder)
        with locate_damage(folder):
            written = history.about().get("format")
            if written == FORMAT:
                history._load()
        if written != FORMAT:
            raise ValueError(f"{folder} has format {written}, this version of fg-lightning reads format {FORMAT}; update it")
        return history

    def _load(self) -> None:
        for index, snapshot in self._files.snapshots():
            if index != len(self.snapshots):
                raise ValueError(f"snapshot {len(self.snapshots)} is missing from {HISTORY}")
            self.snapshots.append(snapshot)
        self.images_by_snapshot()
        self.layers_by_snapshot()
        if self.snapshots:
            self.first_maps, self.last_maps = self.maps(0), self.maps(-1)

    @property
    def source(self) -> Path | None:
        """The folder that the snapshots lie in. It is an earlier run's until the first snapshot of a resumed run."""
        return self.folder if self._earlier is None else self._earlier

    @property
    def strip_path(self) -> Path | None:
        """Where the film strip lies once the run has ended."""
        return None if self.folder is None else self.folder / "film_strip.png"

    # --- reading

    @property
    def _files(self) -> RunFiles:
        return RunFiles(self.source or Path())

    def about(self) -> dict[str, Any]:
        """What is explained and how; see `docs/monitor.md`."""
        return self._files.about()

    def probe(self) -> tuple[Tensor, Tensor | None]:
        """The images as the model took them, and the labels that were explained.

        Raises:
            FileNotFoundError: if they are gone.
            ValueError: if their file is damaged.
        """
        return self._files.probe()

    def maps(self, index: int, rows: Sequence[ImageRow] | None = None) -> Tensor:
        """The maps of a snapshot, [N, 1, *S], from disk; NaN if they were lost with the folder of an earlier process.

        If the snapshot's rows in `images.csv` were lost, the largest magnitude of each map is 1.

        Args:
            index: of the snapshot, from the end if negative.
            rows: `images(index)`, if you have read them already; they hold the peaks of the maps.

        Raises:
            ValueError: if they are not there. Without a folder there are only those of the first and the last snapshot.
        """
        index = range(len(self.snapshots))[index]
        if self.folder is None:
            in_memory = {0: self.first_maps, len(self.snapshots) - 1: self.last_maps}.get(index)
            if in_memory is None:
                raise ValueError("this history is kept in memory alone, which holds the maps of the first and last snapshot")
            return in_memory
        array = self._files.maps
        if index in self._lost:
            raise ValueError(f"the maps of snapshot {index} are lost")
        if index >= len(array):
            raise ValueError(f"{MAPS} holds the maps of {len(array)} of {len(self.snapshots)} snapshots")
        scaled = torch.from_numpy(array.entry(index)).float()
        rows = self.images(index) if rows is None else rows
        if len(rows) not in (0, len(scaled)):
            raise ValueError(f"{IMAGES} has {len(rows)} of {len(scaled)} rows of snapshot {index}")
        peaks = torch.tensor([float(row.map_peak or 1) for row in rows] or [1.0])
        return scaled * peaks.reshape(-1, *(1,) * (scaled.ndim - 1))

    def images(self, index: int) -> list[ImageRow]:
        """The rows of `images.csv` of a snapshot."""
        return self.images_by_snapshot().get(range(len(self.snapshots))[index], [])

    def layers(self, index: int) -> list[LayerTerms]:
        """The rows of `layers.csv` of a snapshot."""
        return self.layers_by_snapshot().get(range(len(self.snapshots))[index], [])

    def images_by_snapshot(self) -> dict[int, list[ImageRow]]:
        """All rows of `images.csv`, by the index of their snapshot."""
        return self._by_snapshot(RunFiles.images)

    def layers_by_snapshot(self) -> dict[int, list[LayerTerms]]:
        """All rows of `layers.csv`, by the index of their snapshot."""
        return self._by_snapshot(RunFiles.layers)

    def _by_snapshot(self, read: Callable[[RunFiles], list[tuple[int, Row]]]) -> dict[int, list[Row]]:
        own = set(range(len(self.snapshots))) - self._lost
        return {} if self.source is None else group_by_snapshot((i, row) for i, row in read(self._files) if i in own)

    # --- writing

    def begin(
        self, about: dict[str, Any], images: Tensor, labels: Tensor | None, pictures: Sequence[npt.NDArray[np.uint8]]
    ) -> None:
        """Creates the folder and describes in it what is explained. If that fails, the next snapshot does it.

        Args:
            about: becomes `probe.json`.
            images: as the model takes them; become `probe.npz`.
            labels: that are explained; likewise.
            pictures: the images as the user sees them, [H, W, 3] in 0..255; become `probe/`.

        Raises:
            OSError: if it cannot be written.
        """
        self._start = about, images, labels, pictures
        if self.folder is not None:
            self._write_start(self.folder)

    def add(self, snapshot: Snapshot, explanation: Explanation, labels: Tensor | None) -> None:
        """Keeps a snapshot.

        Args:
            snapshot: its numbers.
            explanation: everything else.
            labels: of the images, as they came with them; written if they are one number each.

        Raises:
            OSError: if it cannot be written. Then it is not in the history, and the next one repairs the folder.
        """
        self.num_unwritten += 1
        if self.folder is not None:
            if self._sizes is None or self._sizes != _file_sizes(self.folder):  # a snapshot was torn, or another process wrote
                self._repair(self.folder, explanation.maps.shape)
            self._sizes = None
            self._write(RunFiles(self.folder), snapshot, explanation, labels)
            self._sizes = _file_sizes(self.folder)
        if not self.snapshots:
            self.first_maps = explanation.maps
        self.last_maps = explanation.maps
        self.snapshots.append(snapshot)
        self.num_unwritten -= 1

    def add_sheet(self, snapshot: Snapshot, sheet: npt.NDArray[np.uint8]) -> None:
        """Keeps the overlays of a snapshot as one picture, for runs without a logger that takes images."""
        if self.folder is not None:
            (self.folder / "saliency").mkdir(parents=True, exist_ok=True)
            _save_png(self.folder / "saliency" / f"epoch_{snapshot.epoch:04d}.png", sheet)

    def _write_start(self, folder: Path) -> None:
        assert self._start is not None
        about, images, labels, pictures = self._start
        (folder / "probe").mkdir(parents=True, exist_ok=True)
        for other in sibling_folders(folder):
            sweep(other, deeply=True)
        for i, picture in enumerate(pictures):
            _save_png(folder / "probe" / f"{i:03d}.png", picture)
        arrays = {"images": images, "labels": labels}
        stored: dict[str, Any] = {name: _numpy(tensor) for name, tensor in arrays.items() if tensor is not None}
        with replace_file(folder / "probe.npz") as file:
            np.savez(file, **stored)
        write_json(folder / "probe.json", {"format": FORMAT, **about})

    def _write(self, files: RunFiles, snapshot: Snapshot, explanation: Explanation, labels: Tensor | None) -> None:
        index = len(self.snapshots)
        maps = explanation.maps
        peaks = maps.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        files.maps.append((maps / peaks.reshape(-1, *(1,) * (maps.ndim - 1))).half().numpy())
        images = zip(explanation.image_cells(labels), peaks.tolist(), strict=True)
        files.tables[IMAGES].append([(index, i, *cells, peak) for i, (cells, peak) in enumerate(images)])
        files.tables[LAYERS].append([(index, i, *layer.cells()) for i, layer in enumerate(explanation.layers)])
        files.tables[HISTORY].append([(index, *snapshot.cells())])

    # --- repair

    def _repair(self, folder: Path, shape: Sequence[int]) -> None:
        """Makes the folder hold the snapshots of the history and nothing else.

        Args:
            folder: of this run.
            shape: of a snapshot's maps, [N, 1, *S].
        """
        if self._earlier is not None and self._earlier.resolve() != folder.resolve():
            _copy_tree(self._earlier, folder)
        self._earlier = None
        if self._start is not None:
            self._write_start(folder)
        RunFiles(folder).repair(self.snapshots, self._lost, shape)
        self._lost.clear()

    def _earlier_maps(self, index: int) -> Tensor | None:
        """The maps of an earlier snapshot, each relative to its own peak; None if they are lost."""
        if self._earlier is None or index in self._lost:
            return None
        try:
            return torch.from_numpy(RunFiles(self._earlier).maps.entry(index)).float()
        except (OSError, ValueError, IndexError):
            return None


class OtherRun(ValueError):
    """A folder holds another run."""


def find_lost_snapshots(folder: Path, snapshots: Sequence[Snapshot], fingerprint: str) -> tuple[Set[int], list[str]]:
    """Compares the files of a folder with the snapshots that a checkpoint knows.

    The files hold a snapshot if its row in `history.csv` has the same numbers; or, if that row is gone, if its maps have the
    concentration that the checkpoint tells.

    Args:
        folder: of an earlier run.
        snapshots: as the checkpoint has them.
        fingerprint: of the images that they explain.

    Returns:
        The snapshots that the files do not hold, and what is damaged, in words.

    Raises:
        OtherRun: if it is the folder of another run.
        OSError: if a file is there, but cannot be read now.
        ValueError: if a later version of the package wrote it.
    """
    files = RunFiles(folder)
    about = _identity(files)
    if about is not None and about["format"] != FORMAT:
        raise ValueError(f"{folder} has format {about['format']}, this version of fg-lightning reads format {FORMAT}; update it")
    if about is not None and about["fingerprint"] != fingerprint:
        raise OtherRun(str(folder))
    array, num_snapshots = files.maps, len(snapshots)
    try:
        num_entries, has_header = len(array), True
    except (ValueError, EOFError):
        num_entries, has_header = 0, False
    rows, _ = files.tables[HISTORY].salvage()
    unwritten = [index for index in range(num_snapshots) if (index,) not in rows]
    own = {i for i, snapshot in enumerate(snapshots) if i not in unwritten and _snapshot(rows[i,]) == snapshot}
    own |= {i for i in unwritten if i < num_entries and agree_in_concentration(array.entry(i), snapshots[i])}
    if about is None and not own:
        raise OtherRun(str(folder))
    maps = {index for index in own if index < num_entries}
    maps -= {index for index in maps if np.isnan(array.entry(index)).all()}
    damages = [] if about is not None else ["probe.json cannot be read"]
    damages += [f"{HISTORY} lacks {_enumerate(unwritten)}"] if unwritten else []
    if not has_header:
        damages.append(f"{MAPS} has no header")
    elif num_entries < num_snapshots:
        damages.append(f"{MAPS} lacks {_enumerate(range(num_entries, num_snapshots))}")
    for name in (IMAGES, LAYERS):
        short = _incomplete_snapshots(files, name, maps)
        damages += [f"{name} lacks rows of {_enumerate(short)}"] if short else []
    return set(range(num_snapshots)) - own, [f"{folder} is damaged: {', '.join(damages)}"] if damages else []


def _identity(files: RunFiles) -> dict[str, Any] | None:
    """Format and fingerprint; None if they are gone."""
    try:
        about = files.about()
        return {name: about[name] for name in ("format", "fingerprint")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _snapshot(row: dict[str, str]) -> Snapshot | None:
    try:
        return Snapshot.from_row(row)
    except (KeyError, ValueError):
        return None


def _incomplete_snapshots(files: RunFiles, name: str, indices: Set[int]) -> list[int]:
    """The snapshots that have no rows in a table, or may have lost some with its end or with damaged lines."""
    rows, is_whole = files.tables[name].salvage()
    counts = Counter(index for index, *_ in rows)
    usual, last = max(counts.values(), default=1), max(counts, default=0)
    return sorted(i for i in indices if not counts[i] or (counts[i] < usual and (i == last or not is_whole)))


def _enumerate(indices: Sequence[int]) -> str:
    """Snapshots by their numbers, at most five."""
    return f"snapshot{'' if len(indices) == 1 else 's'} {list_briefly(indices, 5)}"


def _copy_tree(source: Path, folder: Path) -> None:
    """Copies files and folders, with the permissions that umask gives them."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _copy_tree(path, folder / path.name)
        elif not path.name.startswith(PREFIX):
            shutil.copyfile(path, folder / path.name)


def _file_sizes(folder: Path) -> dict[str, int]:
    """Of the files of a history, in bytes; -1 for missing ones."""
    paths = (folder / name for name in ("probe.json", MAPS, *COLUMNS))
    return {path.name: path.stat().st_size if path.exists() else -1 for path in paths}


def _numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """In a type that numpy has."""
    array: npt.NDArray[Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


def _save_png(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    with replace_file(path) as file:
        file.write(encode_png(picture))
