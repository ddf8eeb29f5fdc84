"""Explains pictures with several methods: overlays, a table of predictions, and perturbation curves."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from captum.attr import Attribution
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from fg_lightning.atomic_files import replace_file, sweep, write_atomically
from fg_lightning.attribution import METHODS, Factory, find_method
from fg_lightning.errors import CannotRun
from fg_lightning.explain.load_network import Network, Prediction, predict
from fg_lightning.explain.perturbation_curves import PerturbationCurves
from fg_lightning.explain.pictures import overlay_names, read_picture, stack_batches
from fg_lightning.removal.pixel_ranking import check_maps
from fg_lightning.visualization.image_grids import comparison


def find_methods(methods: str | Sequence[str]) -> dict[str, Factory]:
    """The factories of methods, by name.

    Args:
        methods: names with commas between them, a list of them, or "all".

    Raises:
        CannotRun: if a name is no method's.
    """
    names = [name.strip() for name in methods.split(",")] if isinstance(methods, str) else list(methods)
    if not names:
        raise CannotRun("--methods must have at least one name, such as fullgrad")
    try:
        return {name: find_method(name) for name in (METHODS if names == ["all"] else names)}
    except ValueError as error:
        raise CannotRun(str(error)) from error


class Session:
    """Explains pictures with several methods.

    A picture that cannot be read, and a method that cannot explain this network, is named on the console and left out.

    Args:
        network: the network to explain.
        methods: the factories of the methods, by name.
        target: a class by index or name; None for the predicted one.
        output: a folder, made when something is written to it.
        device: cpu, cuda, or any other of torch's; "auto" for a GPU if there is one.
        curves: measures how the output changes as pixels are replaced; None to leave that out.
        num_overlays: the number of pictures that get an overlay, the first ones. None for all.
        console: shows the progress and the notes. Default: the terminal.

    Raises:
        CannotRun: if the class or the device is unknown.
    """

    def __init__(
        self,
        network: Network,
        methods: Mapping[str, Factory],
        target: int | str | None,
        output: Path,
        device: str = "auto",
        curves: PerturbationCurves | None = None,
        num_overlays: int | None = None,
        console: Console | None = None,
    ) -> None:
        self.network = network
        self.target = None if target is None else network.index_of(target)
        self.output = output
        self.curves = curves
        self.num_overlays = num_overlays
        self._console = console or Console()
        self._warned: set[str] = set()
        try:
            self.device = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
            network.model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:  # the last is torch's if it was built without CUDA
            raise CannotRun(str(error)) from error
        self._attributions: dict[str, Attribution] = {name: factory(network.model) for name, factory in methods.items()}

    def run(self, files: Sequence[Path], batch_size: int) -> dict[str, str]:
        """Explains all the files and writes the results.

        Returns:
            What was written, and where.

        Raises:
            CannotRun: if no file can be read, no method works, the network does not take the images, or nothing can be written.
        """
        _check_folder(self.output)
        sweep(self.output)
        sweep(self.output / "overlays", deeply=True)
        names = overlay_names(files)
        rows: list[dict[str, object]] = []
        columns = (TextColumn("{task.description:20}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task("reading", total=len(files) * len(self._attributions))
            for paths, images in stack_batches(self._readable(files), batch_size):
                images = images.to(self.device)
                prediction = predict(self.network, images, self.target)
                maps: dict[str, Tensor] = {}
                for method in list(self._attributions):
                    bar.update(task, description=method)
                    own = self._attribute(method, images, prediction.target)
                    if own is not None:
                        maps[method] = own
                    bar.advance(task, len(paths))
                drawn = paths if self.num_overlays is None else paths[: max(0, self.num_overlays - len(rows))]
                with _name_write_faults(self.output):
                    self._save([self.output / "overlays" / names[path] for path in drawn], images, maps, prediction)
                rows += [{"picture": path} | row for path, row in zip(paths, prediction.rows, strict=True)]
            bar.update(task, description="done", completed=len(files) * len(self._attributions))
        with _name_write_faults(self.output):
            return self._write_tables(rows, len(files))

    def _readable(self, files: Sequence[Path]) -> Iterator[tuple[Path, Tensor]]:
        """The pictures that can be read."""
        failures = []
        for path in files:
            try:
                image = read_picture(path, self.network.transform)
            except CannotRun as error:
                failures.append(error)
                self._leave_out(str(error))
                continue
            yield path, image
        if len(failures) == len(files):
            raise CannotRun(f"none of {len(files)} pictures can be read; the first: {failures[0]}")

    def _attribute(self, method: str, images: Tensor, target: Tensor | None) -> Tensor | None:
        """The maps of a method, measured as well; None, and none from now on, if it cannot explain this network."""
        try:
            with warnings.catch_warnings(record=True) as given:
                warnings.simplefilter("default")
                maps: Tensor = self._attributions[method].attribute(images, target=target)
            self._note({str(warning.message) for warning in given})
            check_maps(maps, images)
        except torch.OutOfMemoryError as error:
            raise CannotRun(f"{method} takes more memory than there is; take a smaller --batch_size or --size") from error
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:  # the last is Captum's
            self._leave_out(f"{method}: {error}")
            del self._attributions[method]
            if not self._attributions:
                raise CannotRun("no method is left that could explain this network") from error
            return None
        if self.curves is not None:
            self.curves.update(method, self.network.model, images, maps, target)
        return maps

    def _save(self, paths: Sequence[Path], images: Tensor, maps: dict[str, Tensor], prediction: Prediction) -> None:
        """The overlays of the first images of a batch, a picture for each path."""
        for i, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            own = {method: batch[i] for method, batch in maps.items()}
            caption = prediction.captions[i]
            with replace_file(path) as file:
                comparison(images[i], own, caption=caption, normalization=self.network.normalization).save(file, "PNG")

    def _write_tables(self, rows: Sequence[dict[str, Any]], num_pictures: int) -> dict[str, str]:
        """Writes the table and the curves. Returns what was written, and where."""
        self.output.mkdir(parents=True, exist_ok=True)
        table = self.output / "predictions.csv"
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(table, text.getvalue())
        drawn = len(rows) if self.num_overlays is None else min(self.num_overlays, len(rows))
        written = {"overlays": f"{self.output / 'overlays'}  ({drawn} of {num_pictures} pictures)"} if drawn else {}
        written["predictions"] = str(table)
        if self.curves is not None:
            written |= self.curves.write(self.output, list(self._attributions))
        return written

    def _note(self, warned: set[str]) -> None:
        """Prints the warnings of a method, each once a session."""
        for message in sorted(warned - self._warned):
            self._console.print(f"note: {message}", style="yellow", highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._warned |= warned

    def _leave_out(self, why: str) -> None:
        self._console.print(f"left out: {why}", style="yellow", highlight=False, markup=False, emoji=False, soft_wrap=True)


@contextmanager
def _name_write_faults(folder: Path) -> Iterator[None]:
    """
    Raises:
        CannotRun: if a file of the folder cannot be written; the one that was there before still is.
    """
    try:
        yield
    except OSError as error:
        if not str(error.filename).startswith((os.path.realpath(folder), str(folder))):
            raise
        raise CannotRun(
            f"{error.filename} cannot be written: {error.strerror}; make room, or name another folder with --output"
        ) from error


def _check_folder(folder: Path) -> None:
    """
    Raises:
        CannotRun: if no such folder can be made or written to.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise CannotRun(f"{there} is a file, so that there cannot be a folder {folder}; name another one with --output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CannotRun(f"nothing may be written to {there}; name another folder with --output")
