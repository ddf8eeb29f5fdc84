"""The settings of a comparison of methods on planted shortcuts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from lightning.pytorch import LightningDataModule, LightningModule

from fg_lightning.attribution import Factory
from fg_lightning.planted.datamodule import Mark, PlantedShortcut, Shortcut, check_shortcut
from fg_lightning.planted.marks import Corner
from fg_lightning.roar.cell_training import check_trainer_options
from fg_lightning.roar.config import check_counts, check_makers, choose_methods
from fg_lightning.roar.experiment_folder import describe

IDENTITY = (
    "shortcut strength size corner margin max_epochs num_images metric batch_size num_threads data model prepare transform trainer "
    "methods"
).split()
"""The settings that the results depend on."""


@dataclass(frozen=True, eq=False)
class PlantedConfig:
    """The settings of an experiment. They are checked when the object is created.

    Args:
        output: Folder of all results.
        data: Class of the datamodule that marks are added to, or a function without arguments that makes one.
        model: Class of the LightningModule, or a function without arguments that makes an untrained one. It takes only images,
            gives logits [N, classes], and logs its accuracy in `test_step`.
        methods: Names in `fg_lightning.attribution.METHODS`, as a list or separated by commas; "all"; or a dict from names to
            factories.
        shortcut: corner, a patch whose brightness tells the class; or decoy, the image beside another one of an unrelated class.
        strength: How visible the mark is, 0 (invisible) to 1.
        num_seeds: Number of networks that are trained with the mark. As many are trained with marks of random classes. Seeds are
            0, 1, ...
        max_epochs: Number of epochs of each training.
        size: Side of the patch in pixels. Default: 3 for images of 28 pixels, in proportion for others.
        corner: The corner of the patch: top_left, top_right, bottom_left or bottom_right.
        margin: Number of pixels around the mark that count as part of it. Default: 4 around a patch in images of 28 pixels, in
            proportion for others; 0 for decoy.
        num_images: Number of test images that are explained, evenly spaced.
        metric: Name of the logged test metric that is the accuracy, 0 to 1. Default: the one with acc in its name.
        batch_size: Number of images that are explained at once.
        num_threads: Number of threads of torch for each training on a CPU. Results depend on it.
        prepare: Function that brings an image to the size of the network's input, see `ROARDataModule`.
        transform: Transform of the images after the marks are added, see `ROARDataModule`.
        trainer: Further arguments of Lightning's Trainer. Each training uses one device.

    Raises:
        TypeError: if data or model is an instance, or a count is not an integer.
        ValueError: if a setting is invalid.
    """

    output: Union[str, Path]
    data: Callable[[], LightningDataModule]
    model: Callable[[], LightningModule]
    methods: Union[str, Sequence[str], Mapping[str, Factory]] = "all"
    shortcut: Shortcut = "corner"
    strength: float = 1.0
    num_seeds: int = 5
    max_epochs: int = 4
    size: int | None = None
    corner: Corner = "top_left"
    margin: int | None = None
    num_images: int = 500
    metric: str | None = None
    batch_size: int = 50
    num_threads: int = 1
    prepare: Callable[[Any], Any] | None = None
    transform: Callable[..., Any] | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_makers(self.data, self.model)
        counted = "num_seeds", "max_epochs", "num_images", "batch_size", "num_threads"
        check_counts(**{name: getattr(self, name) for name in counted})
        if self.margin is not None and self.margin < 0:
            raise ValueError(f"margin must be a number of pixels, at least 0, not {self.margin}")
        check_shortcut(self.shortcut, self.strength, self.size, self.corner)
        for name, made in {
            "output": Path(self.output).resolve(),
            "methods": choose_methods(self.methods),
            "trainer": check_trainer_options(self.trainer or {}),
        }.items():
            object.__setattr__(self, name, made)  # the dataclass is frozen

    @property
    def folder(self) -> Path:
        """The output, absolute."""
        return Path(self.output)

    @property
    def factories(self) -> Mapping[str, Factory]:
        """The methods by name."""
        assert isinstance(self.methods, Mapping)
        return self.methods

    def identity(self) -> dict[str, Any]:
        """The settings that the results depend on, as JSON. They may not change from one run to the next."""
        return {name: describe(getattr(self, name)) for name in IDENTITY}

    def plant(self, mark: Mark, seed: int, num_classes: int | None, value_range: tuple[float, float] | None) -> PlantedShortcut:
        """A new datamodule with marks."""
        return PlantedShortcut(
            self.data(),
            self.shortcut,
            self.strength,
            mark,
            size=self.size,
            corner=self.corner,
            num_classes=num_classes,
            value_range=value_range,
            seed=seed,
            prepare=self.prepare,
            transform=self.transform,
        )
