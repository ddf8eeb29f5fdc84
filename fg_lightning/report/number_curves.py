"""The curves of a run's numbers: which numbers share a figure, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fg_lightning.history.records import Snapshot
from fg_lightning.metrics.border_and_corners import border_mask, corner_masks
from fg_lightning.report.figures import Figure, Line, Numbers, line_figure
from fg_lightning.report.manual import manual_link

FULLGRAD = "fullgrad"
"""The method whose numbers every run has."""


@dataclass(frozen=True)
class Curves:
    """Numbers that share a figure.

    Attributes:
        name: name of the figure.
        title: title of the figure.
        numbers: the numbers' names in the files, by their names on the page.
        meaning: explanation of the numbers.
        page: page of the manual that explains them.
        has_log_scale: whether the vertical axis is logarithmic. Default: False.
        are_of_maps: whether every method has these numbers, not only FullGrad. Default: True.
    """

    name: str
    title: str
    numbers: Mapping[str, str]
    meaning: str
    page: str
    has_log_scale: bool = False
    are_of_maps: bool = True


MOST_LINES = 6
"""Largest number of lines of several methods in one figure."""

NUMBERS_PAGE = "explanation/numbers.html"

CURVES = (
    Curves(
        "completeness",
        "Completeness error",
        {"mean": "completeness_error", "largest": "completeness_error_max"},
        "|f - sum of all terms| / |f|, mean and largest of the images. If it is not near zero, do not trust the maps. "
        "It checks the arithmetic, not whether the maps tell the truth.",
        f"{NUMBERS_PAGE}#completeness-error",
        has_log_scale=True,
        are_of_maps=False,
    ),
    Curves(
        "shares",
        "Share of the output",
        {"input": "input_share", "biases": "bias_share", "implicit biases": "implicit_share"},
        "How much of the explained output the input, the biases and the implicit biases contribute. The shares add up to 1. "
        "Below 0 or above 1: terms cancel.",
        f"{NUMBERS_PAGE}#shares",
        are_of_maps=False,
    ),
    Curves(
        "drift",
        "Drift of the maps",
        {"since the snapshot before": "drift", "since the first snapshot": "drift_from_untrained"},
        "1 - cosine similarity of an image's map with its earlier map, mean over the images. 0: the maps did not change.",
        f"{NUMBERS_PAGE}#drift",
    ),
    Curves(
        "concentration",
        "Concentration of the maps",
        {"Gini index": "concentration"},
        "Mean Gini index of the maps. 0: all pixels count alike. Near 1: few pixels count.",
        f"{NUMBERS_PAGE}#concentration",
    ),
    Curves(
        "border",
        "Relevance at the border",
        {"border": "border_share"},
        "Share of the map in the outer tenth of each side, mean over the images. Dotted: the share of a map that is the same "
        "everywhere.",
        f"{NUMBERS_PAGE}#border-and-corners",
    ),
    Curves(
        "corners",
        "Relevance in the corners",
        {
            "top left": "top_left_share",
            "top right": "top_right_share",
            "bottom left": "bottom_left_share",
            "bottom right": "bottom_right_share",
        },
        "Share of the map in each corner, mean over the images. One corner far above the others: look for a mark there. "
        "Dotted: the share of a map that is the same everywhere.",
        f"{NUMBERS_PAGE}#border-and-corners",
    ),
    Curves(
        "masks",
        "Relevance on the mask",
        {"relevance mass": "relevance_mass", "pointing game": "pointing_game"},
        "Relevance mass: share of the map on the mask. Pointing game: share of images whose most salient pixel lies on the mask.",
        f"{NUMBERS_PAGE}#relevance-mass-and-pointing-game",
    ),
)
"""All curves, in the order of the page."""


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of runs: epochs if no run has two snapshots in one epoch, else steps."""

    is_by_epoch: bool

    @classmethod
    def of(cls, *runs: Sequence[Snapshot]) -> Axis:
        are_by_step = any(snapshot.num_steps is not None for run in runs for snapshot in run)
        return cls(not are_by_step and all(len({snapshot.epoch for snapshot in run}) == len(run) for run in runs))

    @property
    def label(self) -> str:
        return "epoch" if self.is_by_epoch else "step"

    def place(self, snapshot: Snapshot) -> int:
        if self.is_by_epoch:
            return snapshot.epoch
        return snapshot.step if snapshot.num_steps is None else snapshot.num_steps

    def title(self, snapshot: Snapshot) -> str:
        """The name of a snapshot, unique in its run."""
        return "untrained" if snapshot.is_untrained else f"{self.label} {self.place(snapshot)}"

    def moment(self, snapshot: Snapshot) -> str:
        """The title of a snapshot, followed by its step or epoch, whichever the title does not contain."""
        other = f"step {snapshot.step}" if self.is_by_epoch else f"epoch {snapshot.epoch}"
        return f"{self.title(snapshot)}, {other}"


def run_figures(
    snapshots: Sequence[Snapshot], numbers: Mapping[str, Sequence[Mapping[str, float]]], map_size: tuple[int, int] | None
) -> list[Figure]:
    """The curves of a run.

    Args:
        snapshots: the snapshots, in order.
        numbers: for each method, FullGrad's first, the numbers of each snapshot by name.
        map_size: height and width of a map. None if there are no maps.
    """
    axis = Axis.of(snapshots)
    places = [axis.place(snapshot) for snapshot in snapshots]
    figures = []
    for curves in CURVES:
        known: dict[str, list[Line]] = {}
        for method, of_snapshots in numbers.items():
            for words, number in curves.numbers.items() if method == FULLGRAD or curves.are_of_maps else ():
                values = round_numbers([of_snapshot.get(number) for of_snapshot in of_snapshots])
                if has_values(values):
                    of_method = known.setdefault(method, [])
                    of_method.append(Line(words, places, values, len(of_method)))
        if len(known) < 2 or sum(map(len, known.values())) > MOST_LINES:  # a figure for each method
            for method, lines in known.items():
                figures.append(draw(curves, lines, axis, map_size, "" if method == FULLGRAD else method))
        else:
            named = [(method, line) for method, lines in known.items() for line in lines]
            lines = [replace(line, name=f"{method}: {line.name}", style=i) for i, (method, line) in enumerate(named)]
            figures.append(draw(curves, lines, axis, map_size))
    return figures


def draw(curves: Curves, lines: Sequence[Line], axis: Axis, map_size: tuple[int, int] | None, suffix: str = "") -> Figure:
    """The figure of some lines of these curves."""
    return line_figure(
        "-".join([curves.name, *suffix.split()]),
        f"{curves.title}: {suffix}" if suffix else curves.title,
        lines,
        xlabel=axis.label,
        log_scale=curves.has_log_scale,
        reference=None if map_size is None else uniform_share(curves.name, map_size),
        meaning=curves.meaning,
        link=manual_link(curves.page),
    )


def uniform_share(name: str, size: Sequence[int]) -> float | None:
    """The share of a constant map that lies in the border or in a corner. None for other curves."""
    if name not in ("border", "corners"):
        return None
    mask = border_mask(size) if name == "border" else next(iter(corner_masks(size).values()), None)
    return None if mask is None else float(mask.double().mean())


def known_numbers(runs: Sequence[Mapping[str, Sequence[Mapping[str, float]]]]) -> Iterator[tuple[Curves, str, str, str]]:
    """Every number that at least one of several runs has: its curves, its name on the page, its method, its name in the files.

    Args:
        runs: the numbers of each run, as for `run_figures`.
    """
    methods = list(dict.fromkeys(method for run in runs for method in run))
    for curves in CURVES:
        for method in methods if curves.are_of_maps else [FULLGRAD]:
            for words, number in curves.numbers.items():
                if any(number in of_snapshot for run in runs for of_snapshot in run.get(method, [])):
                    yield curves, words, method, number


def has_values(values: Numbers) -> bool:
    return any(value is not None for value in values)


def round_numbers(values: Numbers, num_digits: int = 5) -> list[float | None]:
    """Rounds numbers to `num_digits` significant digits. Infinity and NaN, which JSON does not have, become None."""
    return [None if value is None or not math.isfinite(value) else float(f"{value:.{num_digits}g}") for value in values]
