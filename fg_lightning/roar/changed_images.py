"""The user's datamodule, whose images are changed before their transform."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, Dataset

from fg_lightning.roar.dataset_transforms import Transform
from fg_lightning.roar.dataset_views import SplitView, map_loaders, rebuild_loader, views_of

HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""Lightning calls these for every batch: the datamodule's if it defines one, else the network's."""


class ChangedImages(LightningDataModule):
    """Wraps a datamodule and changes the images of its data sets. All else about the loaders stays the same.

    Args:
        base: datamodule over map-style data sets.
        prepare: see `views_of`.
        transform: see `views_of`.
    """

    def __init__(self, base: LightningDataModule, prepare: Transform | None, transform: Transform | None) -> None:
        super().__init__()
        self.base = base
        if hasattr(base, "normalization"):  # (mean, std) of images that are normalized already
            self.normalization = base.normalization
        self._adaptations = {"prepare": prepare, "transform": transform}
        self._views: dict[str, SplitView] = {}
        for hook in HOOKS:  # a hook here without one in the base would prevent the call of the network's
            if is_overridden(hook, base, LightningDataModule):
                setattr(self, hook, getattr(base, hook))

    @abstractmethod
    def check_views(self, views: Mapping[str, SplitView]) -> None:
        """Checks the splits when they are set up, and prepares the changes."""

    @abstractmethod
    def change_images(self, view: SplitView) -> Dataset[Any]:
        """The samples of a split with changed images."""

    def prepare_data(self) -> None:
        self.base.prepare_data()

    def setup(self, stage: str) -> None:
        self.base.trainer = self.trainer
        if self._views:
            return
        for needed in ("fit", "test"):  # the evaluation transform belongs to the test images
            self.base.setup(needed)
        views = views_of(self.base, **self._adaptations)
        self.check_views(views)
        self._views = views

    def teardown(self, stage: str) -> None:
        self.base.teardown(stage)
        if is_overridden("teardown", self.base, LightningDataModule):
            self._views = {}  # the base may have deleted its data

    def train_dataloader(self) -> Any:
        return map_loaders(self.base.train_dataloader(), "train", self._change_loader)

    def val_dataloader(self) -> Any:
        return map_loaders(self.base.val_dataloader(), "val", self._change_loader) if self._has("val") else []

    def test_dataloader(self) -> Any:
        return map_loaders(self.base.test_dataloader(), "test", self._change_loader) if self._has("test") else []

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)

    def _has(self, split: str) -> bool:
        return any(name.split("_")[0] == split for name in self._views)

    def _change_loader(self, name: str, loader: DataLoader[Any]) -> DataLoader[Any]:
        return rebuild_loader(loader, self.change_images(self._views[name]))
