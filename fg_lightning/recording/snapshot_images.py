"""The pictures of a snapshot, for a logger or a file, and the pictures of the whole run."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from fg_lightning.atomic_files import replace_file
from fg_lightning.history import History
from fg_lightning.history.class_names import WRONG, ClassNames
from fg_lightning.history.records import Explanation, ImageRow, Snapshot, shares_by_layer
from fg_lightning.loggers import Pictures
from fg_lightning.recording.task import Binary, Chosen, Classes, Entry, ProbeTarget, Regions, Task
from fg_lightning.visualization.depth_map import depth_map
from fg_lightning.visualization.film_strips import MAX_SNAPSHOTS, animation, film_strip, save_animation, spread_indices
from fg_lightning.visualization.image_grids import pil_to_rgb
from fg_lightning.visualization.png_encoding import encode_png
from fg_lightning.visualization.saliency_overlay import RGB, Normalization, any_negative, describe_flat, overlays_rgb, planar

MOST_FRAMES = 60
"""Largest number of snapshots in an animation."""

DISPLAY_NAMES = {"fullgrad": "FullGrad"}
"""Names of methods in titles. Other methods have their keys as names."""


@dataclass(frozen=True, eq=False)
class Strip:
    """The content of a film strip or an animation.

    Attributes:
        snapshots: the title and the maps of each snapshot.
        captions: for each snapshot, the prediction for each image.
        marked: for each snapshot, whether the prediction for each image is wrong.
        last_rows: rows of `images.csv` of the last snapshot of the run.
    """

    snapshots: list[tuple[str, Tensor]]
    captions: list[list[str]]
    marked: list[list[bool]]
    last_rows: list[ImageRow]


@dataclass(frozen=True, eq=False)
class Renderer:
    """Draws the explanations of one probe.

    Attributes:
        images: the images of the probe, [N, C, *S], as the model takes them.
        pictures_of_images: the same images as the user sees them, [H, W, 3] in 0..255.
        labels: the original labels of the images; None without labels.
        normalization: is undone in the pictures; None if it is unknown.
        classes: the names of the classes.
        masks: where the network should look, bool [N, 1, *S]. Default: None, for unknown.
        explained: a description of what is explained. Default: "the output".
    """

    images: Tensor
    pictures_of_images: Sequence[RGB]
    labels: Tensor | None
    normalization: Normalization | None
    classes: ClassNames
    masks: Bool[Tensor, "n 1 *s"] | None = None
    explained: str = "the output"

    def pictures(self, snapshot: Snapshot, explanation: Explanation, method: str = "fullgrad") -> Pictures:
        """Overlays of the maps of a method, captions and the rows of a table."""
        n, answers = len(self.pictures_of_images), explanation.answers
        columns = [_values(v, n) for v in (self.labels, answers.explained, answers.predicted, answers.confidence)]
        correct = explanation.correct(self.labels)
        label, explained, prediction = ([self.classes.name_of(value) for value in column] for column in columns[:3])
        maps = planar(explanation.maps if method == "fullgrad" else explanation.method_maps[method])
        is_signed = any_negative(maps)
        return Pictures(
            key=f"{method}/saliency",
            title=snapshot.title,
            subject=self._subject(method),
            overlays=overlays_rgb(self.pictures_of_images, maps, is_signed=is_signed),
            captions=[
                "\n".join(filter(None, [self.classes.caption(*of_image), (flat := describe_flat(saliency)) and f"map: {flat}"]))
                for saliency, *of_image in zip(maps, *columns, correct, strict=True)
            ],
            marked=[is_correct is False for is_correct in correct],
            masks=self.masks,
            table_key=f"{method}/table",
            table={
                "image": self.pictures_of_images,
                "number": list(range(n)),
                "epoch": [snapshot.epoch] * n,
                "step": [snapshot.step] * n,
                "label": label,
                "explained": explained,
                "prediction": prediction,
                **({} if answers.confidence is None else {"confidence": columns[3]}),
                **({} if all(is_correct is None for is_correct in correct) else {"correct": correct}),
                "completeness_error": explanation.terms["completeness_error"].tolist(),
            },
            is_signed=is_signed,
        )

    def draw_run(
        self, history: History, methods: Iterable[str] = ("fullgrad",), *, with_animation: bool = False
    ) -> dict[str, Image.Image | Path]:
        """Draws the film strips, the bias terms by depth, and the animation, into the folder of the history.

        Args:
            history: of the run.
            methods: the methods whose pictures are returned. FullGrad's strip and animation are drawn in any case. Default:
                FullGrad.
            with_animation: whether to draw the animation. Default: False.

        Returns:
            The pictures, and the path of the animation, by log key. Empty without a folder or snapshots.

        Raises:
            OSError: if a file cannot be written.
            ValueError: if the maps of all snapshots are lost.
        """
        if history.folder is None or not history.snapshots:
            return {}
        strips = self.draw_strips(history, ["fullgrad", *history.methods])
        drawn = {"fullgrad/bias_terms": plot_bias_terms(history, self.explained), **strips}
        for key, picture in drawn.items():
            with replace_file(history.folder / f"{key.removeprefix('fullgrad/')}.png") as file:
                file.write(encode_png(pil_to_rgb(picture)))
        keyed: dict[str, Image.Image | Path] = dict(drawn)
        if with_animation:
            keyed["fullgrad/animation"] = history.folder / "animation.gif"
            save_animation(self.animation(history), history.folder / "animation.gif")
        hidden = {"fullgrad/film_strip", "fullgrad/animation"} if "fullgrad" not in methods else set()
        return {key: picture for key, picture in keyed.items() if key not in hidden}

    def draw_strips(self, history: History, methods: Iterable[str]) -> dict[str, Image.Image]:
        """The film strips of methods, by log key. Empty without a folder. A method without maps has no strip.

        Raises:
            ValueError: if the maps of FullGrad are lost.
        """
        strips: dict[str, Image.Image] = {}
        for method in methods if history.folder is not None else ():
            read_maps = None if method == "fullgrad" else partial(history.maps_of, method)
            with suppress(ValueError) if read_maps else nullcontext():
                strips[f"{method}/film_strip"] = self.film_strip(history, method, read_maps)
        return strips

    def film_strip(
        self, history: History, method: str = "fullgrad", read_maps: Callable[[int], Tensor] | None = None
    ) -> Image.Image:
        """Draws a row for each image and a column for each snapshot whose maps are not lost, at most 12 columns.

        Args:
            history: of the run.
            method: key of the method in the title. Default: "fullgrad".
            read_maps: index of a snapshot -> its maps, [N, 1, *S], NaN if they are lost. Default: None, FullGrad's maps in
                `history`.

        Raises:
            ValueError: if there are no maps.
        """
        strip = self._strip(history, MAX_SNAPSHOTS, read_maps)
        return film_strip(
            planar(self.images),
            strip.snapshots,
            row_names=self._row_names(strip),
            captions=strip.captions,
            marked=strip.marked,
            masks=None if self.masks is None else planar(self.masks),
            title=f"{self._subject(method, len(strip.snapshots), len(history.snapshots))}\n{self._legend(strip)}",
            normalization=self.normalization,
        )

    def animation(self, history: History) -> list[Image.Image]:
        """Draws a frame for each snapshot whose maps are not lost, at most 60 frames.

        Raises:
            ValueError: if there are no maps.
        """
        strip = self._strip(history, MOST_FRAMES)
        return animation(
            planar(self.images),
            strip.snapshots,
            captions=strip.captions,
            marked=strip.marked,
            masks=None if self.masks is None else planar(self.masks),
            title=self._subject("fullgrad"),
            normalization=self.normalization,
        )

    def _strip(self, history: History, most: int, read_maps: Callable[[int], Tensor] | None = None) -> Strip:
        """At most `most` snapshots, evenly spaced, without those whose maps are lost."""
        rows = history.images_by_snapshot()
        chosen = [list(rows)[i] for i in spread_indices(len(rows), most)]
        maps = {i: planar(history.maps(i, rows[i]) if read_maps is None else read_maps(i)) for i in chosen}
        chosen = [i for i in chosen if not maps[i].isnan().all()]
        answer = self.classes.answer
        return Strip(
            [(history.snapshots[i].title, maps[i]) for i in chosen],
            [[answer(row.prediction, row.confidence, row.correct) for row in rows[i]] for i in chosen],
            [[row.correct == 0 for row in rows[i]] for i in chosen],
            rows[next(reversed(rows))] if rows else [],
        )

    def _subject(self, method: str, num_shown: int = 0, num_snapshots: int = 0) -> str:
        """The title of a picture, such as "FullGrad of the label's score · 12 of 40 snapshots"."""
        subject = f"{DISPLAY_NAMES.get(method, method)} of {self.explained}"
        return f"{subject} · {num_shown} of {num_snapshots} snapshots" if num_shown < num_snapshots else subject

    def _legend(self, strip: Strip) -> str:
        """Explains the text around the frames."""
        rows = strip.last_rows
        parts = []
        if any(self._row_names(strip)):
            parts.append("left: label" if self._has_labels else "left: explained class")
        if any(row.confidence is not None for row in rows):
            parts.append("below: prediction · probability")
        elif any(row.prediction is not None for row in rows):
            parts.append("below: class of the largest predicted region" if self.classes.are_classes else "below: output")
        if any(any(of_snapshot) for of_snapshot in strip.marked):
            parts.append(f"{WRONG} wrong prediction")
        if self.masks is not None:
            parts.append("line: mask")
        return "; ".join(parts)

    @property
    def _has_labels(self) -> bool:
        return self.labels is not None and self.labels.ndim == 1

    def _row_names(self, strip: Strip) -> list[str]:
        """The label of each image, or the explained class if its label is not a single number, such as a label map."""
        count = len(self.pictures_of_images)
        if self._has_labels:
            return [self.classes.name_of(label) for label in _values(self.labels, count)]
        explained = [row.explained for row in strip.last_rows]
        return [self.classes.name_of(value) for value in explained] if len(explained) == count else [""] * count


def describe_explained(task: Task | None, target: ProbeTarget, labels: Tensor | None, classes: ClassNames) -> str:
    """Describes what is explained of every image, as the end of "FullGrad of ...".

    Args:
        task: what the output means.
        target: the user's target.
        labels: the labels that belong to the output; None if there are none.
        classes: the names of the classes.
    """
    if isinstance(task, Chosen) or callable(target):
        name = getattr(target, "__name__", type(target).__name__)
        return "a function of the output" if name == "<lambda>" else f"{name}(output)"
    if isinstance(task, Regions):
        return "a class's mean score over its region"
    if isinstance(task, Binary):
        return task.words
    if isinstance(task, Entry):
        return f"entry {target} of the output" if isinstance(target, int) else "an entry of the output"
    if not isinstance(task, Classes):
        return "the output"
    if isinstance(target, int):
        return f"the score of class {classes.name_of(target)}"
    if target is not None:
        return "the chosen class's score"
    return "the score of the first prediction" if labels is None else "the label's score"


def plot_bias_terms(history: History, explained: str = "the output") -> Image.Image:
    """Plots the share of the output that the biases of each module explain, for each snapshot.

    Raises:
        ValueError: if there are no snapshots.
    """
    layers = history.layers_by_snapshot()
    names, shares = shares_by_layer(layers)
    buffer = io.BytesIO()
    title = f"What the input and each layer's biases add to {explained}"
    depth_map(shares, names, [history.snapshots[index].title for index in layers], title=title).savefig(buffer)
    return Image.open(buffer)


def _values(values: Tensor | None, count: int) -> list[Any]:
    """The value of each image; None if an image has no single number."""
    return [None] * count if values is None or values.ndim != 1 else values.tolist()
