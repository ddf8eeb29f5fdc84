"""The records of a run: the data of a snapshot, and the names of its numbers, files and columns."""

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
"""Version of the folder's format. It increases if older versions of the package would misread a folder."""

TERM_NUMBERS = {
    "completeness_error": "mean over the probe of |f - sum of all terms| / |f|",
    "completeness_error_max": "maximum over the probe of |f - sum of all terms| / |f|",
    "input_share": "share of the output that the input explains",
    "bias_share": "share of the output that the explicit biases explain",
    "implicit_share": "share of the output that the implicit biases explain",
}
"""The numbers of the decomposition. Their log keys are `fullgrad/<name>`, whichever methods are chosen."""

MASK_NUMBERS = {
    "relevance_mass": "mean share of a map on the image's mask",
    "pointing_game": "share of images whose most salient pixel lies on their mask",
}
"""The numbers of maps that need masks of where the network should look."""

MAP_NUMBERS = {
    "drift": "mean cosine distance of the maps to those of the snapshot before",
    "drift_from_untrained": "mean cosine distance of the maps to those of the untrained network",
    "concentration": "mean Gini index of the maps that are not zero everywhere: 0 if all pixels count alike, near 1 if few count",
    "border_share": "mean share of a map in the outer tenth at every side",
    "top_left_share": "mean share of a map in the top left corner, a fifth of the height and of the width",
    "top_right_share": "mean share of a map in the top right corner",
    "bottom_left_share": "mean share of a map in the bottom left corner",
    "bottom_right_share": "mean share of a map in the bottom right corner",
    **MASK_NUMBERS,
}
"""The numbers of the maps of any method. Their log keys are `<method>/<name>`.

All but the distances leave out maps that are zero everywhere.
"""

NUMBERS = TERM_NUMBERS | MAP_NUMBERS
"""The numbers of a snapshot. They are columns of `history.csv`, and their log keys are `fullgrad/<name>`."""

HISTORY, IMAGES, LAYERS, MAPS = "history.csv", "images.csv", "layers.csv", "maps.npy"
ANSWERS = ("label", "explained", "prediction", "confidence")
TERMS = ("output", "input_term", "bias_term", "implicit_term", "completeness_error")
COLUMNS = {
    HISTORY: ("snapshot", "epoch", "step", "num_steps", *NUMBERS),
    IMAGES: ("snapshot", "image", *ANSWERS, *TERMS, "map_peak", "correct"),
    LAYERS: ("snapshot", "layer", "module", "kind", "share", "terms"),
}
"""The tables of a folder. `snapshot` is an index that counts from 0, the same as in `maps.npy`."""

METHOD_COLUMNS = ("snapshot", "epoch", "step", "num_steps", *MAP_NUMBERS)
"""The columns of `<method>/history.csv` of a further method."""


@dataclass(frozen=True)
class Snapshot:
    """The numbers of one snapshot. Undefined numbers, such as shares of an output that is zero, are left out.

    Attributes:
        epoch: number of epochs that the network was trained for; 0 for the untrained network.
        step: the step at which the numbers are logged.
        numbers: the numbers of every method, by log key.
        num_steps: number of steps that the network was trained for, if snapshots are taken by steps. Default: None, by epochs.
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
        """The time of the snapshot: "untrained", "epoch 2" or "step 40"."""
        if self.is_untrained:
            return "untrained"
        return f"epoch {self.epoch}" if self.num_steps is None else f"step {self.num_steps}"

    def cells(self) -> tuple[Any, ...]:
        """The row of `history.csv`, without the index of the snapshot."""
        return self.epoch, self.step, self.num_steps, *(self.numbers.get(f"fullgrad/{key}") for key in NUMBERS)

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Snapshot:
        """Reads a row of `history.csv`.

        Raises:
            KeyError, ValueError: if the row is damaged.
        """
        cells = {key: parse_number(row.get(key, "")) for key in NUMBERS}
        numbers = {f"fullgrad/{key}": float(value) for key, value in cells.items() if value is not None}
        num_steps = parse_number(row.get("num_steps", ""))
        return cls(int(row["epoch"]), int(row["step"]), numbers, None if num_steps is None else int(num_steps))


@dataclass(frozen=True)
class LayerTerms:
    """The contribution of the input, or of the biases of one module, to the output.

    Attributes:
        module: qualified name of the module; empty for the input.
        kind: "input", "explicit" or "implicit".
        share: sum over the probe of sign(f) times the term, divided by the sum of |f|; None if that sum is 0.
        terms: the term of each image, in units of the output. Default: empty.
    """

    module: str
    kind: str
    share: float | None
    terms: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        return "input" if self.kind == "input" else self.module or "(root)"

    def cells(self) -> tuple[str, str, float | None, str]:
        """The cells of `layers.csv` from module on. The terms of all images are in one cell, separated by spaces."""
        module = " ".join(self.module.splitlines())  # one line for each row, so that damage to a line affects only its row
        return module, self.kind, self.share, " ".join(f"{term:.5g}" for term in self.terms)

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> LayerTerms:
        """Reads a row of `layers.csv`.

        Raises:
            KeyError, ValueError: if the row is damaged.
        """
        terms = tuple(float(term) for term in row["terms"].split())
        return cls(row["module"], row["kind"], parse_number(row["share"]), terms)


@dataclass(frozen=True)
class ImageRow:
    """A row of `images.csv`. A value is None if it is undefined or lost.

    Attributes:
        image: index in the probe.
        label: original label of the image, a class or a number.
        explained: class whose score is explained.
        prediction: class or number that the network predicts.
        confidence: probability of the predicted class, 0 to 1.
        output: the explained number, f.
        input_term: the part of f that the input adds.
        bias_term: the part of f that the explicit biases add.
        implicit_term: the part of f that the implicit biases add.
        completeness_error: |f - sum of all terms| / |f|.
        map_peak: largest magnitude of the saliency map.
        correct: 1 if the predicted class is the label, 0 if it is not. Default: None, for unknown.
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
        """Reads a row of `images.csv`.

        Raises:
            KeyError, ValueError: if the row is damaged.
        """
        correct = parse_number(row.get("correct", ""))  # earlier versions did not write it
        return cls(int(row["image"]), *(parse_number(row[name]) for name in COLUMNS[IMAGES][2:-1]), correct=correct)


@dataclass(frozen=True)
class Answers:
    """The network's answers for every image. Default of each: None.

    Attributes:
        explained: the class whose score is explained, [N]; None if there was no choice.
        predicted: the predicted class or number, [N]; None if it is unknown.
        confidence: the probability of the predicted class, 0 to 1, [N]; None if it is unknown.
        runner_up: the most probable class other than the explained one, [N]; None if there is no other class.
    """

    explained: Tensor | None = None
    predicted: Tensor | None = None
    confidence: Float[Tensor, " n"] | None = None
    runner_up: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Explanation:
    """All data of one snapshot about N images. Tensors are on the CPU.

    Attributes:
        maps: FullGrad's saliency maps, [N, 1, *S].
        answers: the network's answers.
        terms: output, input_term, bias_term, implicit_term and completeness_error, each [N].
        layers: the input, then modules in the order in which they are registered.
        num_classes: number of classes that the network distinguishes. Default: None, no classes.
        missing_ops: operations whose bias is missing from the sum. Default: none.
        lost_ops: operations with a bias that are not on the map, because their place in the image is unknown. Default: none.
        num_drawn: number of operations with a bias that are on the map. Default: 0.
        method_maps: key of each further method -> its maps, [N, 1, *S], without methods that failed. Default: empty.
        num_inputs: number of image inputs. The maps of several inputs are side by side. Default: 1.
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

        It is None, for unknown, if there are no classes or no labels [N], or if the label is not a class of the network.

        Args:
            labels: the original labels of the images, [N]. Others, and None, give None for every image.
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
        layers: index of a snapshot -> its layers.

    Returns:
        The names of the layers, the input first, and their shares of the output, [layers, snapshots]. A missing share is NaN.
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
    """Distinguishes the input from a module with the name "input"."""
    return layer.kind == "input", layer.name
