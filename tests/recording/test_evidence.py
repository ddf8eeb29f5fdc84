"""What is read of the code and the parts of a module, without calling any of it."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MultilabelAccuracy
from torchmetrics.regression import MeanSquaredError

from fg_lightning.recording.output_evidence import Evidence


class Base(pl.LightningModule):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def loss(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)


class Inherits(Base):
    pass


class Overrides(Base):
    """As an embedder does whose base class is a classifier."""

    def loss(self, batch):
        found = F.normalize(self(batch[0]))
        return (found @ found.T).square().mean()


class OfAFunction(Base):
    def loss(self, batch):
        return cross_entropy(self(batch[0]), batch[1])


def helper(scores, labels):
    return F.binary_cross_entropy_with_logits(scores, labels)


class OfAHelper(Base):
    def loss(self, batch):
        return helper(self(batch[0]), batch[1])


class OfACriterion(Base):
    def loss(self, batch):
        return self.criterion(self(batch[0]), batch[1])


class OfAProperty(Base):
    def training_step(self, batch, batch_idx):
        return self.expensive

    @property
    def expensive(self):
        raise AssertionError("a property must not be asked for")


class FocalLoss(nn.Module):
    def forward(self, scores, labels):
        return scores


class OwnLoss(nn.Module):
    def forward(self, scores, labels):
        return F.mse_loss(scores, labels)


class NTXentLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.cross_entropy = nn.CrossEntropyLoss()

    def forward(self, a, b):
        return self.cross_entropy(a @ b.T, torch.arange(len(a)))


class DinoNetwork(nn.Module):
    """A network that is called like a method is no loss."""


def hugging_face(problem):
    model = type("ViTForImageClassification", (nn.Linear,), {})(2, 2)
    model.config = SimpleNamespace(problem_type=problem, num_labels=2)
    return model


KINDS = {
    "inherited": (Inherits, {"classes"}),
    "overridden": (Overrides, {"embeddings"}),
    "a function of torch by its own name": (OfAFunction, {"classes"}),
    "a helper": (OfAHelper, {"logits"}),
    "a module of torch": (lambda: OfACriterion(criterion=nn.BCELoss()), {"probabilities"}),
    "a function in an attribute": (lambda: OfACriterion(criterion=F.l1_loss), {"numbers"}),
    "a loss of its own, by its name": (lambda: OfACriterion(criterion=FocalLoss()), {"classes"}),
    "a loss of its own, by its code": (lambda: OfACriterion(criterion=OwnLoss()), {"numbers"}),
    "contrastive, by its name and not by its code": (lambda: OfACriterion(criterion=NTXentLoss()), {"embeddings"}),
    "Hugging Face": (lambda: OfAProperty(model=hugging_face("single_label_classification")), {"classes"}),
    "Hugging Face, several labels": (lambda: OfAProperty(model=hugging_face("multi_label_classification")), {"logits"}),
    "Hugging Face, numbers": (lambda: OfAProperty(model=hugging_face("regression")), {"numbers"}),
    "Hugging Face, by its class": (lambda: OfAProperty(model=hugging_face(None)), {"classes"}),
    "a backbone with a name": (lambda: Inherits(backbone=DinoNetwork()), {"classes"}),
    "a property": (OfAProperty, set()),
    "a metric of classes": (lambda: OfAProperty(metric=MulticlassAccuracy(7)), {"classes"}),
    "a metric of labels": (lambda: OfAProperty(metric=MultilabelAccuracy(5)), {"labels"}),
    "a metric of yes or no": (lambda: OfAProperty(metric=BinaryAUROC()), {"binary"}),
    "a metric of numbers": (lambda: OfAProperty(metric=MeanSquaredError()), {"numbers"}),
    "a collection": (lambda: OfAProperty(metrics=MetricCollection([MulticlassAccuracy(7)])), {"classes"}),
    "no Lightning module": (lambda: nn.Linear(2, 2), set()),
}


@pytest.mark.parametrize("name", KINDS)
def test_losses_and_metrics_are_known(name):
    module, kinds = KINDS[name]
    assert Evidence.from_model(module()).kinds == kinds


class Hyper(OfAProperty):
    def __init__(self, **options):
        super().__init__()
        self.save_hyperparameters()


COUNTS = {
    "an attribute": (lambda: OfAProperty(num_classes=7), {7}),
    "names": (lambda: OfAProperty(class_names=["a", "b", "c"]), {3}),
    "a hyperparameter": (lambda: Hyper(num_classes=4, lr=0.1), {4}),
    "a metric": (lambda: OfAProperty(metric=MulticlassAccuracy(7)), {7}),
    "weights of classes": (lambda: OfACriterion(criterion=nn.CrossEntropyLoss(weight=torch.ones(6))), {6}),
    "a truth value": (lambda: OfAProperty(num_classes=True), set()),
    "nothing": (OfAProperty, set()),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_number_of_classes_is_known(name):
    module, counts = COUNTS[name]
    assert Evidence.from_model(module()).counts == counts
    assert Evidence.from_model(module(), {99}).of_data == {99}
    assert Evidence.from_model(module(), {99}, {98}).counts == counts | {98}


def test_a_number_of_classes_of_a_network_inside_speaks_for_that_network_only():
    network = nn.Linear(2, 2)
    network.num_classes = 1000
    found = Evidence.from_model(OfAProperty(network=network))
    assert found.heads == {1000}
    assert not found.counts


def test_a_head_behind_an_output_is_seen():
    found = Evidence.from_model(OfAProperty(net=nn.Linear(2, 64), head=nn.Linear(64, 10)))
    assert found.has_head_behind(64, num_seen=3)
    assert found.has_head_behind(64, num_seen=10)
    assert not found.has_head_behind(64, num_seen=11)
    assert not found.has_head_behind(10, num_seen=3)


class SimCLRTask(OfAProperty):
    pass


class Compares(Base):
    def loss(self, batch):
        found = self(batch[0])
        return F.cross_entropy(found @ found.T, torch.arange(len(found)))


def test_methods_of_comparison_are_known_by_their_names_and_by_products():
    assert Evidence.from_model(SimCLRTask()).kinds == {"embeddings"}
    assert Evidence.from_model(Compares()).kinds == {"embeddings", "classes"}


def test_an_end_in_a_sigmoid_is_seen():
    class Ends(OfAProperty):
        def forward(self, images):
            return self.net(images).sigmoid()

    assert Evidence.from_model(Ends(net=nn.Linear(2, 2))).ends_in_sigmoid
    assert Evidence.from_model(OfAProperty(net=nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()))).ends_in_sigmoid
    assert not Evidence.from_model(OfAProperty(net=nn.Linear(2, 2))).ends_in_sigmoid
