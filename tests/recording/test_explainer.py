"""What is explained, against its definition by plain loops."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from fg_lightning.fullgrad import TargetError
from fg_lightning.recording.explainer import Explainer
from fg_lightning.recording.output_evidence import Evidence
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.task import (
    TASKS,
    Binary,
    Classes,
    Entry,
    Probability,
    Regions,
    SeveralClasses,
    SeveralProbabilities,
    Task,
)

IMAGES = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


class Gives(nn.Module):
    """A linear function of the image of any shape."""

    def __init__(self, *shape, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.shape = shape
        self.linear = nn.Linear(72, max(1, torch.Size(shape).numel()))

    def forward(self, images):
        return self.linear(images.flatten(1)).reshape(len(images), *self.shape)


def explain(module, *candidates, times=1, evidence=None, **options):
    probe = Probe(IMAGES, *candidates[:1], others=tuple(candidates[1:]))
    explainer = Explainer(probe, **options, **({} if evidence is None else {"evidence": lambda module: evidence}))
    return explainer, [explainer.explain(module, CPU) for _ in range(times)][-1]


LABELS = torch.tensor([2, 0, 1])
SEVERAL = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
MASKS = torch.randint(0, 4, (3, 6, 6), generator=torch.Generator().manual_seed(1))

CASES = {
    "classes": ((4,), [LABELS], Classes, "label"),
    "classes as a column": ((4,), [LABELS.int()], Classes, "label"),
    "one-hot": ((4,), [nn.functional.one_hot(LABELS, 4).float()], Classes, "label"),
    "several classes": ((4,), [SEVERAL], SeveralClasses, "first or predicted"),
    "no labels": ((4,), [], Task, "mean"),
    "no labels, but four classes": ((4,), [], Classes, "predicted"),
    "a number behind the classes": ((4,), [LABELS, torch.rand(3)], Classes, "label"),
    "an index before a matrix": ((4,), [torch.tensor([700, 701, 702]), SEVERAL], SeveralClasses, "first or predicted"),
    "one logit": ((1,), [torch.tensor([0, 1, 1])], Binary, "output"),
    "one logit, no dimension": ((), [torch.tensor([0.0, 1.0, 1.0])], Binary, "output"),
    "one number": ((1,), [torch.tensor([0.3, -2.0, 7.0])], Task, "output"),
    "one number without labels": ((1,), [], Task, "output"),
    "several numbers": ((4,), [torch.randn(3, 4)], Task, "mean"),
    "an image": ((2, 6, 6), [torch.rand(3, 2, 6, 6)], Task, "mean"),
    "an image without labels": ((2, 6, 6), [], Task, "mean"),
    "tokens": ((5, 4), [], Task, "mean"),
    "regions": ((4, 6, 6), [MASKS], Regions, "region"),
    "regions behind an index": ((4, 6, 6), [LABELS, MASKS], Regions, "region"),
    "regions with a channel": ((4, 6, 6), [MASKS[:, None]], Regions, "region"),
    "one-hot regions": ((4, 6, 6), [nn.functional.one_hot(MASKS, 4).permute(0, 3, 1, 2)], Regions, "region"),
    "smaller regions": ((4, 3, 3), [MASKS], Regions, "smaller region"),
    "regions without labels": ((4, 6, 6), [], Task, "mean"),
    "regions without labels, but four classes": ((4, 6, 6), [], Regions, "predicted region"),
    "one region": ((1, 6, 6), [(MASKS > 1).float()[:, None]], Regions, "one region"),
}


EVIDENCE = {
    "one logit": Evidence(frozenset({"logits"})),
    "one logit, no dimension": Evidence(frozenset({"logits"})),
    "no labels, but four classes": Evidence(counts=frozenset({4})),
    "regions without labels, but four classes": Evidence(counts=frozenset({4})),
}


def explained_by_definition(scores, candidates, what):
    n = len(scores)
    if what in ("output", "mean"):
        return [float(scores[i].mean()) for i in range(n)]
    if what == "label":
        return [float(scores[i, LABELS[i]]) for i in range(n)]
    if what == "predicted":
        return [float(scores[i].max()) for i in range(n)]
    if what == "first or predicted":
        return [float(scores[i, row.index(1)] if 1 in row else scores[i].max()) for i, row in enumerate(SEVERAL.tolist())]
    maps = {
        "region": MASKS,
        "smaller region": MASKS[:, 1::2, 1::2],  # the nearest of every two, counted from pixel centres
        "predicted region": scores.argmax(1) if scores.shape[1] > 1 else None,
        "one region": (MASKS > 1).long(),
    }[what]
    values = []
    for i in range(n):
        classes = max(scores.shape[1], 2)
        areas = [int((maps[i] == k).sum()) for k in range(1, classes)]
        chosen = 1 + areas.index(max(areas)) if max(areas) else 0
        channel = scores[i, chosen if scores.shape[1] > 1 else 0]
        region = maps[i] == chosen
        values.append(float(channel[region].mean()))
    return values


@pytest.mark.parametrize("name", CASES)
def test_the_task_is_understood_and_its_number_is_explained(name):
    shape, candidates, kind, what = CASES[name]
    module = Gives(*shape)
    explainer, found = explain(module, *candidates, evidence=EVIDENCE.get(name))
    assert type(explainer.task) is kind
    scores = module(IMAGES).detach()
    expected = explained_by_definition(scores, candidates, what)
    assert found.terms["output"].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)  # float32 sums in another order
    assert float(found.terms["completeness_error"].max()) < 1e-3


@pytest.mark.parametrize("name", CASES)
def test_what_was_explained_once_is_explained_again(name):
    """However the network's answers change, and through a checkpoint, which keeps the task's name."""
    shape, candidates, kind, _ = CASES[name]
    module, other = Gives(*shape), Gives(*shape, seed=1)
    explainer, first = explain(module, *candidates, evidence=EVIDENCE.get(name))
    second = explainer.explain(other, CPU)
    for of_a_look in (first, second):
        if first.answers.explained is not None:
            assert torch.equal(of_a_look.answers.explained, first.answers.explained)
    resumed = Explainer(explainer.probe, resumed_task=TASKS[kind.__name__]())
    again = resumed.explain(other, CPU)
    assert torch.equal(again.terms["output"], second.terms["output"])
    assert torch.equal(again.maps, second.maps)


def test_predictions_and_confidence():
    module = Gives(4)
    scores = module(IMAGES).detach()
    _, found = explain(module, LABELS)
    assert torch.equal(found.answers.predicted, scores.argmax(1))
    assert torch.allclose(found.answers.confidence, scores.softmax(1).amax(1))
    _, found = explain(module, SEVERAL)
    assert torch.allclose(found.answers.confidence, scores.sigmoid().amax(1))
    module = Gives(1)
    probability = module(IMAGES).detach().sigmoid().squeeze(1)
    _, found = explain(module, torch.tensor([0, 1, 1]), evidence=EVIDENCE["one logit"])
    assert torch.equal(found.answers.predicted, (probability > 0.5).long())
    assert torch.allclose(found.answers.confidence, torch.where(probability > 0.5, probability, 1 - probability))
    _, found = explain(module, torch.rand(3))
    assert torch.allclose(found.answers.predicted, module(IMAGES).detach().squeeze(1))
    assert found.answers.confidence is None


def test_outputs_that_are_probabilities_are_taken_as_they_are():
    module = nn.Sequential(Gives(4), nn.Softmax(1))
    _, found = explain(module, LABELS)
    assert torch.allclose(found.answers.confidence, module(IMAGES).detach().amax(1))
    module = nn.Sequential(Gives(4), nn.Sigmoid())
    explainer, found = explain(module, SEVERAL)
    assert type(explainer.task) is SeveralProbabilities
    assert torch.allclose(found.answers.confidence, module(IMAGES).detach().amax(1))
    explainer, found = explain(nn.Sequential(Gives(4), nn.Hardtanh(0.2, 0.4)), SEVERAL)  # as logits may be, by accident
    assert type(explainer.task) is SeveralClasses
    module = nn.Sequential(Gives(1), nn.Sigmoid())
    explainer, found = explain(module, torch.tensor([0, 1, 1]), evidence=Evidence(frozenset({"probabilities"})))
    probability = module(IMAGES).detach().squeeze(1)
    assert type(explainer.task) is Probability
    assert torch.equal(found.answers.predicted, (probability > 0.5).long())
    assert torch.allclose(found.answers.confidence, torch.where(probability > 0.5, probability, 1 - probability))


@pytest.mark.parametrize("ignored", [-100, 4, 255])
def test_labels_that_are_no_classes_give_way_to_predictions(ignored):
    module = Gives(4)
    labels = torch.tensor([2, ignored, 1])
    explainer, found = explain(module, labels)
    assert "out of range" in explainer.misfit
    assert found.answers.explained.tolist() == [2, int(module(IMAGES)[1].argmax()), 1]


@pytest.mark.parametrize("ignored", [-1, 255])
def test_ignored_places_of_a_label_map_are_no_region(ignored):
    masks = MASKS.clone()
    masks[masks == 3] = ignored
    masks[0] = ignored
    module = Gives(4, 6, 6)
    _, found = explain(module, masks)
    assert found.answers.explained[0] == 0
    assert float(found.terms["output"][0]) == pytest.approx(float(module(IMAGES)[0, 0].detach().mean()), rel=1e-4)
    assert set(found.answers.explained[1:].tolist()) <= {1, 2}


# --- what the user asks for


@pytest.mark.parametrize(("target", "expected"), [(3, [3, 3, 3]), ([1, 3, 0], [1, 3, 0]), (torch.tensor([1, 3, 0]), [1, 3, 0])])
def test_a_target_goes_before_the_labels(target, expected):
    module = Gives(4)
    explainer, found = explain(module, LABELS, target=target)
    scores = module(IMAGES).detach()
    assert found.terms["output"].tolist() == pytest.approx([float(scores[i, k]) for i, k in enumerate(expected)], rel=1e-4)
    assert torch.equal(explainer.labels, LABELS)


def test_a_target_of_a_dense_output_is_explained_everywhere():
    module = Gives(4, 6, 6)
    _, found = explain(module, MASKS, target=2)
    assert found.terms["output"].tolist() == pytest.approx(module(IMAGES)[:, 2].flatten(1).mean(1).tolist(), rel=1e-4)


def test_a_function_of_the_output_is_explained():
    class Two(Gives):
        def forward(self, images):
            return {"a": super().forward(images), "b": 2 * super().forward(images)}

    module = Two(4)
    _, found = explain(module, LABELS, target=lambda output: output["b"][:, 1] - output["a"][:, 0])
    output = module(IMAGES)
    assert found.terms["output"].tolist() == pytest.approx((output["b"][:, 1] - output["a"][:, 0]).tolist(), rel=1e-4)
    assert found.answers.explained is None


def test_a_target_that_is_no_class_is_refused():
    with pytest.raises(TargetError, match=r"target 9 is not a class: labels .* out of range"):
        explain(Gives(4), LABELS, target=9)
    with pytest.raises(ValueError, match="one for each of 3 images"):
        explain(Gives(4), LABELS, target=[1, 2])


def test_a_target_of_an_output_without_classes_is_an_entry():
    module = Gives(4)
    explainer, found = explain(module, LABELS, target=3, evidence=Evidence(frozenset({"embeddings"})))
    assert type(explainer.task) is Entry
    scores = module(IMAGES).detach()
    assert found.terms["output"].tolist() == pytest.approx(scores[:, 3].tolist(), rel=1e-4, abs=1e-6)
    assert torch.allclose(found.answers.predicted, scores[:, 3], atol=1e-6)
    assert found.answers.explained is None
    assert found.answers.confidence is None
    assert found.num_classes is None


TOLD = {
    "classes": ((4,), LABELS, Classes, "label"),
    "labels": ((4,), SEVERAL, SeveralClasses, "first or predicted"),
    "logit": ((1,), torch.tensor([0, 1, 1]), Binary, "output"),
    "regions": ((4, 6, 6), MASKS, Regions, "region"),
    "number": ((4,), LABELS, Task, "mean"),
}


@pytest.mark.parametrize("told", TOLD)
def test_the_user_may_tell_the_task(told):
    """Whatever the evidence is."""
    shape, labels, kind, what = TOLD[told]
    module = Gives(*shape)
    for evidence in (Evidence(), Evidence(frozenset({"numbers"})), Evidence(frozenset({"classes"}), frozenset({4}))):
        explainer, found = explain(module, labels, task=told, evidence=evidence)
        assert type(explainer.task) is kind
        assert explainer.assumed is None
        expected = explained_by_definition(module(IMAGES).detach(), [labels], what)
        assert found.terms["output"].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_user_may_tell_the_task_without_labels():
    module = Gives(4)
    _, found = explain(module, task="classes")
    assert torch.equal(found.answers.explained, module(IMAGES).argmax(1))
    _, found = explain(Gives(4, 6, 6), task="regions")
    assert found.answers.explained is not None


@pytest.mark.parametrize(
    ("told", "shape"), [("classes", (1,)), ("classes", (4, 6, 6)), ("logit", (4,)), ("regions", (4,)), ("labels", ())]
)
def test_a_task_that_the_output_has_no_shape_for_is_refused(told, shape):
    with pytest.raises(TargetError, match=rf'task="{told}" needs an output \[N.*has shape \[3'):
        explain(Gives(*shape), LABELS, task=told)


# --- outputs of several parts


class Parts(Gives):
    def __init__(self, build):
        super().__init__(4)
        self.build = build

    def forward(self, images):
        return self.build(super().forward(images))


Pair = namedtuple("Pair", "scores features")

PARTS = {
    "a tuple": (lambda y: (y, 2 * y), "2 tensors (0, 1)"),
    "a named tuple": (lambda y: Pair(y, 2 * y), "2 tensors (scores, features)"),
    "a mapping": (lambda y: {"sex": y, "age": y[:, :1]}, "2 tensors (sex, age)"),
    "logits": (lambda y: {"features": 2 * y, "logits": y}, None),
    "a loss": (lambda y: {"loss": y.sum(), "scores": y}, None),
    "one": (lambda y: [y], None),
    "a code of another size": (lambda y: (y, 2 * y[:, :2], y[:, :2]), "3 tensors (0, 1, 2)"),
}


@pytest.mark.parametrize("name", PARTS)
def test_of_several_parts_one_is_explained_and_that_is_told(name):
    build, told = PARTS[name]
    module = Parts(build)
    explainer, found = explain(module, LABELS, evidence=Evidence(counts=frozenset({4})))
    scores = Gives(4)(IMAGES).detach()
    assert found.terms["output"].tolist() == pytest.approx([float(scores[i, k]) for i, k in enumerate(LABELS)], rel=1e-4)
    assert explainer.assumed is None if told is None else told in explainer.assumed


def test_the_output_of_a_detector_needs_a_function():
    module = Parts(lambda y: [{"boxes": row[None], "scores": row[:1]} for row in y])
    with pytest.raises(TargetError, match=r"list of mappings, as detectors return it; pass .*target=function"):
        explain(module, LABELS)
    _, found = explain(module, LABELS, target=lambda output: torch.stack([image["scores"].sum() for image in output]))
    assert found.terms["output"].tolist() == pytest.approx(Gives(4)(IMAGES)[:, 0].tolist(), rel=1e-4)


def test_a_score_that_is_called_so_is_no_probability():
    """As anomalib's models give it, whose losses and labels speak of yes and no."""
    Anomalies = namedtuple("Anomalies", "pred_score pred_label")
    module = Parts(lambda y: Anomalies(y[:, 0].sigmoid(), y[:, 0] > 0))
    explainer, found = explain(module, torch.tensor([0, 1, 1]), evidence=Evidence(frozenset({"probabilities", "binary"})))
    assert type(explainer.task) is Task
    assert found.answers.confidence is None


def test_rows_that_are_more_than_the_images_are_told():
    module = Parts(lambda y: torch.cat([y, y]))
    with pytest.raises(TargetError, match=r"returns 6 rows for 3 images, as an ensemble does; .*target=function"):
        explain(module, LABELS)


def test_labels_that_are_counted_from_one_are_left_out():
    """Which entry of the output they belong to is not known."""
    module = Gives(3)
    explainer, found = explain(module, torch.tensor([3, 1, 2]), evidence=Evidence(frozenset({"classes"})))
    assert type(explainer.task) is Classes
    assert "labels go from 1 to 3, but the classes of the output from 0 to 2" in explainer.assumed
    assert torch.equal(found.answers.explained, module(IMAGES).argmax(1))
    assert explainer.labels is explainer.misfit is None


UNFIT = {
    "a reconstruction and its code": (lambda y: (y[:, :2, None, None].expand(-1, -1, 6, 6), y), [LABELS]),
    "labels of another shape": (lambda y: y, [torch.randint(5, (3, 3))]),
    "label maps beside a vector": (lambda y: y, [MASKS]),
    "a vector beside regions": (lambda y: y[:, :, None, None].expand(-1, -1, 6, 6), [torch.randint(5, (3, 7))]),
    "texts for every image": (lambda y: y[:, :1], [torch.randint(5, (3, 7))]),
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("told", [None, "number"])
def test_labels_that_fit_nothing_leave_a_number(name, told):
    build, labels = UNFIT[name]
    explainer, found = explain(Parts(build), *labels, times=2, task=told)
    assert type(explainer.task) is Task
    assert found.answers.confidence is None


# --- in parts


def test_in_parts_it_finds_what_it_finds_at_once():
    for name in ("classes", "several classes", "regions", "no labels, but four classes"):
        shape, candidates, _, _ = CASES[name]
        module = Gives(*shape)
        options = {"evidence": lambda module, name=name: EVIDENCE.get(name, Evidence())}
        whole, parts = (Explainer(Probe(IMAGES, *candidates[:1], batch_size=batch_size), **options) for batch_size in (None, 2))
        for _ in range(2):
            first, second = whole.explain(module, CPU), parts.explain(module, CPU)
            assert torch.allclose(first.maps, second.maps, atol=1e-5)
            assert torch.allclose(first.terms["output"], second.terms["output"], atol=1e-6)
            assert [layer.module for layer in first.layers] == [layer.module for layer in second.layers]


def test_a_network_that_mixes_its_samples_is_run_on_one_at_a_time():
    class Mixing(Gives):
        def forward(self, images):
            order = torch.arange(len(images)).flip(0)
            return super().forward(images)[order][order]

    for shape, labels in (((4,), LABELS), ((4, 6, 6), MASKS)):
        _, found = explain(Mixing(*shape), labels)
        _, expected = explain(Gives(*shape), labels)
        assert torch.allclose(found.terms["output"], expected.terms["output"], atol=1e-6)
        assert torch.allclose(found.maps, expected.maps, atol=1e-5)
