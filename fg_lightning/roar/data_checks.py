"""What can be known of an experiment's data before anything is trained on them.

A few of the images that lose pixels, as a person sees them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from PIL import Image

from fg_lightning.atomic_files import replace_file
from fg_lightning.errors import CannotRun, UnfitData
from fg_lightning.roar.cell_training import deterministic
from fg_lightning.roar.compute_ranks import images_and_labels
from fg_lightning.roar.datamodule import Removal
from fg_lightning.roar.dataset_views import EXAMINED, View, views_of
from fg_lightning.roar.image_pixels import channel_sums, planes, spatial_shape
from fg_lightning.roar.steps import Plan
from fg_lightning.visualization.film_strips import spread_indices
from fg_lightning.visualization.saliency_overlay import Normalization, to_rgb


def checked_views(plan: Plan) -> dict[str, View]:
    """The splits of the data, of which a few images have been looked at, as two processes would see them.

    Raises:
        CannotRun: if there is no test data, images are of several sizes or numbers of channels, or they are others each time.
    """
    views, again = (_views(plan, seed) for seed in (0, 1))
    if not any(name.split("_")[0] == "test" for name in views):
        raise CannotRun("the datamodule has no test data, on which the networks are compared: give it a test_dataloader")
    for name, view in views.items():
        if view.fingerprint() != again[name].fingerprint():
            raise CannotRun(
                f"the datamodule holds other {name} images each time it is set up, so that no map belongs to them; where setup "
                "splits at random, give it a seed: random_split(..., generator=torch.Generator().manual_seed(0))"
            )
    _check_kinds(views)
    return views


def check_removal(plan: Plan, views: Mapping[str, View], fractions: Iterable[float]) -> None:
    """Whether pixels can be removed from the images as the experiment will do it.

    Raises:
        CannotRun: if a fraction between 0 and 1 rounds to no pixel or to all of them, the imputation does not fit the images, or
            labels are to be explained and there are none.
        UnfitData: if an image cannot be imputed.
    """
    view = list(views.values())[-1]
    pixels = math.prod(view.shape)
    for fraction in sorted(fractions):
        removed = round(fraction * pixels)
        if 0 < fraction < 1 and removed in (0, pixels):
            raise CannotRun(
                f"the fraction {fraction:g} of {pixels} pixels rounds to {removed or 'no'} pixels, where methods cannot differ; "
                f"give fractions from {1 / pixels:.4g} to {1 - 1 / pixels:.4g}"
            )
    image = view.plane.image(0)
    mean = [0.0] * len(channel_sums(image))
    Removal(0.5, plan.order, plan.imputation, plan.mode == "kar", mean).check(image)
    if plan.target == "label" and not _has_labels(view):
        raise CannotRun(
            "target label takes labels, but no integers [N] were found behind the images in a batch; let the data set give the "
            "label after the image, or take target predicted"
        )


def _has_labels(view: View) -> bool:
    try:
        return images_and_labels(next(iter(view.loader)), view.plane.place)[1] is not None
    except UnfitData:  # images become what they are in a hook of the datamodule, as labels may
        return True


def _views(plan: Plan, seed: int) -> dict[str, View]:
    with deterministic(seed, plan.threads):
        data = plan.data()
        data.prepare_data()
        for stage in ("fit", "test"):
            data.setup(stage)
        return views_of(data, prepare=plan.prepare, transform=plan.transform)


def _check_kinds(views: dict[str, View]) -> None:
    kinds: dict[tuple[str, int], str] = {}
    for name, view in views.items():
        for index in spread_indices(len(view.plane), EXAMINED):
            image = view.plane.image(index)
            if not planes(image).double().isfinite().all():
                raise CannotRun(
                    f"image {index} of the {name} data set has pixels that are not finite (NaN or infinity); correct it"
                )
            size = " x ".join(map(str, spatial_shape(image)))
            kinds.setdefault((size, len(channel_sums(image))), f"image {index} of the {name} data set")
    if len(kinds) > 1:
        found = "; ".join(
            f"{where} is {size} with {channels} channel{'s' * (channels != 1)}" for (size, channels), where in kinds.items()
        )
        raise CannotRun(
            f"images must be of one size and one number of channels before their transform, but {found}. Bring them to it with "
            "prepare=..., such as torchvision.transforms.v2.Compose([RGB(), Resize(256), CenterCrop(224)])"
        )


FOLDER = "examples"
MOST = 6

AS_THEY_ARE = Normalization([0.0], [1.0])
"""For bytes; other images are scaled by their minimum and maximum."""


def write_examples(folder: Path, view: View) -> None:
    """Writes images of a split, evenly spaced, by their index in it: `examples/000012.png`. None of signals and volumes."""
    if len(view.shape) != 2:
        return
    (folder / FOLDER).mkdir(exist_ok=True)
    for index in spread_indices(len(view.plane), MOST):
        image = planes(view.plane.image(index))
        pixels = to_rgb(image, AS_THEY_ARE if image.dtype is torch.uint8 else None)
        with replace_file(folder / FOLDER / f"{index:06d}.png") as file:
            Image.fromarray(pixels).save(file, "PNG")
