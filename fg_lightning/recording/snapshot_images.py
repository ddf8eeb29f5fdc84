"""The pictures of a snapshot, for a logger or a file, and those of the whole run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fg_lightning.atomic_files import replace_file
from fg_lightning.history import History
from fg_lightning.history.class_names import ClassNames
from fg_lightning.history.records import Explanation, Snapshot, shares_by_layer
from fg_lightning.loggers import Pictures
from fg_lightning.visualization.depth_map import depth_map
from fg_lightning.visualization.film_strips import MAX_SNAPSHOTS, animation, film_strip, save_animation, spread_indices
from fg_lightning.visualization.saliency_overlay import RGB, Normalization, any_negative, enlarge, overlays_rgb, planar

MOST_FRAMES = 60
"""Number of snapshots in an animation."""


@dataclass(frozen=True, eq=False)
class Renderer:
    """Draws the explanations of one probe.

    Attributes:
        images: the probe's, [N, C, *S], as the model takes them.
        pictures_of_images: the same as the user sees them, [H, W, 3] in 0..255.
        labels: of the images, as they came with them.
        normalization: undone for the pictures; None if it is unknown.
        classes: their names.
    """

    images: Tensor
    pictures_of_images: Sequence[RGB]
    labels: Tensor | None
    normalization: Normalization | None
    classes: ClassNames

    def pictures(self, snapshot: Snapshot, explanation: Explanation) -> Pictures:
        """Overlays, captions and the rows of a table."""
        n, answers = len(self.pictures_of_images), explanation.answers
        columns = [_values(v, n) for v in (self.labels, answers.explained, answers.predicted, answers.confidence)]
        label, explained, prediction = ([self.classes.name_of(value) for value in column] for column in columns[:3])
        maps = planar(explanation.maps)
        is_signed = any_negative(maps)
        return Pictures(
            key="fullgrad/saliency",
            title=snapshot.title,
            overlays=[enlarge(drawn) for drawn in overlays_rgb(self.pictures_of_images, maps, is_signed=is_signed)],
            captions=[self.classes.caption(*of_image) for of_image in zip(*columns, strict=True)],
            table_key="fullgrad/table",
            table={
                "image": self._enlarged,
                "number": list(range(n)),
                "epoch": [snapshot.epoch] * n,
                "step": [snapshot.step] * n,
                "label": label,
                "explained": explained,
                "prediction": prediction,
                **({} if answers.confidence is None else {"confidence": columns[3]}),
                "completeness_error": explanation.terms["completeness_error"].tolist(),
            },
            is_signed=is_signed,
        )

    @cached_property
    def _enlarged(self) -> list[RGB]:
        """The same arrays in every snapshot, so that a logger can tell that it has them already."""
        return [enlarge(picture) for picture in self.pictures_of_images]

    def draw_run(self, history: History, *, with_animation: bool = False) -> dict[str, Image.Image | Path]:
        """Draws the film strip, the bias terms by depth, and the animation, into the folder of the history.

        Returns:
            The pictures, and the path of the animation, by the keys under which they are logged; none without a folder.

        Raises:
            OSError: if a file cannot be written.
            ValueError: if the maps of all snapshots are lost.
        """
        if history.folder is None or not history.snapshots:
            return {}
        drawn = {"film_strip": self.film_strip(history), "bias_terms": plot_bias_terms(history)}
        for name, picture in drawn.items():
            with replace_file(history.folder / f"{name}.png") as file:
                picture.save(file, "PNG")
        keyed: dict[str, Image.Image | Path] = {f"fullgrad/{name}": picture for name, picture in drawn.items()}
        if with_animation:
            keyed["fullgrad/animation"] = history.folder / "animation.gif"
            save_animation(self.animation(history), history.folder / "animation.gif")
        return keyed

    def film_strip(self, history: History) -> Image.Image:
        """A row per image, a column per snapshot whose maps are not lost.

        Raises:
            ValueError: if there are none.
        """
        chosen, captions = self._columns(history, MAX_SNAPSHOTS)
        return film_strip(
            planar(self.images),
            chosen,
            row_names=self._row_names(history),
            captions=captions,
            normalization=self.normalization,
        )

    def _row_names(self, history: History) -> list[str]:
        """The label of each image, or the explained class if its label is not a single number, such as a label map."""
        count = len(self.pictures_of_images)
        if self.labels is not None and self.labels.ndim == 1:
            return [self.classes.name_of(label) for label in _values(self.labels, count)]
        rows = next(reversed(history.images_by_snapshot().values()), [])
        explained = [row.explained for row in rows]
        return [self.classes.name_of(value) for value in explained] if len(explained) == count else [""] * count

    def animation(self, history: History) -> list[Image.Image]:
        """The film strip in motion, with a frame per snapshot whose maps are not lost.

        Raises:
            ValueError: if there are none.
        """
        chosen, captions = self._columns(history, MOST_FRAMES)
        return animation(planar(self.images), chosen, captions=captions, normalization=self.normalization)

    def _columns(self, history: History, most: int) -> tuple[list[tuple[str, Tensor]], list[list[str]]]:
        """The titles and maps of at most `most` snapshots, and what the network predicts for each image."""
        rows = history.images_by_snapshot()
        chosen = [list(rows)[i] for i in spread_indices(len(rows), most)]
        maps = {index: planar(history.maps(index, rows[index])) for index in chosen}
        chosen = [index for index in chosen if not maps[index].isnan().all()]  # the maps of the others are lost
        columns = [(history.snapshots[index].title, maps[index]) for index in chosen]
        answer = self.classes.answer
        return columns, [[answer(row.prediction, row.confidence) for row in rows[index]] for index in chosen]


def plot_bias_terms(history: History) -> Image.Image:
    """Plots the share of the output that the biases of each module explain, for each snapshot.

    Raises:
        ValueError: if there are no snapshots.
    """
    layers = history.layers_by_snapshot()
    names, shares = shares_by_layer(layers)
    buffer = io.BytesIO()
    depth_map(shares, names, [history.snapshots[index].title for index in layers]).savefig(buffer)
    return Image.open(buffer)


def _values(values: Tensor | None, count: int) -> list[Any]:
    """One number for each image; None if it has none."""
    return [None] * count if values is None or values.ndim != 1 else values.tolist()
