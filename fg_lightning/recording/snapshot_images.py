"""What a person sees of a look, for whatever shows it, and of the whole run at its end."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fg_lightning.history.csv_table import number
from fg_lightning.history.history import History
from fg_lightning.loggers import Pictures
from fg_lightning.recording.output_meaning import ClassNames
from fg_lightning.recording.snapshot import Findings, Look
from fg_lightning.visualization.curves import depth_map
from fg_lightning.visualization.film_strip import animation, evenly_spaced, film_strip
from fg_lightning.visualization.overlay import RGB, Normalization, any_negative, enlarged, overlaid

BAND = 32
"""How many pixels high a signal is drawn, which has no height."""

MOST_COLUMNS = 24
"""Looks in a film strip."""

MOST_FRAMES = 60
"""Looks in an animation."""


@dataclass(frozen=True)
class Artist:
    """Draws what is found of one probe.

    Attributes:
        images: the probe's, [N, C, *S], as the model takes them.
        pictures_of_images: the same as a person sees them, [H, W, 3] in 0..255.
        labels: of the images, as they came with them.
        normalization: what was undone for the pictures.
        classes: what they are called.
    """

    images: Tensor
    pictures_of_images: Sequence[RGB]
    labels: Tensor | None
    normalization: Normalization | None
    classes: ClassNames

    def pictures(self, look: Look, findings: Findings) -> Pictures:
        """Overlays, captions and the rows of a table."""
        n, answers = len(self.pictures_of_images), findings.answers
        columns = [_values(v, n) for v in (self.labels, answers.explained, answers.predicted, answers.confidence)]
        label, explained, prediction = ([self.classes.named(value) for value in column] for column in columns[:3])
        maps = planar(findings.maps)
        is_signed = any_negative(maps)
        return Pictures(
            key="fullgrad/saliency",
            title=look.title,
            overlays=[overlaid(p, m, is_signed=is_signed) for p, m in zip(self.pictures_of_images, maps, strict=True)],
            captions=[self.classes.caption(*of_image) for of_image in zip(*columns, strict=True)],
            table_key="fullgrad/table",
            table={
                "image": [enlarged(picture) for picture in self.pictures_of_images],
                "number": list(range(n)),
                "epoch": [look.epoch] * n,
                "step": [look.step] * n,
                "label": label,
                "explained": explained,
                "prediction": prediction,
                **({} if answers.confidence is None else {"confidence": columns[3]}),
                "completeness_error": findings.terms["completeness_error"].tolist(),
            },
            is_signed=is_signed,
        )

    def film_strip(self, history: History) -> Image.Image:
        """A row per image, a column per look, of those whose maps there are.

        Raises:
            ValueError: if there are none.
        """
        chosen, captions = self._seen(history, MOST_COLUMNS)
        return film_strip(
            planar(self.images),
            chosen,
            row_names=self._row_names(history),
            captions=captions,
            normalization=self.normalization,
        )

    def _row_names(self, history: History) -> list[str]:
        """Of each image the label; what is explained of it where its label is no single number, as of a label map."""
        count = len(self.pictures_of_images)
        if self.labels is not None and self.labels.ndim == 1:
            return [self.classes.named(label) for label in _values(self.labels, count)]
        rows = next(reversed(_by_look(history.images()).values()), [])
        explained = [number(row["explained"]) for row in rows]
        return [self.classes.named(value) for value in explained] if len(explained) == count else [""] * count

    def animation(self, history: History) -> list[Image.Image]:
        """The film strip in motion, a frame a look, of those whose maps there are.

        Raises:
            ValueError: if there are none.
        """
        chosen, captions = self._seen(history, MOST_FRAMES)
        return animation(planar(self.images), chosen, captions=captions, normalization=self.normalization)

    def _seen(self, history: History, most: int) -> tuple[list[tuple[str, Tensor]], list[list[str]]]:
        """Of at most so many looks the title and maps, and below each image what the network says."""
        rows = _by_look(history.images())
        chosen = [list(rows)[i] for i in evenly_spaced(len(rows), most)]
        maps = {index: planar(history.maps(index, rows[index])) for index in chosen}
        chosen = [index for index in chosen if not maps[index].isnan().all()]  # of others the rows alone are left
        looks = [(history.looks[index].title, maps[index]) for index in chosen]
        answer = self.classes.answer
        return looks, [[answer(number(row["prediction"]), number(row["confidence"])) for row in rows[index]] for index in chosen]


def bias_terms(history: History) -> Image.Image:
    """What share of the output the biases of each module explain, look by look.

    Raises:
        ValueError: if there are no looks.
    """
    rows = _by_look(history.layers())
    modules = list(dict.fromkeys(row["module"] if row["kind"] != "input" else None for of_look in rows.values() for row in of_look))
    shares = np.full((len(modules), len(rows)), np.nan)
    for column, of_look in enumerate(rows.values()):
        for row in of_look:
            share = number(row["share"])
            if share is not None:
                place = modules.index(row["module"] if row["kind"] != "input" else None), column
                shares[place] = np.nansum([shares[place], share])
    names = ["input" if module is None else module or "(root)" for module in modules]
    buffer = io.BytesIO()
    depth_map(shares, names, [history.looks[index].title for index in rows]).savefig(buffer)
    return Image.open(buffer)


def _by_look(rows: list[dict[str, str]]) -> dict[int, list[dict[str, str]]]:
    found: dict[int, list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault(int(row["look"]), []).append(row)
    return found


def planar(images: Tensor) -> Tensor:
    """[N, C, *S] as [N, C, H, W]: of a volume or clip the middle slice of its first axis, of a signal a band."""
    if images.ndim == 5:
        return images[:, :, images.shape[2] // 2]
    return images.unsqueeze(2).expand(-1, -1, BAND, -1) if images.ndim == 3 else images


def _values(values: Tensor | None, count: int) -> list[Any]:
    """One number for each image, None where it has none."""
    return [None] * count if values is None or values.ndim != 1 else values.tolist()
