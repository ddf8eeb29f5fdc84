"""What can be known of an experiment's data before anything is trained on them."""

from __future__ import annotations

from fg_lightning.errors import CannotRun
from fg_lightning.roar.pixels import channel_sums, spatial_shape
from fg_lightning.roar.plan import Plan
from fg_lightning.roar.training import deterministic
from fg_lightning.roar.views import EXAMINED, View, views_of
from fg_lightning.visualization.film_strip import evenly_spaced


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
        for index in evenly_spaced(len(view.plane), EXAMINED):
            image = view.plane.image(index)
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
