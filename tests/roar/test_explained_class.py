"""The class that is explained: against maps that are computed by hand for it, and refused before anything is trained."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import Saliency
from torch import nn

from fg_lightning.attribution import METHODS, method_from
from fg_lightning.removal import ranks
from fg_lightning.roar import CannotRun, SaliencyStore, explained_class
from fg_lightning.roar.explained_class import choose_classes, draw_class
from tests.helpers.tiny_squares import Data, Net
from tests.roar.test_experiment import experiment


def images_of(split):
    data = Data()
    data.setup("fit")
    return torch.stack([image for image, _ in getattr(data, split)])


def signed_gradient(scores, images):
    return torch.autograd.grad(scores(images).sum(), images)[0].sum(1, keepdim=True)


@pytest.mark.parametrize("target", ["predicted", "label", "random", 0, 1])
@pytest.mark.parametrize("method", ["gradient", "smoothgrad", "fullgrad"])
def test_maps_are_of_the_class(net, tmp_path, target, method):
    """`smoothgrad` and `fullgrad` call the network on more images than there are in a batch, or in another way."""
    store = SaliencyStore.make(tmp_path / "s", net, Data(), method, target=target, batch_size=7, seed=3)
    images = images_of("test")
    classes = {
        "predicted": None,
        "label": torch.arange(20) % 2,
        "random": torch.tensor([draw_class(2, "test", index, 3) for index in range(20)]),
    }.get(target, target)
    parts = zip(images.split(7), classes.split(7) if isinstance(classes, torch.Tensor) else [classes] * 3, strict=True)
    maps = torch.cat([METHODS[method](net).attribute(part, own) for part, own in parts])
    assert np.array_equal(store.ranks("test"), ranks(maps, [3 + index for index in range(20)]).numpy())
    assert store.manifest.target == target


class SignedGradient(Saliency):
    """A method of Captum's own, which knows nothing of inference mode."""

    def attribute(self, images, target):
        return super().attribute(images, target, abs=False).sum(1, keepdim=True)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
@pytest.mark.parametrize("target", ["label", "random", 1])
def test_a_class_of_captum_is_a_factory(net, tmp_path, target):
    theirs = SaliencyStore.make(tmp_path / "theirs", net, Data(), SignedGradient, target=target)
    ours = SaliencyStore.make(tmp_path / "ours", net, Data(), method_from(signed_gradient), target=target)
    assert np.array_equal(theirs.ranks("test"), ours.ranks("test"))


def test_drawn_classes_are_where_the_images_are(monkeypatch):
    monkeypatch.setattr(explained_class, "compute_output", lambda model, images: images.flatten(1))
    images = torch.zeros(3, 1, 8, 8, device="meta")
    assert choose_classes("random", None, nn.Identity(), images, "test", range(3), 0).is_meta


def test_drawn_classes_are_uniform_and_differ_between_splits_images_and_seeds():
    drawn = [draw_class(5, "train", index, 0) for index in range(5000)]
    assert all(abs(count - 1000) < 120 for count in Counter(drawn).values())  # more than four standard deviations
    assert drawn == [draw_class(5, "train", index, 0) for index in range(5000)]
    for other in ([draw_class(5, "test", index, 0) for index in range(5000)], [draw_class(5, "train", i, 1) for i in range(5000)]):
        same = np.mean(np.array(drawn) == np.array(other))
        assert abs(same - 0.2) < 0.03


class OneLogit(Net):
    """Answers with one number an image."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(2, 1)

    def forward(self, images):
        return self.last(self.network(images))

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self(batch[0])[:, 0], batch[1].float())

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        self.log("test/accuracy", ((self(batch[0])[:, 0] > 0) == batch[1]).float().mean())


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"target": 2}, r"target 2 does not fit the network: .*indices go from 0 to 1"),
        (
            {"target": "random", "model": OneLogit},
            r"target random draws a class .* it has shape \[8, 1\] for 8 images",
        ),
    ],
)
def test_a_class_that_the_network_does_not_have_is_refused_before_anything_is_trained(tmp_path, settings, why):
    with pytest.raises(CannotRun, match=why):
        experiment(tmp_path, methods=["random"], num_seeds=1, **settings).run()
    assert not (tmp_path / "networks").exists()
    results = experiment(tmp_path, methods=["random", "gradient"], num_seeds=1, target="random").run()
    assert results.target == "random"
    assert not results.failures


def test_a_network_of_one_logit_is_explained(tmp_path):
    assert not experiment(tmp_path, model=OneLogit, methods=["gradient"], num_seeds=1).run().failures


def test_a_method_of_ones_own_may_have_a_sign(net, tmp_path):
    """As in docs/explanation/remove_and_retrain.md."""

    store = SaliencyStore.make(tmp_path / "s", net, Data(), method_from(signed_gradient), target=1)
    images = images_of("test").requires_grad_()
    (signed,) = torch.autograd.grad(net(images)[:, 1].sum(), images)
    order = np.argsort(store.ranks("test").reshape(20, -1), axis=1)
    in_order = np.take_along_axis(signed.numpy().reshape(20, -1), order, axis=1)
    assert (in_order[:, 0] > 0).all()
    assert (in_order[:, -1] < 0).all()
    assert (np.diff(in_order) <= 1e-7).all()
