"""Writes maps.npz: the maps of every picture as plain numbers, which numpy reads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from fg_lightning.atomic_files import name_file_in_errors, replace_file


class MapsFile:
    """Collects maps in temporary files, so that the number of pictures does not matter, and writes them as one `maps.npz`.

    `numpy.load` reads it without pickle. It holds an array for every method by its name: [N, 1, H, W] in float32, a row for each
    picture. If pictures differ in size, there is an array for each picture instead: "fullgrad/0", "fullgrad/1" and so on,
    [1, H, W].

    Args:
        folder: folder of the file. It must exist when the first maps are added.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "maps.npz"
        self._collected: dict[str, BinaryIO] = {}
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def add(self, method: str, maps: Float[Tensor, "n 1 h w"]) -> None:
        """Adds the maps of more pictures.

        Raises:
            OSError: if the disk is full.
        """
        with name_file_in_errors(self.path):
            if method not in self._collected:
                self._collected[method] = TemporaryFile(dir=self.path.parent)  # noqa: SIM115 - open until `close`; nameless
            rows = maps.detach().float().cpu().contiguous().numpy().astype("<f4", copy=False)
            self._collected[method].write(rows.tobytes())
            self._shapes.setdefault(method, []).extend([rows.shape[1:]] * len(rows))

    def write(self, methods: Sequence[str], columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Writes the file.

        Args:
            methods: names of the methods to write.
            columns: further arrays by name, with one entry for each picture.

        Raises:
            OSError: if it cannot be written. An older file then stays.
        """
        with replace_file(self.path) as file, ZipFile(file, "w") as archive:
            for name, column in columns.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, column, allow_pickle=False)
            for method in methods:
                self._write_maps(archive, method)

    def close(self) -> None:
        """Deletes the collected maps and their temporary files."""
        for collected in self._collected.values():
            with suppress(OSError):  # on a full disk, the rest of the buffer cannot be written
                collected.close()
        self._collected.clear()
        self._shapes.clear()

    def _write_maps(self, archive: ZipFile, method: str) -> None:
        collected, shapes = self._collected[method], self._shapes[method]
        collected.seek(0)
        arrays = {method: (len(shapes), *shapes[0])}
        if len(set(shapes)) > 1:
            arrays = {f"{method}/{row}": shape for row, shape in enumerate(shapes)}
        for name, shape in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
                if name == method:
                    shutil.copyfileobj(collected, member)
                else:
                    member.write(collected.read(4 * int(np.prod(shape))))
