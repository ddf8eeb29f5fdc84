"""The history of a run: writes its snapshots, reads them, and repairs the files after a process was killed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fg_lightning.atomic_files import PREFIX, replace_file, sweep, write_json
from fg_lightning.history.growing_files import Row
from fg_lightning.history.method_history import MethodHistory
from fg_lightning.history.records import COLUMNS, FORMAT, HISTORY, IMAGES, LAYERS, MAPS, Explanation, ImageRow, LayerTerms, Snapshot
from fg_lightning.history.run_reader import RunFiles, group_by_snapshot, locate_damage, sibling_folders
from fg_lightning.visualization.png_encoding import encode_png


class History:
    """The snapshots of one run, in order, in a folder or only in memory.

    `history.csv` is written last, and a snapshot counts once its row is there. A process killed at any moment loses at most the
    snapshot in progress. If a snapshot cannot be written, the folder is repaired before the next one. Only the maps of the first
    and the last snapshot stay in memory.

    Args:
        folder: folder of the run, created with the first snapshot. None: nothing is written.
        snapshots: the numbers of earlier snapshots, whose maps and tables are in `earlier`. Default: none.
        earlier: folder of the earlier snapshots. It is not changed, unless it is `folder`. Default: None, it is gone.
        lost: indices of the earlier snapshots whose maps and rows are not in `earlier`. Default: none.
        methods: keys of the further methods, whose maps are stored beside FullGrad's. Default: none.

    Attributes:
        folder: as above.
        snapshots: the numbers of every snapshot.
        first_maps: the maps of the first snapshot, [N, 1, *S]; None if there is no snapshot or they are lost.
        last_maps: the maps of the last snapshot, likewise.
        num_unwritten: number of snapshots that could not be written and are not in the history.
        methods: the maps of further methods, by key.
    """

    def __init__(
        self,
        folder: Path | None,
        snapshots: Sequence[Snapshot] = (),
        earlier: Path | None = None,
        lost: Set[int] = frozenset(),
        methods: Iterable[str] = (),
    ) -> None:
        self.folder = folder
        self.snapshots = list(snapshots)
        self.first_maps: Tensor | None = None
        self.last_maps: Tensor | None = None
        self.num_unwritten = 0
        self.methods = {method: MethodHistory(method) for method in methods}
        self._earlier = earlier
        self._lost = set(range(len(self.snapshots))) if earlier is None else set(lost)
        self._start: tuple[dict[str, Any], dict[str, Tensor | None], Sequence[npt.NDArray[np.uint8]]] | None = None
        self._sizes: dict[Path, int] | None = None  # of the files, if they hold exactly these snapshots
        if self.snapshots:
            self.first_maps, self.last_maps = self._earlier_maps(0), self._earlier_maps(len(self.snapshots) - 1)
            for method in self.methods.values():
                method.load(earlier, len(self.snapshots), self._lost)

    @classmethod
    def read(cls, folder: str | Path) -> History:
        """Reads the history in a folder.

        Args:
            folder: the folder of a run, with `probe.json` and `history.csv`.

        Raises:
            FileNotFoundError: if the folder holds no history.
            ValueError: if the history is damaged, or a later version of the package wrote it.
        """
        folder = Path(folder)
        with locate_damage(folder):
            about = RunFiles(folder).about()
            written = about.get("format")
            history = cls(folder, methods=[method for method in about.get("methods", ()) if method != "fullgrad"])
            if written == FORMAT:
                history._load()
        if written != FORMAT:
            raise ValueError(f"{folder} has format {written}, but this fg-lightning reads format {FORMAT}; update fg-lightning")
        return history

    def _load(self) -> None:
        for index, snapshot in self._files.snapshots():
            if index != len(self.snapshots):
                raise ValueError(f"snapshot {len(self.snapshots)} is missing from {HISTORY}")
            self.snapshots.append(snapshot)
        for method in self.methods.values():
            numbers = method.numbers(self._files.folder)
            self.snapshots = [replace(s, numbers=s.numbers | numbers.get(i, {})) for i, s in enumerate(self.snapshots)]
            method.load(self._files.folder, len(self.snapshots))
        self.images_by_snapshot()
        self.layers_by_snapshot()
        if self.snapshots:
            self.first_maps, self.last_maps = self.maps(0), self.maps(-1)

    @property
    def source(self) -> Path | None:
        """The folder of the snapshots; None in memory. In a resumed run, it is the earlier folder until the next snapshot."""
        return self.folder if self._earlier is None else self._earlier

    @property
    def strip_path(self) -> Path | None:
        """The path of the film strip, which is written when the run ends. None without a folder."""
        return None if self.folder is None else self.folder / "film_strip.png"

    # --- reading

    @property
    def _files(self) -> RunFiles:
        return RunFiles(self.source or Path())

    def about(self) -> dict[str, Any]:
        """The content of `probe.json`; see docs/reference/keys_and_files.md.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged.
        """
        return self._files.about()

    def probe(self) -> tuple[Tensor, Tensor | None]:
        """The images as the model takes them, [N, C, *S], and the explained labels; None without labels.

        Raises:
            FileNotFoundError: if their file is gone.
            ValueError: if their file is damaged.
        """
        return self._files.probe()

    def probe_masks(self) -> Tensor | None:
        """Where the network should look, bool [N, 1, *S]; None for unknown. It raises the errors of `probe`."""
        return self._files.probe_masks()

    def maps(self, index: int, rows: Sequence[ImageRow] | None = None) -> Tensor:
        """FullGrad's maps of a snapshot, [N, 1, *S], float32. They are NaN if an earlier process lost them.

        If the snapshot's rows in `images.csv` were lost, the largest magnitude of each map is 1.

        Args:
            index: index of the snapshot; a negative one counts from the end.
            rows: `images(index)`, if you have read them already; they hold the peaks of the maps. Default: None, they are read.

        Raises:
            IndexError: if there is no such snapshot.
            ValueError: if the maps are missing. Without a folder, there are only those of the first and the last snapshot.
        """
        index = range(len(self.snapshots))[index]
        if self.folder is None:
            in_memory = {0: self.first_maps, len(self.snapshots) - 1: self.last_maps}.get(index)
            if in_memory is None:
                raise ValueError("this history is only in memory, which holds only the maps of the first and the last snapshot")
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

    def maps_of(self, method: str, index: int) -> Tensor:
        """The maps of any method in a snapshot, [N, 1, *S]. Those of methods other than FullGrad are relative to their peaks.

        Args:
            method: key of the method, such as "fullgrad".
            index: index of the snapshot; a negative one counts from the end.

        Raises:
            IndexError: if there is no such snapshot.
            KeyError: if the run has no such method.
            ValueError: if the maps are missing.
        """
        if method == "fullgrad":
            return self.maps(index)
        index, further = range(len(self.snapshots))[index], self.methods[method]
        if self.source is None:
            in_memory = {0: further.first_maps, len(self.snapshots) - 1: further.last_maps}.get(index)
            if in_memory is None:
                raise ValueError("this history is only in memory, which holds only the maps of the first and the last snapshot")
            return in_memory
        try:
            return further.maps(self.source, index)
        except (OSError, IndexError) as error:
            raise ValueError(f"the maps of {method} in snapshot {index} are missing: {error}") from error

    def images(self, index: int) -> list[ImageRow]:
        """The rows of `images.csv` of a snapshot. A negative index counts from the end. Empty if the rows are lost."""
        return self.images_by_snapshot().get(range(len(self.snapshots))[index], [])

    def layers(self, index: int) -> list[LayerTerms]:
        """The rows of `layers.csv` of a snapshot. A negative index counts from the end. Empty if the rows are lost."""
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
        self,
        about: dict[str, Any],
        images: Tensor,
        labels: Tensor | None,
        pictures: Sequence[npt.NDArray[np.uint8]],
        masks: Tensor | None = None,
    ) -> None:
        """Creates the folder and writes the probe into it. If that fails, the next snapshot tries it again.

        Args:
            about: the content of `probe.json`.
            images: [N, C, *S], as the model takes them; written to `probe.npz`.
            labels: the explained labels, or None; written to `probe.npz`.
            pictures: the images as the user sees them, [H, W, 3] in 0..255; written to `probe/`.
            masks: where the network should look, bool [N, 1, *S]; written to `probe.npz`. Default: None.

        Raises:
            OSError: if it cannot be written.
        """
        self._start = about, {"images": images, "labels": labels, "masks": masks}, pictures
        if self.folder is not None:
            self._write_start(self.folder)

    def add(self, snapshot: Snapshot, explanation: Explanation, labels: Tensor | None) -> None:
        """Adds a snapshot, and writes it if there is a folder.

        Args:
            snapshot: the numbers of the snapshot.
            explanation: all other data of the snapshot.
            labels: the original labels of the images, or None; they are written if they are [N].

        Raises:
            OSError: if it cannot be written. Then it is not in the history, and the next snapshot repairs the folder.
        """
        self.num_unwritten += 1
        if self.folder is not None:
            if self._sizes is None or self._sizes != self._file_sizes(self.folder):  # a snapshot is incomplete, or not from here
                self._repair(self.folder, explanation.maps.shape)
            self._sizes = None
            self._write(RunFiles(self.folder), snapshot, explanation, labels)
            self._sizes = self._file_sizes(self.folder)
        if not self.snapshots:
            self.first_maps = explanation.maps
        self.last_maps = explanation.maps
        for key, method in self.methods.items():
            method.keep(explanation.method_maps.get(key), is_first=not self.snapshots)
        self.snapshots.append(snapshot)
        self.num_unwritten -= 1

    def add_sheet(self, snapshot: Snapshot, sheet: npt.NDArray[np.uint8], method: str = "fullgrad") -> None:
        """Writes the overlays of a snapshot as one picture, for runs without a logger that takes images.

        Args:
            snapshot: the snapshot.
            sheet: the picture, [H, W, 3] in 0..255.
            method: key of the method of the overlays. Default: "fullgrad".
        """
        if self.folder is not None:
            folder = (self.folder if method == "fullgrad" else self.folder / method) / "saliency"
            folder.mkdir(parents=True, exist_ok=True)
            moment = f"epoch_{snapshot.epoch:04d}" if snapshot.num_steps is None else f"step_{snapshot.num_steps:07d}"
            _save_png(folder / f"{moment}.png", sheet)

    def _write_start(self, folder: Path) -> None:
        assert self._start is not None
        about, arrays, pictures = self._start
        (folder / "probe").mkdir(parents=True, exist_ok=True)
        for other in sibling_folders(folder):
            sweep(other, deeply=True)
        for i, picture in enumerate(pictures):
            _save_png(folder / "probe" / f"{i:03d}.png", picture)
        stored: dict[str, Any] = {name: _numpy(tensor) for name, tensor in arrays.items() if tensor is not None}
        with replace_file(folder / "probe.npz") as file:
            np.savez(file, **stored)
        write_json(folder / "probe.json", {"format": FORMAT, **about})

    def _write(self, files: RunFiles, snapshot: Snapshot, explanation: Explanation, labels: Tensor | None) -> None:
        index = len(self.snapshots)
        maps = explanation.maps
        for key, method in self.methods.items():
            method.write(files.folder, index, snapshot, explanation.method_maps.get(key), maps.shape)
        peaks = maps.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        files.maps.append((maps / peaks.reshape(-1, *(1,) * (maps.ndim - 1))).half().numpy())
        correct = [None if value is None else int(value) for value in explanation.correct(labels)]
        images = zip(explanation.image_cells(labels), peaks.tolist(), correct, strict=True)
        files.tables[IMAGES].append([(index, i, *cells, *rest) for i, (cells, *rest) in enumerate(images)])
        files.tables[LAYERS].append([(index, i, *layer.cells()) for i, layer in enumerate(explanation.layers)])
        files.tables[HISTORY].append([(index, *snapshot.cells())])

    # --- repair

    def _repair(self, folder: Path, shape: Sequence[int]) -> None:
        """Makes the folder hold exactly the snapshots of the history.

        Args:
            folder: folder of this run.
            shape: shape of a snapshot's maps, (N, 1, *S).
        """
        if self._earlier is not None and self._earlier.resolve() != folder.resolve():
            _copy_tree(self._earlier, folder)
        self._earlier = None
        if self._start is not None:
            self._write_start(folder)
        RunFiles(folder).repair(self.snapshots, self._lost, shape)
        for method in self.methods.values():
            method.repair(folder, self.snapshots, self._lost, shape)
        self._lost.clear()

    def _file_sizes(self, folder: Path) -> dict[Path, int]:
        """The sizes of the files of the history in bytes; -1 for missing files."""
        of_methods = [path for method in self.methods.values() for path in method.paths(folder)]
        paths = [*(folder / name for name in ("probe.json", MAPS, *COLUMNS)), *of_methods]
        return {path: path.stat().st_size if path.exists() else -1 for path in paths}

    def _earlier_maps(self, index: int) -> Tensor | None:
        """The maps of an earlier snapshot, each relative to its peak; None if they are lost."""
        if self._earlier is None or index in self._lost:
            return None
        try:
            return torch.from_numpy(RunFiles(self._earlier).maps.entry(index)).float()
        except (OSError, ValueError, IndexError):
            return None


def _copy_tree(source: Path, folder: Path) -> None:
    """Copies files and folders, with the permissions that umask gives them."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _copy_tree(path, folder / path.name)
        elif not path.name.startswith(PREFIX):
            shutil.copyfile(path, folder / path.name)


def _numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor as an array: bfloat16, which NumPy does not have, becomes float32."""
    array: npt.NDArray[Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


def _save_png(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    with replace_file(path) as file:
        file.write(encode_png(picture))
