"""Compares several runs that explain the same images: checks them, names them, and measures how far their maps differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from fg_lightning.errors import CannotRun, list_briefly
from fg_lightning.history import Run, read_run
from fg_lightning.report.number_curves import Axis
from fg_lightning.report.run_content import RunContent, Track
from fg_lightning.report.run_folders import is_run, locate_run

DEFAULTS = {"psi": "absolute", "target": "None", "task": None, "reading": "exact", "implicit": "True"}
"""Settings in `probe.json` that change the maps, and their values if they are missing there."""


@dataclass(frozen=True, eq=False)
class ComparedRuns:
    """Runs that explain the same images, and the snapshots that they share.

    Attributes:
        names: short names of the runs: the parts of their paths that differ.
        contents: contents of the runs.
        axis: axis of the snapshots: epochs or steps.
        moments: for each epoch or step that all runs have, the index of its snapshot in each run.
        methods: names of the methods that all runs have, FullGrad's first.
    """

    names: list[str]
    contents: list[RunContent]
    axis: Axis
    moments: list[tuple[int, ...]]
    methods: list[str]

    @property
    def warnings(self) -> list[str]:
        """Sentences on why the comparison is of little use. Empty if there are none."""
        first = self.contents[0]
        if any(len(content.snapshots) > 1 for content in self.contents) and all(
            first.snapshots[places[0]].is_untrained for places in self.moments
        ):
            return [
                "These runs share only the snapshot of the untrained network, so only these maps are compared. "
                "Take snapshots at the same moments in all runs, for example with every_n_epochs."
            ]
        return []

    @property
    def notes(self) -> list[str]:
        """Sentences on what could not be read and what is not compared."""
        notes = self.warnings
        notes += [f"{name}: {note}" for name, content in zip(self.names, self.contents, strict=True) for note in content.notes]
        for name, content in zip(self.names, self.contents, strict=True):
            left_out = len(content.snapshots) - len(self.moments)
            if left_out:
                notes.append(
                    f"{name}: {left_out} of {len(content.snapshots)} snapshots lie at {self.axis.label}s that other runs do not "
                    "have. They appear only in the curves."
                )
        return notes

    def distances(self, method: str, track: Track = lambda what, items: items) -> npt.NDArray[np.float64]:
        """The cosine distance of two runs' maps of each image, [moments, runs, runs, N]. NaN for lost maps."""
        num_runs, num_images = len(self.contents), len(self.contents[0].run.pictures)
        distances = np.full((len(self.moments), num_runs, num_runs, num_images), np.nan)
        sources = [next(m for m in content.methods if m.method == method) for content in self.contents]
        for moment, places in track("comparing maps", list(enumerate(self.moments))):
            units = torch.full((num_runs, num_images, 1), torch.nan)
            for run, (source, content, place) in enumerate(zip(sources, self.contents, places, strict=True)):
                index = content.indices[place]
                if source.maps is not None and index < len(source.maps):
                    maps = torch.from_numpy(np.array(source.maps[index])).double().flatten(1)
                    maps = torch.cat([maps, ~maps.any(1, keepdim=True)], 1)  # two maps that are zero everywhere are the same
                    if units.shape[-1] != maps.shape[1]:
                        units = units.new_full((num_runs, num_images, maps.shape[1]), torch.nan).double()
                    units[run] = F.normalize(maps)
            distances[moment] = (1 - torch.einsum("anp,bnp->abn", units, units)).clamp_min(0).numpy()
        return distances


def read_compared_runs(folders: Sequence[Union[str, Path]], track: Track = lambda what, items: items) -> ComparedRuns:
    """Reads the runs of a comparison.

    Args:
        folders: two or more folders, each of a run, or above its only `fullgrad/`.
        track: see `write_report`.

    Raises:
        CannotRun: if they cannot be compared.
    """
    located = [locate_run(Path(folder)) for folder in folders]
    for path in located:
        if not is_run(path):
            raise CannotRun(f"{path} is an experiment, but only monitored runs can be compared; write its report separately")
        if located.count(path) > 1:
            raise CannotRun(f"{path} was given twice; give different runs")
    names = distinguish(located)
    runs = [read_run(path) for path in located]
    for name, run in zip(names[1:], runs[1:], strict=True):
        check_comparable(names[0], runs[0], name, run)
    axis = Axis.of(*(list(run.snapshots.values()) for run in runs))
    places = [{axis.place(snapshot): i for i, snapshot in enumerate(run.snapshots.values())} for run in runs]
    shared = [place for place in places[0] if all(place in others for others in places)]
    if not shared:
        advice = "take snapshots at the same moments (every_n_epochs)"
        raise CannotRun(f"the runs {list_briefly(names)} have no snapshot at the same {axis.label}; {advice}")
    contents: list[RunContent] = []
    for run in runs:
        encoding = contents[0].encoding if contents else None
        contents.append(RunContent(run, encoding, track=track, num_sharing=len(run.snapshots) * len(runs)))
    common = [m.method for m in contents[0].methods if all(m.method in [o.method for o in c.methods] for c in contents)]
    return ComparedRuns(names, contents, axis, [tuple(of_run[place] for of_run in places) for place in shared], common)


def check_comparable(name: str, run: Run, other_name: str, other: Run) -> None:
    """Checks that the maps of two runs can be compared.

    Raises:
        CannotRun: if the runs explain different images, or explain them with different settings.
    """
    refused = f"{name} and {other_name} cannot be compared: "
    for which, about in ((name, run.about), (other_name, other.about)):
        if "fingerprint" not in about:
            raise CannotRun(
                f"{refused}the probe.json of {which} is missing or damaged, so its images are unknown; restore the file"
            )
    if run.about["fingerprint"] != other.about["fingerprint"]:
        advice = "; give both runs the same images and labels, FullGradMonitor(probe=(images, labels))"
        raise CannotRun(f"{refused}they explain different images: {_name_difference(run.about, other.about)}{advice}")
    for setting, default in DEFAULTS.items():
        values = run.about.get(setting, default), other.about.get(setting, default)
        if values[0] != values[1]:
            raise CannotRun(f"{refused}{setting} is {values[0]} in one and {values[1]} in the other; use the same setting in both")
    sizes = [None if r.maps is None else r.maps.shape[1:] for r in (run, other)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise CannotRun(f"{refused}maps have shape {list(sizes[0] or ())} in one and {list(sizes[1] or ())} in the other")


def _name_difference(about: dict[str, Any], other: dict[str, Any]) -> str:
    shapes = about.get("images"), other.get("images")
    if shapes[0] != shapes[1]:
        return f"shape {shapes[0]} and shape {shapes[1]}"
    if about.get("labels") != other.get("labels"):
        return "the same shape, but different labels"
    return "the same shape and labels, but different pixels"


def distinguish(folders: Sequence[Path]) -> list[str]:
    """Short names of folders: the parts of their paths that differ, without `fullgrad` at the end."""
    parts = [folder.parts[:-1] if folder.name == "fullgrad" else folder.parts for folder in folders]
    start = _num_shared(parts)
    end = min(_num_shared([of_path[::-1] for of_path in parts]), min(map(len, parts)) - start)
    names = ["/".join(of_path[start : len(of_path) - end]) or of_path[-1] for of_path in parts]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _num_shared(paths: Sequence[Sequence[str]]) -> int:
    """The number of parts that all paths share at their beginning."""
    return sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))
