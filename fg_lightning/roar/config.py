"""The settings of an experiment: one dataclass for the experiment, its engines and the command line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args

import numpy as np
from lightning.pytorch import LightningDataModule, LightningModule

from fg_lightning.attribution import METHODS, Factory, find_method
from fg_lightning.removal import Fill, Order, find_fill
from fg_lightning.removal.pixel_ranking import check_fraction, check_order
from fg_lightning.roar.cell_training import check_trainer_options
from fg_lightning.roar.cells import ALL, MASKS, Cell
from fg_lightning.roar.experiment_folder import describe, hash_file, stores_folder
from fg_lightning.roar.explained_class import Target, check_target

Mode = Literal["roar", "kar", "road"]

DEFAULT_METHODS = ("random", "blurred_random", "edges", "gradient", "fullgrad", "blurred_fullgrad")
"""FullGrad, the gradient, and the controls to compare their scores with."""

MAX_NAME_BYTES = 150
"""Longest name of a method, in bytes. File systems allow 255, and the rest of a cell's name needs some of them."""

MAX_FILL_BYTES = 60
"""Longest name of a fill, in bytes."""

LOWER_IS_BETTER = ("loss", "error", "perplexity")
"""Parts of the names of metrics that are lower for a better network."""

IDENTITY = (
    "mode order max_epochs target metric batch_size num_threads data model prepare transform trainer redraw_random methods fills"
).split()
"""The settings that the results depend on."""

MAX_COUNT = 1000
"""Largest number of seeds and of networks: the seed of a training is 1000 * network + seed."""

NETWORK_SEED = MAX_COUNT**2
"""Seed of the first explained network. No training on masked images has this seed."""


@dataclass(frozen=True, eq=False)
class ROARConfig:
    """The settings of an experiment. They are checked when the object is created, and it can be sent to other machines.

    Args:
        output: Folder of all results. All machines must share it.
        data: Class of the datamodule, or a function without arguments that makes one. Every cell makes its own.
        model: Class of the LightningModule, or a function without arguments that makes an untrained one. It takes only images, and
            its `test_step` logs its accuracy.
        methods: Names in `fg_lightning.attribution.METHODS`, as a list or separated by commas; "all"; or a dict from names to
            factories. Random is always added.
        fractions: Shares of the pixels that are removed (mode kar: kept), each 0 to 1. 0 is always added, and 1 in mode kar.
        num_seeds: Number of trainings for each method, fraction, fill and network. Mode road does not train; it tests once.
        num_networks: Number of networks that are explained. Each has its own seed, maps, masks and trainings on them. With several,
            intervals cover the explained network as well as the trainings; with one, only the trainings.
        max_epochs: Number of epochs of each training.
        order: morf, the most relevant pixels first, or lerf, the least relevant first.
        mode: roar removes a fraction of the pixels; kar keeps it and removes the rest; road removes it and does not retrain.
        fills: What replaces removed pixels, one or several: dataset_mean (the training images' mean of each channel), noisy_linear,
            image_mean, black, a number in the units of the images before their transform, a list of one for each channel, or a
            function, see `ROARDataModule`. Several: a list, names separated by commas, or a dict with your own names. Default:
            dataset_mean; noisy_linear for mode road.
        checkpoint: Lightning checkpoint of the explained network, or a list with one for each network. Default: networks are
            trained on intact images, like the cells.
        target: The class that is explained: predicted, label, random (drawn for every image, the same for all methods) or the index
            of a class. Masks can reveal the class that they explain.
        controls: Also train on the masks alone, without the image, for each method, fraction and network. It shows how much the
            masks reveal. Mode road has no controls. --no_controls turns them off.
        redraw_random: Draw a new mask of the method random whenever an image is read, as the code of Hooker et al. does.
        metric: Name of the logged test metric that is compared. It must be higher for a better network. Default: the one with acc
            in its name.
        num_threads: Number of threads of torch for each training on a CPU. Results depend on it.
        batch_size: Number of images that are explained at once.
        prepare: Function that brings an image to the size of the network's input, see `ROARDataModule`.
        transform: Transform of the images after the removal, see `ROARDataModule`.
        trainer: Further arguments of Lightning's Trainer, such as {"precision": "bf16-mixed"}. Each training uses one device, and
            its own copies of the callbacks.
        wandb: Weights & Biases project to log to: one run for each training, in one group, and one for the summary. Default: none.

    Raises:
        TypeError: if data or model is an instance, a count is not an integer, or a fill is of an unknown kind.
        ValueError: if a setting is invalid.
    """

    output: Union[str, Path]
    data: Callable[[], LightningDataModule]
    model: Callable[[], LightningModule]
    methods: Union[str, Sequence[str], Mapping[str, Factory]] = DEFAULT_METHODS
    fractions: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9)
    num_seeds: int = 3
    num_networks: int = 1
    max_epochs: int = 5
    order: Order = "morf"
    mode: Mode = "roar"
    fills: Union[Fill, Sequence[Fill], Mapping[str, Fill], None] = None
    checkpoint: Union[str, Path, Sequence[Union[str, Path]], None] = None
    target: Target = "predicted"
    controls: bool = True
    redraw_random: bool = False
    metric: str | None = None
    num_threads: int = 1
    batch_size: int = 50
    prepare: Callable[[Any], Any] | None = None
    transform: Callable[..., Any] | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    wandb: str | None = None

    def __post_init__(self) -> None:
        check_makers(self.data, self.model)
        _check_choice("mode", self.mode, get_args(Mode))
        counted = "num_seeds", "num_networks", "max_epochs", "num_threads", "batch_size"
        check_counts(**{name: getattr(self, name) for name in counted})
        for name in ("controls", "redraw_random"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.metric is not None and any(part in self.metric.lower() for part in LOWER_IS_BETTER):
            raise ValueError(
                f"metric {self.metric!r} is lower for a better network, but scores need one that is higher, such as accuracy: "
                "log its negative in test_step under another name, and give that name"
            )
        check_order(self.order)
        _check_fractions(self.fractions)
        check_target(self.target)
        fills = self.fills if self.fills is not None else "noisy_linear" if self.mode == "road" else "dataset_mean"
        checkpoints = self._list_checkpoints()
        factories = choose_methods(self.methods)
        for name, value in {
            "output": Path(self.output).resolve(),
            "methods": {"random": find_method("random"), **factories},
            "fills": name_fills(fills),
            "checkpoint": checkpoints,
            "num_networks": len(checkpoints) if checkpoints else self.num_networks,
            "trainer": check_trainer_options(self.trainer or {}),
        }.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def folder(self) -> Path:
        """The output, absolute."""
        return Path(self.output)

    @property
    def fill_values(self) -> Mapping[str, Fill]:
        """The fills by name."""
        assert isinstance(self.fills, Mapping)
        return self.fills

    @property
    def checkpoints(self) -> Sequence[Path]:
        """The checkpoints of the explained networks. Empty if the networks are trained."""
        return self.checkpoint or ()  # type: ignore[return-value]

    @property
    def factories(self) -> Mapping[str, Factory]:
        """The methods by name."""
        assert isinstance(self.methods, Mapping)
        return self.methods

    def network_path(self, network: int) -> Path:
        """The path of an explained network's weights."""
        return self.folder / "networks" / f"{network}.pt"

    def store_path(self, method: str, network: int) -> Path:
        return stores_folder(self.folder, network) / method

    def identity(self) -> dict[str, Any]:
        """The settings that the results depend on, as JSON. They may not change from one run to the next.

        Raises:
            CannotRun: if a checkpoint cannot be read.
        """
        hashes: list[str | None] = [*map(hash_file, self.checkpoints)] or [None] * self.num_networks
        checkpoints = {str(network): value for network, value in enumerate(hashes)}
        return {name: describe(getattr(self, name)) for name in IDENTITY} | {"checkpoints": checkpoints}

    def _list_checkpoints(self) -> list[Path]:
        given = self.checkpoint
        paths = [] if given is None else [given] if isinstance(given, (str, Path)) else list(given)
        if paths and self.num_networks not in (1, len(paths)):
            raise ValueError(
                f"num_networks is {self.num_networks}, but the checkpoints are {len(paths)}: give one for each network, "
                "or leave num_networks out"
            )
        return [Path(path) for path in paths]


def check_makers(data: Any, model: Any) -> None:
    """
    Raises:
        TypeError: if one is an instance, or cannot be called.
    """
    for name, value, kind in (("data", data, LightningDataModule), ("model", model, LightningModule)):
        if isinstance(value, kind) or not callable(value):
            raise TypeError(
                f"{name} must be a function that makes a new {kind.__name__}, such as the class itself or a lambda, since each "
                f"training starts from scratch; not {type(value).__name__}"
            )


def check_counts(**counts: Any) -> None:
    """
    Raises:
        TypeError: if a count is not an integer.
        ValueError: if a count is less than 1, or there are too many seeds or networks.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{name} must be an integer, not {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
        if count > MAX_COUNT and name in ("num_seeds", "num_networks"):
            raise ValueError(f"{name} must be at most {MAX_COUNT}, not {count}")


def choose_methods(methods: Union[str, Sequence[str], Mapping[str, Factory]]) -> dict[str, Factory]:
    """The factories of methods by name.

    Raises:
        ValueError: if a method is unknown or given twice, none is given, or a name cannot be a file's name.
    """
    names = [name.strip() for name in methods.split(",")] if isinstance(methods, str) else list(methods)
    if names == ["all"] and not isinstance(methods, Mapping):
        names = list(METHODS)
    _check_names(names)
    return dict(methods) if isinstance(methods, Mapping) else {name: find_method(name) for name in names}


def cell_seed(cell: Cell) -> int:
    """The seed of a training. Trainings with the maps of different networks have different seeds."""
    return MAX_COUNT * cell.network + cell.seed


def name_fills(fills: Any) -> dict[str, Fill]:
    """Fills by name.

    Args:
        fills: one fill; several in a list or separated by commas; or a dict with their names. A fill with a number for each
            channel is a list in the list.

    Raises:
        TypeError: if a fill is of an unknown kind.
        ValueError: if a fill's name is unknown or cannot be a file's name, two fills have the same name, or a list of numbers could
            mean several fills or one.
    """
    if isinstance(fills, Mapping):
        named = [(str(name), fill) for name, fill in fills.items()]
    else:
        if isinstance(fills, str):
            fills = [parse_fill(name.strip()) for name in fills.split(",")]
        several = list(fills) if isinstance(fills, (list, tuple)) else [fills]
        if len(several) > 1 and all(isinstance(fill, (int, float)) for fill in several):
            raise ValueError(
                f"fills {several} could be {len(several)} fills, or one with a number for each channel: write [{several}] for one, "
                f"{[[number] for number in several]} for several"
            )
        named = [(_fill_name(fill), fill) for fill in several]
    if not named:
        raise ValueError("fills must have at least one, such as dataset_mean")
    for name, fill in named:
        find_fill(fill, dataset_mean=0.0)
        if name in (MASKS, "intact") or not re.fullmatch(r"[\w.+-]+", name) or len(name.encode()) > MAX_FILL_BYTES:
            raise ValueError(
                f"a fill's name must consist of at most {MAX_FILL_BYTES} letters, digits, _ . + and -, since files are named after "
                f"it, and be neither {MASKS} nor intact; not {name!r}"
            )
    if twice := _duplicates([name for name, _ in named]):
        raise ValueError(f"fills must differ, but {', '.join(twice)} is given more than once; give functions names, {{'mine': f}}")
    return dict(named)


def parse_fill(text: str) -> Fill:
    """The number in a text, or the text itself: a name."""
    try:
        return float(text)
    except ValueError:
        return text


def _fill_name(fill: Any) -> str:
    if isinstance(fill, str):
        return fill
    if callable(fill) and not hasattr(fill, "shape"):
        name = getattr(fill, "__name__", "")
        return name if name.isidentifier() else "function"
    try:
        return "_".join(f"{float(value):g}" for value in np.ravel(fill))
    except (TypeError, ValueError):
        return type(fill).__name__  # `find_fill` raises


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _check_fractions(fractions: Sequence[float]) -> None:
    """Raises ValueError if a fraction is not in 0..1 or is given twice, or none lies between 0 and 1, where methods differ."""
    for fraction in fractions:
        check_fraction(fraction)
    names = [f"{fraction:g}" for fraction in fractions]  # they distinguish the cells
    if twice := _duplicates(names):
        raise ValueError(f"fractions must differ, but {', '.join(twice)} is given more than once")
    if not any(0 < float(name) < 1 for name in names):
        raise ValueError(
            "fractions must contain one between 0 and 1, since methods differ only if some pixels are removed and some stay; not "
            f"{list(fractions)}"
        )


def _check_names(methods: Iterable[str]) -> None:
    """Raises ValueError if a method's name cannot be a file's name, is given twice, or is the name of the shared cells."""
    names = list(methods)
    if not names:
        raise ValueError("methods must have at least one name, such as fullgrad")
    for name in names:
        if name == ALL:
            raise ValueError(f"no method may be called {ALL!r}: that is the name of the cells that all methods share; rename it")
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError(
                f"a method's name must consist of letters, digits, _ . + and -, since files are named after it; not {name!r}"
            )
        if len(name.encode()) > MAX_NAME_BYTES:
            raise ValueError(
                f"a method's name must have at most {MAX_NAME_BYTES} bytes, since files are named after it; not {name[:40]!r}..."
            )
    if twice := _duplicates(names):
        raise ValueError(f"methods must differ, but {', '.join(twice)} is given more than once")


def _duplicates(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
