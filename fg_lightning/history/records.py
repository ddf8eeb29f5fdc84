"""The records of a run: what a snapshot holds, and the numbers, files and columns that it is kept in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from fg_lightning.history.growing_files import parse_number

FORMAT = 1
"""Version of the folder's format; it rises when an older reader would be misled."""

TERM_NUMBERS = {
    "completeness_error": "mean over the probe of |f - sum of all terms| / |f|",
    "completeness_error_max": "the largest of them",
    "input_share": "what share of the output the input explains",
    "bias_share": "the explicit biases",
    "implicit_share": "and the implicit biases",
}
"""The numbers of the decomposition: logged with `fullgrad/` before their names, whatever the methods are."""

MASK_NUMBERS = {
    "relevance_mass": "mean share of a map on the image's mask",
    "pointing_game": "share of images whose most salient pixel lies on their mask",
}
"""Those of the numbers of maps that need masks of where the network should look."""

MAP_NUMBERS = {
    "drift": "mean cosine distance of the maps to those of the snapshot before",
    "drift_from_untrained": "and to those of the untrained network",
    "concentration": "mean Gini index of the maps that are not zero everywhere: 0 if all pixels count alike, near 1 if few count",
    "border_share": "mean share of a map in the outer tenth at every side",
    "top_left_share": "in the top left corner, of a fifth of the height and the width",
    "top_right_share": "in the top right corner",
    "bottom_left_share": "in the bottom left corner",
    "bottom_right_share": "in the bottom right corner",
    **MASK_NUMBERS,
}
"""The numbers of maps, of any method: logged with the method's key and a slash before their names.

All but the distances leave out maps that are zero everywhere.
"""

NUMBERS = TERM_NUMBERS | MAP_NUMBERS
"""The numbers of a snapshot: columns of `history.csv`, logged with `fullgrad/` before their names."""

HISTORY, IMAGES, LAYERS, MAPS = "history.csv", "images.csv", "layers.csv", "maps.npy"
ANSWERS = ("label", "explained", "prediction", "confidence")
TERMS = ("output", "input_term", "bias_term", "implicit_term", "completeness_error")
COLUMNS = {
    HISTORY: ("snapshot", "epoch", "step", "num_steps", *NUMBERS),
    IMAGES: ("snapshot", "image", *ANSWERS, *TERMS, "map_peak", "correct"),
    LAYERS: ("snapshot", "layer", "module", "kind", "share", "terms"),
}
"""The tables of a folder. `snapshot` counts from 0: it is the index of a row's maps in `maps.npy`."""

METHOD_COLUMNS = ("snapshot", "epoch", "step", "num_steps", *MAP_NUMBERS)
"""The columns of `<method>/history.csv`, of a further method."""


@dataclass(frozen=True)
class Snapshot:
    """The numbers of one moment. Undefined numbers, such as shares of an output that is zero, are left out.

    Attributes:
        epoch: number of epochs that the network had been trained for; 0 is the untrained network.
        step: the step of Lightning's loggers.
        numbers: of every method, by the keys under which they are logged.
        num_steps: number of steps that the network had been trained for, if snapshots are taken by steps; None if by epochs.
    """

    epoch: int
    step: int
    numbers: dict[str, float]
    num_steps: int | None = None

    @property
    def is_untrained(self) -> bool:
        return self.epoch == self.step == 0 and not self.num_steps

    @property
    def title(self) -> str:
        """When it was taken, in words."""
        if self.is_untrained:
            return "untrained"
        return f"epoch {self.epoch}" if self.num_steps is None else f"step {self.num_steps}"

    def cells(self) -> tuple[Any, ...]:
        """The row of `history.csv`, without its index."""
        return self.epoch, self.step, self.num_steps, *(self.numbers.get(f"fullgrad/{key}") for key in NUMBERS)

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Snapshot:
        """Raises KeyError or ValueError if the row is damaged."""
        cells = {key: parse_number(row.get(key, "")) for key in NUMBERS}
        numbers = {f"fullgrad/{key}": float(value) for key, value in cells.items() if value is not None}
        num_steps = parse_number(row.get("num_steps", ""))
        return cls(int(row["epoch"]), int(row["step"]), numbers, None if num_steps is None else int(num_steps))


@dataclass(frozen=True)
class LayerTerms:
    """What the biases of one module, or the input, add to the output.

    Attributes:
        module: its qualified name; empty for the input.
        kind: input, explicit or implicit.
        share: sum over the probe of sign(f) times term, over the sum of |f|; None if that is 0.
        terms: what they add to each image's output.
    """

    module: str
    kind: str
    share: float | None
    terms: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        return "input" if self.kind == "input" else self.module or "(root)"

    def cells(self) -> tuple[str, str, float | None, str]:
        """The columns of `layers.csv` from module on; the images' terms in one cell, with spaces between."""
        module = " ".join(self.module.splitlines())  # a row is a line, so that a damaged one costs no other
        return module, self.kind, self.share, " ".join(f"{term:.5g}" for term in self.terms)

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> LayerTerms:
        """Raises KeyError or ValueError if the row is damaged."""
        terms = tuple(float(term) for term in row["terms"].split())
        return cls(row["module"], row["kind"], parse_number(row["share"]), terms)


@dataclass(frozen=True)
class ImageRow:
    """A row of `images.csv`; None where a value is undefined or lost.

    Attributes:
        image: index in the probe.
        label: class, or number, that came with the image.
        explained: class whose score is explained.
        prediction: class, or number, that the network gives; `confidence` is its probability.
        output: the number that is explained; the terms are what the input and the biases add to it.
        map_peak: largest magnitude of the saliency map.
        correct: 1 if the predicted class is the label, 0 if it is another; None if that cannot be told.
    """

    image: int
    label: float | None
    explained: float | None
    prediction: float | None
    confidence: float | None
    output: float | None
    input_term: float | None
    bias_term: float | None
    implicit_term: float | None
    completeness_error: float | None
    map_peak: float | None
    correct: float | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> ImageRow:
        """Raises KeyError or ValueError if the row is damaged."""
        correct = parse_number(row.get("correct", ""))  # earlier versions did not write it
        return cls(int(row["image"]), *(parse_number(row[name]) for name in COLUMNS[IMAGES][2:-1]), correct=correct)


@dataclass(frozen=True)
class Answers:
    """What the network answers for every image.

    Attributes:
        explained: the class whose score is explained, [N]; None if there was no choice.
        predicted: the class it would choose or the number it gives, [N]; None if that cannot be told.
        confidence: the probability of the predicted class, [N]; None if that cannot be told.
        runner_up: the most probable class apart from the explained one, [N]; None if there is no other class.
    """

    explained: Tensor | None = None
    predicted: Tensor | None = None
    confidence: Float[Tensor, " n"] | None = None
    runner_up: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Explanation:
    """All that one snapshot holds of N images, on the CPU.

    Attributes:
        maps: saliency maps, [N, 1, *S].
        answers: of the network.
        terms: output, input_term, bias_term, implicit_term and completeness_error, each [N].
        layers: the input, then modules in the order in which they are registered.
        num_classes: number of classes that the network distinguishes; None if it has no classes.
        missing_ops: operations whose bias is missing from the sum.
        lost_ops: operations with a bias whose place in the image is not known, so that they are not on the map.
        num_drawn: number of operations with a bias that are on the map.
        method_maps: the maps of further methods by their keys, [N, 1, *S] each, without methods that failed.
        num_inputs: number of image inputs. Maps of several lie side by side.
    """

    maps: Float[Tensor, "n 1 *s"]
    answers: Answers
    terms: dict[str, Float[Tensor, " n"]]
    layers: list[LayerTerms]
    num_classes: int | None = None
    missing_ops: tuple[str, ...] = ()
    lost_ops: tuple[str, ...] = ()
    num_drawn: int = 0
    method_maps: Mapping[str, Float[Tensor, "n 1 *s"]] = field(default_factory=dict)
    num_inputs: int = 1

    def correct(self, labels: Tensor | None) -> list[bool | None]:
        """Whether each image's predicted class is its label.

        None if that cannot be told: without classes, without labels [N], and for labels that are not classes of the network.

        Args:
            labels: as they came with the images.
        """
        predicted, count = self.answers.predicted, self.num_classes
        are_known = predicted is not None and count is not None and labels is not None and labels.ndim == predicted.ndim == 1
        if not are_known or predicted.is_floating_point():  # type: ignore[union-attr]
            return [None] * len(self.maps)
        pairs = zip(labels.tolist(), predicted.tolist(), strict=True)  # type: ignore[union-attr]
        return [label == answer if label in range(count) else None for label, answer in pairs]  # type: ignore[arg-type]

    def image_cells(self, labels: Tensor | None) -> list[tuple[Any, ...]]:
        """A row of `images.csv` for each image, from label to completeness_error; None in undefined cells."""
        answers, count = self.answers, len(self.maps)
        values = [labels, answers.explained, answers.predicted, answers.confidence, *self.terms.values()]
        columns = [[None] * count if value is None or value.ndim != 1 else value.tolist() for value in values]
        return list(zip(*columns, strict=True))


def shares_by_layer(layers: Mapping[int, Sequence[LayerTerms]]) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Adds the explicit and implicit shares of each module.

    Args:
        layers: by snapshot.

    Returns:
        The names of the layers, the input first, and their shares of the output, [layers, snapshots]; NaN where there is none.
    """
    keys = list(dict.fromkeys(_layer_key(layer) for of_snapshot in layers.values() for layer in of_snapshot))
    shares = np.full((len(keys), len(layers)), np.nan)
    places = {key: place for place, key in enumerate(keys)}
    for column, of_snapshot in enumerate(layers.values()):
        for layer in of_snapshot:
            if layer.share is not None:
                place = places[_layer_key(layer)], column
                shares[place] = np.nansum([shares[place], layer.share])
    return [name for _, name in keys], shares


def _layer_key(layer: LayerTerms) -> tuple[bool, str]:
    """A module may be called "input", too."""
    return layer.kind == "input", layer.name
