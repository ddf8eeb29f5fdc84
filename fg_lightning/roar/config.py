"""The settings of an experiment: one dataclass for the experiment, its engines and the command line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args

from lightning.pytorch import LightningDataModule, LightningModule

from fg_lightning.attribution import METHODS, Factory, find_method
from fg_lightning.removal import Fill, Order, find_fill
from fg_lightning.removal.pixel_ranking import check_fraction, check_order
from fg_lightning.roar.cell_training import check_trainer_options
from fg_lightning.roar.experiment_folder import describe
from fg_lightning.roar.results import ALL

Mode = Literal["roar", "kar", "road"]

Target = Literal["predicted", "label"]

DEFAULT_METHODS = ("random", "blurred_random", "edges", "gradient", "fullgrad", "blurred_fullgrad")
"""FullGrad, the gradient, and the controls beside which a score must be read."""

MAX_NAME_BYTES = 150
"""Of a method's name. A file system takes 255, and a fraction, a seed and a suffix need some of them."""

LOWER_IS_BETTER = ("loss", "error", "perplexity")
"""Parts of the names of metrics that fall as a network gets better."""

IDENTITY = "mode order max_epochs target metric batch_size num_threads data model fill prepare transform trainer methods".split()
"""The settings that numbers depend on."""


@dataclass(frozen=True, eq=False)
class ROARConfig:
    """What an experiment is run with. It is checked when it is made, and sent to other machines whole.

    Args:
        output: The folder that everything is kept in. All machines share it.
        data: Makes the datamodule: its class, or a function without arguments. Every cell makes its own.
        model: Makes an untrained LightningModule that takes images alone and logs its accuracy in `test_step`.
        methods: Names in `fg_lightning.attribution.METHODS`, as a list or with commas between them, "all" of them, or factories by
            name. Random is always added.
        fractions: Shares of the pixels that are removed (mode kar: kept), each 0 to 1. 0, intact images, is always added; in mode
            kar 1 is, too.
        num_seeds: Number of trainings for each method and fraction, from seeds 0, 1, ... Mode road trains none, and tests once.
        max_epochs: Number of epochs of each training.
        order: morf, the most relevant pixels first, or lerf, the least relevant first.
        mode: roar removes a fraction of the pixels; kar keeps it and removes the rest; road removes it and does not retrain.
        fill: What replaces removed pixels: dataset_mean (the training images' mean of each channel), noisy_linear, image_mean,
            black, a number or one for each channel in the units of the images before their transform, or a function, see
            `ROARDataModule`.
            Default: dataset_mean; noisy_linear for mode road.
        checkpoint: Lightning's, of the network that is explained. Default: a network is trained on intact images, like the cells.
        target: The class that is explained. With label, the masks may leak it.
        metric: The logged test metric that counts, higher for a better network. Default: the one with acc in its name.
        num_threads: Number of torch's threads of a training on a CPU, the same for every engine: numbers depend on it.
        batch_size: Number of images that are explained at once.
        prepare: Brings images to the size that the network takes, see `ROARDataModule`.
        transform: What is done to images after the removal, see `ROARDataModule`.
        trainer: Further arguments of Lightning's Trainer, such as {"precision": "bf16-mixed"}. A training uses one device, and
            copies of the callbacks.
        wandb: A Weights & Biases project: a run for each training in one group, and one for the whole. Default: none.

    Raises:
        TypeError: if data or model is an instance, a count is not an integer, or fill is of no known kind.
        ValueError: if a setting makes no sense.
    """

    output: Union[str, Path]
    data: Callable[[], LightningDataModule]
    model: Callable[[], LightningModule]
    methods: Union[str, Sequence[str], Mapping[str, Factory]] = DEFAULT_METHODS
    fractions: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9)
    num_seeds: int = 3
    max_epochs: int = 5
    order: Order = "morf"
    mode: Mode = "roar"
    fill: Fill | None = None
    checkpoint: Union[str, Path, None] = None
    target: Target = "predicted"
    metric: str | None = None
    num_threads: int = 1
    batch_size: int = 50
    prepare: Callable[[Any], Any] | None = None
    transform: Callable[..., Any] | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    wandb: str | None = None

    def __post_init__(self) -> None:
        self._check_makers()
        _check_choice("mode", self.mode, get_args(Mode))
        self._check_counts()
        if self.metric is not None and any(part in self.metric.lower() for part in LOWER_IS_BETTER):
            raise ValueError(
                "metric must be one that is higher for a better network, such as accuracy, since scores are differences of it; "
                f"{self.metric!r} is lower: log its negative in test_step under another name, and name that"
            )
        names = [name.strip() for name in self.methods.split(",")] if isinstance(self.methods, str) else list(self.methods)
        if names == ["all"] and not isinstance(self.methods, Mapping):
            names = list(METHODS)
        _check_names(names)
        check_order(self.order)
        _check_fractions(self.fractions)
        fill = self.fill if self.fill is not None else "noisy_linear" if self.mode == "road" else "dataset_mean"
        _check_choice("target", self.target, get_args(Target))
        find_fill(fill, dataset_mean=0.0)
        factories = self.methods if isinstance(self.methods, Mapping) else {name: find_method(name) for name in names}
        for name, value in {
            "output": Path(self.output).resolve(),
            "methods": {"random": find_method("random"), **factories},
            "fill": fill,
            "checkpoint": None if self.checkpoint is None else Path(self.checkpoint),
            "trainer": check_trainer_options(self.trainer or {}),
        }.items():
            object.__setattr__(self, name, value)  # as frozen dataclasses do

    @property
    def folder(self) -> Path:
        """The output, absolute."""
        return Path(self.output)

    @property
    def base_path(self) -> Path:
        """Of the weights of the network that is explained."""
        return self.folder / "base.pt"

    @property
    def factories(self) -> Mapping[str, Factory]:
        """The methods by name."""
        assert isinstance(self.methods, Mapping)
        return self.methods

    def store_path(self, method: str) -> Path:
        return self.folder / "stores" / method

    def identity(self, checkpoint: str | None) -> dict[str, Any]:
        """The settings that may not change from one run to the next, since numbers depend on them, as JSON.

        Args:
            checkpoint: hash of the file. None if there is none.
        """
        return {name: describe(getattr(self, name)) for name in IDENTITY} | {"checkpoint": checkpoint}

    def _check_makers(self) -> None:
        for name, value, kind in (("data", self.data, LightningDataModule), ("model", self.model, LightningModule)):
            if isinstance(value, kind) or not callable(value):
                raise TypeError(
                    f"{name} must be a function that makes a new {kind.__name__}, such as the class itself or a lambda, since each "
                    f"training starts from scratch; not {type(value).__name__}"
                )

    def _check_counts(self) -> None:
        for name in ("num_seeds", "max_epochs", "num_threads", "batch_size"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"{name} must be an integer, not {count!r}")
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _check_fractions(fractions: Sequence[float]) -> None:
    """Raises ValueError if one is not in 0..1 or is given twice, or none is between 0 and 1, where methods differ."""
    for fraction in fractions:
        check_fraction(fraction)
    names = [f"{fraction:g}" for fraction in fractions]  # cells are distinguished by them
    if twice := _duplicates(names):
        raise ValueError(f"fractions must differ, but {', '.join(twice)} is given more than once")
    if not any(0 < float(name) < 1 for name in names):
        raise ValueError(
            "fractions must have one between 0 and 1, since methods differ only if some pixels are removed and some stay; not "
            f"{list(fractions)}"
        )


def _check_names(methods: Iterable[str]) -> None:
    """Names of methods become names of files, and stand in the table beside the cells that all methods share."""
    names = list(methods)
    if not names:
        raise ValueError("methods must have at least one name, such as fullgrad")
    for name in names:
        if name == ALL:
            raise ValueError(f"no method may be called {ALL!r}: the table calls so the cells that all methods share")
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
