"""Runs images with marks through a network and a method: predictions, and how much of each map lies on the mark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from fg_lightning.attribution import Factory
from fg_lightning.errors import CannotRun, UnfitData
from fg_lightning.metrics import pointing_game, relevance_mass
from fg_lightning.planted.datamodule import PlantedShortcut
from fg_lightning.roar.cell_training import QUIET, silence_lightning
from fg_lightning.roar.changed_images import HOOKS
from fg_lightning.roar.explained_class import compute_maps
from fg_lightning.roar.image_pixels import images_and_labels
from fg_lightning.visualization.film_strips import spread_indices


class Explained(NamedTuple):
    """Predictions and scores of images with marks.

    Attributes:
        predictions: predicted class of each image, [N].
        pointing_game: 1 for each map whose maximum lies on the mark, else 0, [N]. Empty without a method.
        relevance_mass: share of each map that lies on the mark, [N]. Empty without a method.
        images: the first few images as the network sees them, [M, C, H, W].
        maps: maps of these, [M, 1, H, W]. Empty without a method.
    """

    predictions: Tensor
    pointing_game: Tensor
    relevance_mass: Tensor
    images: Float[Tensor, "m c h w"]
    maps: Float[Tensor, "m 1 h w"]


class MarkPredictor(LightningModule):
    """Predicts the class of images with marks, and explains it.

    Args:
        model: the network.
        factory: factory of the method. None: only predict.
        data: the images' datamodule, after its `setup`.
        place: index or key of the images in a batch.
        margin: see `PlantedShortcut.masks`.
        num_shown: number of images whose maps are kept.
    """

    def __init__(
        self, model: LightningModule, factory: Factory | None, data: PlantedShortcut, place: Any, margin: int, num_shown: int
    ) -> None:
        super().__init__()
        self.model = model
        self._attribution = None if factory is None else factory(model)
        self._data = data
        self._place = place
        self._margin = margin
        self._num_shown = num_shown
        for hook in HOOKS:  # Lightning calls the datamodule's, or else the network's
            if is_overridden(hook, model, LightningModule):
                setattr(self, hook, getattr(model, hook))

    def predict_step(self, batch: Any, batch_idx: int) -> Explained:
        images, _ = images_and_labels(batch, self._place)
        logits = self.model(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise CannotRun(f"the network must give logits [N, classes] of two classes or more, but it gives {got}")
        classes = logits.argmax(1)
        empty = torch.empty(0)
        if self._attribution is None:
            return Explained(classes.cpu(), empty, empty, images[:0].cpu(), empty)
        maps = compute_maps(self._attribution, images, classes).float().cpu()
        mask = self._data.masks(len(maps), self._margin)
        if mask.shape != maps.shape:
            raise UnfitData(
                f"maps are {tuple(maps.shape[2:])}, but images are {tuple(mask.shape[2:])} before their transform; bring images to "
                "the network's size with prepare=..., separately from the rest of the transform"
            )
        shown = min(self._num_shown, len(maps))
        return Explained(
            classes.cpu(), pointing_game(maps, mask), relevance_mass(maps, mask), images[:shown].detach().cpu(), maps[:shown]
        )


class _Loaded(LightningDataModule):
    """A datamodule with one loader, whose batches pass through the hooks of the user's datamodule."""

    def __init__(self, data: PlantedShortcut, loader: DataLoader[Any]) -> None:
        super().__init__()
        self._loader = loader
        for hook in HOOKS:
            if is_overridden(hook, data, LightningDataModule):
                setattr(self, hook, getattr(data, hook))

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader


def explain_marks(
    model: LightningModule,
    factory: Factory | None,
    data: PlantedShortcut,
    *,
    num_images: int,
    batch_size: int,
    margin: int | None,
    num_shown: int = 0,
    trainer: Mapping[str, Any] | None = None,
) -> Explained:
    """Predicts test images with marks, and explains the predicted classes with a method.

    Args:
        model: the network.
        factory: factory of the method. None: only predict.
        data: the datamodule, after its `setup`.
        num_images: largest number of images of the last split, evenly spaced.
        batch_size: number of images in a batch.
        margin: number of pixels around the mark that count as part of it. None: the datamodule's `margin`.
        num_shown: number of images whose maps are returned, the first of the first batch.
        trainer: arguments of Lightning's Trainer: accelerator and devices.

    Raises:
        CannotRun: if the network gives no logits.
        UnfitData: if the maps and the images differ in size.
    """
    dataset, view = data.dataset(data.splits[-1])
    indices = spread_indices(len(dataset), num_images)
    loader: DataLoader[Any] = DataLoader(
        Subset(dataset, indices), batch_size, num_workers=view.loader.num_workers, collate_fn=view.loader.collate_fn
    )
    width = data.margin if margin is None else margin
    predictor = MarkPredictor(model, factory, data, view.plane.place, width, num_shown).eval()
    with silence_lightning():
        run = Trainer(**{**QUIET, **{name: value for name, value in (trainer or {}).items() if name in ("accelerator", "devices")}})
        batches: Any = run.predict(predictor, datamodule=_Loaded(data, loader))
    predictions, pointing, mass = (torch.cat([batch[i] for batch in batches]) for i in range(3))
    return Explained(predictions, pointing, mass, batches[0].images, batches[0].maps)
