"""Explains pictures with several methods: overlays, maps, a table of predictions, and perturbation curves."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import Attribution
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from fg_lightning.atomic_files import replace_file, sweep, write_atomically
from fg_lightning.attribution import METHODS, Factory, find_method
from fg_lightning.errors import CannotRun
from fg_lightning.explain.load_network import Network, Prediction, predict
from fg_lightning.explain.maps_file import MapsFile
from fg_lightning.explain.perturbation_curves import FEW, PerturbationCurves
from fg_lightning.explain.pictures import overlay_names, read_picture, stack_batches
from fg_lightning.explain.time_estimate import Stopwatch
from fg_lightning.fullgrad import FullGrad
from fg_lightning.removal.pixel_ranking import check_maps
from fg_lightning.visualization.image_grids import comparison


def find_methods(methods: str | Sequence[str]) -> dict[str, Factory]:
    """The factories of methods, by name.

    Args:
        methods: names separated by commas, a list of names, or "all".

    Raises:
        CannotRun: if a name is unknown, or there is none.
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

    A picture that cannot be read is skipped, and the console shows why. If a method cannot explain this network, the console, every
    overlay and the plot show why.

    Args:
        network: the network to explain.
        methods: factories of the methods, by name.
        target: the class to explain, by index or name. None: the predicted class.
        output: folder of the results. It is created when the first file is written.
        device: "cpu", "cuda" or any other device of torch; "auto" for a GPU if there is one. Default: "auto".
        curves: measures how the output changes as pixels are replaced. Default: not measured.
        num_overlays: number of pictures that get an overlay, the first ones. Default: all.
        save_maps: whether to write the maps to `maps.npz`. Default: True.
        console: console of rich for the progress and the notes. Default: the terminal.

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
        save_maps: bool = True,
        console: Console | None = None,
    ) -> None:
        self.network = network
        self.target = None if target is None else network.index_of(target)
        self.output = output
        self.curves = curves
        self.num_overlays = num_overlays
        self.missing: dict[str, str] = {}
        """For each method without a map, the reason."""
        self._maps_file = MapsFile(output) if save_maps else None
        self._console = console or Console()
        self._notes: dict[str, dict[str, None]] = {name: {} for name in methods}
        self._errors: dict[str, list[Tensor]] = {}
        self._constant: dict[str, list[Tensor]] = {}
        try:
            self.device = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
            network.model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:  # torch raises AssertionError if it was built without CUDA
            raise CannotRun(str(error)) from error
        self._attributions: dict[str, Attribution] = {name: factory(network.model) for name, factory in methods.items()}

    def run(self, files: Sequence[Path], batch_size: int) -> dict[str, str]:
        """Explains all the files and writes the results.

        The first picture is explained alone. Its time gives the estimate of the time for the others, which the console shows.

        Args:
            files: the pictures.
            batch_size: number of images that are explained at once, except the first one.

        Returns:
            The paths of the files, by what they hold.

        Raises:
            CannotRun: if no file can be read, no method works, the network fails on the images, or a file cannot be written.
        """
        _check_folder(self.output)
        sweep(self.output)
        sweep(self.output / "overlays", deeply=True)
        try:
            return self._explain_files(files, batch_size)
        finally:
            if self._maps_file is not None:
                self._maps_file.close()

    def _explain_files(self, files: Sequence[Path], batch_size: int) -> dict[str, str]:
        names = overlay_names(files)
        explained: list[Path] = []
        predictions: list[Prediction] = []
        stopwatch = Stopwatch()
        columns = (TextColumn("{task.description:20}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task("reading", total=len(files))
            for paths, images in self._batches(files, batch_size):
                images = images.to(self.device)
                prediction = predict(self.network, images, self.target)
                maps: dict[str, Tensor] = {}
                for method in list(self._attributions):
                    bar.update(task, description=method)
                    with stopwatch.measure(method) if not explained else nullcontext():
                        own = self._attribute(method, images, prediction.target)
                    if own is not None:
                        maps[method] = own
                    if explained:
                        bar.advance(task, len(paths) * stopwatch.share(method))
                drawn = paths if self.num_overlays is None else paths[: max(0, self.num_overlays - len(explained))]
                with _name_write_faults(self.output):
                    self._save([self.output / "overlays" / names[path] for path in drawn], images, maps, prediction)
                explained += paths
                predictions.append(prediction)
                bar.update(task, completed=len(explained))
                if len(predictions) == 1 and len(files) > 1:
                    self._console.print(stopwatch.estimate(len(files) - 1), highlight=False, markup=False, soft_wrap=True)
            bar.update(task, description="done", completed=len(files))
        with _name_write_faults(self.output):
            return self._write_tables(explained, predictions, len(files))

    def _batches(self, files: Sequence[Path], size: int) -> Iterator[tuple[list[Path], Tensor]]:
        """The pictures that can be read: the first one alone, the others in batches."""
        pictures = self._readable(files)
        yield from stack_batches(islice(pictures, 1), 1)
        yield from stack_batches(pictures, size)

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
        """The maps of a method, after measuring them. None if it cannot explain this network; it is then skipped from now on."""
        try:
            with warnings.catch_warnings(record=True) as given:
                warnings.simplefilter("default")
                maps, errors = _explain(self._attributions[method], images, target)
            self._note(method, [str(warning.message) for warning in given])
            check_maps(maps, images)
        except torch.OutOfMemoryError as error:
            raise CannotRun(f"{method} needs more memory than the device has; use a smaller --batch_size or --size") from error
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:  # Captum raises AssertionError
            self._leave_out(f"{method}: {error}")
            del self._attributions[method]
            kind = "does not apply" if isinstance(error, ValueError) else "failed"
            self.missing[method] = f"{kind}: {' '.join(str(error).split())}"
            if not self._attributions:
                raise CannotRun("none of the methods can explain this network; choose others with --methods") from error
            return None
        flat = maps.detach().flatten(1)
        self._constant.setdefault(method, []).append((flat.amax(1) == flat.amin(1)).cpu())
        if errors is not None:
            self._errors.setdefault(method, []).append(errors.cpu())
        if self._maps_file is not None:
            with _name_write_faults(self.output):
                self.output.mkdir(parents=True, exist_ok=True)
                self._maps_file.add(method, maps)
        if self.curves is not None:
            self.curves.update(method, self.network.model, images, maps, target)
        return maps

    def _save(self, paths: Sequence[Path], images: Tensor, maps: dict[str, Tensor], prediction: Prediction) -> None:
        """Writes the overlays of the first images of a batch, one for each path."""
        for i, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            own = {method: maps[method][i] if method in maps else self.missing[method] for method in self._notes}
            notes = {method: self._lines_below(method, i - len(images)) for method in maps}
            caption = prediction.captions[i]
            with replace_file(path) as file:
                picture = comparison(images[i], own, caption=caption, notes=notes, normalization=self.network.normalization)
                picture.save(file, "PNG")

    def _lines_below(self, method: str, i: int) -> str:
        """The lines below the name of a method: the completeness error of an image of the last batch, and its warnings."""
        lines = [f"completeness error {_digits(self._errors[method][-1][i])}"] if method in self._errors else []
        if self._constant[method][-1][i]:
            lines.append("constant: this map does not rank pixels")
        return "\n".join([*lines, *(note.removeprefix(f"{method} ") for note in self._notes[method])])

    def _write_tables(self, pictures: Sequence[Path], predictions: Sequence[Prediction], num_files: int) -> dict[str, str]:
        """Writes the table, the maps and the curves. Returns the paths of the files, by what they hold."""
        self.output.mkdir(parents=True, exist_ok=True)
        methods = list(self._attributions)
        errors = {f"{name}_completeness_error": torch.cat(parts).numpy() for name, parts in self._errors.items() if name in methods}
        rows: list[dict[str, Any]] = [row for prediction in predictions for row in prediction.rows]
        rows = [{"picture": str(picture)} | row for picture, row in zip(pictures, rows, strict=True)]
        for name, column in errors.items():
            for row, value in zip(rows, column, strict=True):
                row[name] = _digits(value)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        table = self.output / "predictions.csv"
        write_atomically(table, text.getvalue())
        drawn = len(rows) if self.num_overlays is None else min(self.num_overlays, len(rows))
        written = {"overlays": f"{self.output / 'overlays'}  ({drawn} of {num_files} pictures)"} if drawn else {}
        written["predictions"] = str(table)
        if self._maps_file is not None:
            targets = [np.full(len(part.rows), -1) if part.target is None else part.target.cpu().numpy() for part in predictions]
            names = np.array([row["picture"] for row in rows])
            columns = {"pictures": names, "targets": np.concatenate(targets).astype("<i8"), "methods": np.array(methods), **errors}
            self._maps_file.write(methods, columns)
            written["maps"] = f"{self._maps_file.path}  ({self._maps_file.path.stat().st_size / 1e6:.1f} MB)"
        if self.curves is not None:
            paths = self.curves.write(self.output, pictures, methods, self.missing, self._notes_of_curves(methods))
            written |= {what: str(where) for what, where in paths.items()}
            if len(rows) < FEW:
                self._print("note: " + self.curves.describe_mean(len(rows)))
        return written

    def _notes_of_curves(self, methods: Sequence[str]) -> dict[str, str]:
        """The limits of the methods' curves, by method."""
        for method in methods:
            flat = torch.cat(self._constant[method])
            if num_constant := int(flat.sum()):
                order = f"{method}: {num_constant} of {len(flat)} maps are constant, and their pixels are replaced in random order"
                self._note(method, [order])
        return {method: "; ".join(self._notes[method]) for method in methods if self._notes[method]}

    def _note(self, method: str, messages: Sequence[str]) -> None:
        """Prints the warnings of a method, each once in a session, and keeps them for its pictures."""
        for message in messages:
            if not any(message in notes for notes in self._notes.values()):
                self._print(f"note: {message}")
            self._notes[method][message] = None

    def _leave_out(self, why: str) -> None:
        self._print(f"left out: {why}")

    def _print(self, line: str) -> None:
        self._console.print(line, style="yellow", highlight=False, markup=False, emoji=False, soft_wrap=True)


def _explain(attribution: Attribution, images: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The maps of a method, [N, 1, H, W]; for FullGrad, if its map contains all terms, also the completeness errors, [N]."""
    if isinstance(attribution, FullGrad) and attribution.is_complete:
        maps, terms = attribution.attribute_with_terms(images, target)
        return maps, terms.completeness_error
    return attribution.attribute(images, target=target), None


def _digits(value: Any) -> str:
    return f"{float(value):.2g}"


@contextmanager
def _name_write_faults(folder: Path) -> Iterator[None]:
    """Turns errors of writing to a folder into one sentence.

    Raises:
        CannotRun: if a file of the folder cannot be written. An older file then stays.
    """
    try:
        yield
    except OSError as error:
        if not str(error.filename).startswith((os.path.realpath(folder), str(folder))):
            raise
        raise CannotRun(
            f"{error.filename} cannot be written: {error.strerror}; make room, or use another folder with --output"
        ) from error


def _check_folder(folder: Path) -> None:
    """Checks that results can be written to a folder.

    Raises:
        CannotRun: if the folder cannot be created or written to.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise CannotRun(f"{there} is a file, so the folder {folder} cannot be created; use another one with --output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CannotRun(f"you have no permission to write to {there}; use another folder with --output")
