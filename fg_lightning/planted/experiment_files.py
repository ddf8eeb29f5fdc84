"""Reads and writes the files of an experiment with planted shortcuts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np
import numpy.typing as npt

from fg_lightning.atomic_files import replace_file, write_json
from fg_lightning.errors import CannotRun
from fg_lightning.planted.results import NETWORKS, Explanation, Network, PlantedResults, TrainedNetwork
from fg_lightning.roar.experiment_folder import EXPERIMENT_FILE, add_checksum, verify_checksum

DATA_FILE = "data.json"


class Training(NamedTuple):
    """The training of a network, by the network's kind and seed."""

    network: Network
    seed: int

    @property
    def name(self) -> str:
        return f"{self.network}-{self.seed}"


class Maps(NamedTuple):
    """The explanation of a network by a method."""

    network: Network
    seed: int
    method: str

    @property
    def name(self) -> str:
        return f"{self.network}-{self.seed}-{self.method}"

    @property
    def training(self) -> Training:
        return Training(self.network, self.seed)


class Facts(NamedTuple):
    """Facts about the data, measured once.

    Attributes:
        num_classes: as in `PlantedShortcut`.
        value_range: as in `PlantedShortcut`.
        shape: size of the images, (H, W).
        area: the mark with its margin, as rows top:bottom and columns left:right, (top, bottom, left, right).
    """

    num_classes: int | None
    value_range: tuple[float, float]
    shape: tuple[int, int]
    area: tuple[int, int, int, int]

    @property
    def share(self) -> float:
        """The share of pixels that belong to the mark, 0 to 1."""
        top, bottom, left, right = self.area
        return (bottom - top) * (right - left) / (self.shape[0] * self.shape[1])


def is_planted(folder: Path) -> bool:
    """Whether a folder holds an experiment with planted shortcuts."""
    try:
        return "shortcut" in json.loads((folder / EXPERIMENT_FILE).read_text())
    except (OSError, ValueError, TypeError):
        return False


def weights_path(folder: Path, training: Training) -> Path:
    return folder / "networks" / f"{training.name}.pt"


def write_facts(folder: Path, facts: Facts) -> None:
    write_json(folder / DATA_FILE, add_checksum(facts._asdict()))


def read_facts(folder: Path) -> Facts | None:
    """The facts about the data. None if they have not been measured.

    Raises:
        CannotRun: if the file is damaged.
    """
    content = _read_json(folder / DATA_FILE)
    if content is None:
        return None
    value_range, shape, area = (tuple(content[name]) for name in ("value_range", "shape", "area"))
    return Facts(content["num_classes"], value_range, shape, area)


def write_cell(folder: Path, cell: Union[Training, Maps], result: Union[TrainedNetwork, Explanation]) -> None:
    write_json(_cell_path(folder, cell), add_checksum(asdict(result)))


def read_training(folder: Path, training: Training) -> TrainedNetwork | None:
    """The accuracies of a trained network. None if it has not been tested.

    Raises:
        CannotRun: if its file is damaged, or belongs to another network.
    """
    content = _read_cell(folder, training)
    return None if content is None else TrainedNetwork(**content)


def read_maps(folder: Path, maps: Maps) -> Explanation | None:
    """A method's scores for a network. None if they have not been computed. Raises what `read_training` does."""
    content = _read_cell(folder, maps)
    return None if content is None else Explanation(**content)


def write_shown_maps(folder: Path, maps: Maps, images: npt.NDArray[Any], saliency: npt.NDArray[Any]) -> None:
    """Writes the first few images and their maps."""
    with replace_file(folder / "maps" / f"{maps.name}.npz") as file:
        np.savez(file, images=images, maps=saliency.astype(np.float32))


def read_results(folder: Path, trainings: Iterable[Training] | None = None, methods: Iterable[str] | None = None) -> PlantedResults:
    """The results of an experiment.

    Args:
        folder: folder of the experiment.
        trainings: the networks. Default: all in the folder.
        methods: names of the methods, in the order of the table. Default: all methods in the folder.

    Raises:
        CannotRun: if no network has been trained, or a file is damaged.
    """
    facts = read_facts(folder)
    if trainings is None:
        found = [path.stem.rpartition("-") for path in (folder / "networks").glob("*.pt")]
        seeds = sorted({int(seed) for _, _, seed in found if seed.isdigit()})
        trainings = [Training(network, seed) for network in NETWORKS for seed in seeds]
    if methods is None:
        methods = json.loads((folder / EXPERIMENT_FILE).read_text())["methods"]
    networks = [network for training in trainings if (network := read_training(folder, training)) is not None]
    if facts is None or not networks:
        raise CannotRun(
            f"{folder} is the folder of an experiment with planted shortcuts, but no network has been trained in it yet"
        )
    cells = [Maps(network.network, network.seed, method) for network in networks for method in methods]
    explanations = [explanation for cell in cells if (explanation := read_maps(folder, cell)) is not None]
    return PlantedResults(networks, explanations, facts.share)


def _cell_path(folder: Path, cell: Union[Training, Maps]) -> Path:
    return folder / "cells" / f"{cell.name}.json"


def _read_cell(folder: Path, cell: Union[Training, Maps]) -> Mapping[str, Any] | None:
    path = _cell_path(folder, cell)
    content = _read_json(path)
    if content is not None and any(content.get(name) != value for name, value in cell._asdict().items()):
        raise CannotRun(f"{path} belongs to another cell: it was renamed or copied; remove it to compute the cell again")
    return content


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = verify_checksum(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise CannotRun(f"{path} is damaged ({type(error).__name__}: {error}); remove it to compute it again") from error
    return content
