"""What evidence makes of an output: every kind of network that people train, and what must not be said of it."""

import pytest
import torch

from fg_lightning.recording.output_evidence import Evidence
from fg_lightning.recording.output_meaning import infer_task
from fg_lightning.recording.task import Binary, Classes, Probability, Regions, SeveralClasses, SeveralProbabilities, Task

N = 8
IMAGES = torch.rand(N, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def evidence(*kinds, ends_in_sigmoid=False, **numbers):
    return Evidence(
        frozenset(kinds), **{name: frozenset(value) for name, value in numbers.items()}, ends_in_sigmoid=ends_in_sigmoid
    )


def normal(*shape):
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(1))


def cycle(k):
    return torch.arange(N) % k


YES_OR_NO = torch.arange(N) % 2
SEVERAL = (normal(6) > 0).long()
MASKS = torch.randint(0, 4, (N, 6, 6), generator=torch.Generator().manual_seed(2))

SURE = {
    # classes
    "cross entropy, as many classes as labels": (normal(3), [cycle(3)], evidence("classes"), Classes),
    "cross entropy, a class more than the labels show": (normal(4), [cycle(3)], evidence("classes"), Classes),
    "cross entropy, ten classes of which eight are seen": (normal(10), [cycle(8)], evidence("classes"), Classes),
    "labels that reach the last entry": (normal(3), [cycle(3)], evidence(), Classes),
    "a module that knows its classes": (normal(100), [cycle(3)], evidence(counts=[100]), Classes),
    "a pretrained head left in place": (normal(1000), [cycle(2)], evidence("classes", of_data=[2], heads=[1000]), Classes),
    "names of the data set": (normal(10), [cycle(2)], evidence(of_data=[10]), Classes),
    "yes or no for each of the classes": (normal(3), [cycle(3)], evidence("logits"), SeveralClasses),
    "the probability of each of the classes": (normal(3).sigmoid(), [cycle(3)], evidence("probabilities"), SeveralProbabilities),
    "ArcFace beside a classifier": (normal(3), [cycle(3)], evidence("classes", "embeddings", counts=[3]), Classes),
    "labels of one byte": (normal(3), [cycle(3).to(torch.uint8)], evidence("classes"), Classes),
    "soft labels": (normal(5), [normal(5).softmax(1)], evidence(), Classes),
    "no labels, but as many classes": (normal(3), [], evidence(counts=[3]), Classes),
    # vectors that are no classes
    "an embedding of classes that are known": (normal(64), [cycle(3)], evidence(counts=[3]), Task),
    "an embedding": (normal(64), [cycle(3)], evidence(), Task),
    "a projection, compared": (normal(128), [cycle(3)], evidence("embeddings"), Task),
    "a small embedding, compared": (normal(3), [cycle(3)], evidence("embeddings"), Task),
    "a projection without labels": (normal(128), [], evidence("embeddings"), Task),
    "metric learning with ArcFace": (normal(128), [cycle(3)], evidence("embeddings", counts=[3]), Task),
    "pixels in a row": (normal(784), [cycle(3)], evidence("numbers"), Task),
    "latent numbers": (normal(10), [cycle(3)], evidence("numbers", of_data=[3]), Task),
    "what a classifier's head takes": (normal(9), [cycle(8)], evidence("classes", layers=[(9, 8)]), Task),
    "keypoints": (normal(6), [normal(6).sigmoid()], evidence("numbers"), Task),
    "coordinates in pixels": (normal(6), [100 * normal(6)], evidence(), Task),
    "numbers that happen to be 0 or 1": (normal(6), [SEVERAL.float()], evidence("numbers"), Task),
    "several numbers and an integer": (normal(40), [cycle(3)], evidence("numbers"), Task),
    # several classes
    "several classes, as truth values": (normal(6), [SEVERAL.bool()], evidence("logits"), SeveralClasses),
    "several classes, smoothed": (normal(6), [0.1 + 0.8 * SEVERAL], evidence("logits"), SeveralClasses),
    "one of several, each by itself": (normal(3), [torch.eye(3)[cycle(3)]], evidence("logits"), SeveralClasses),
    # one number
    "a logit": (normal(1), [YES_OR_NO], evidence("logits"), Binary),
    "a logit above zero so far": (normal(1).abs(), [YES_OR_NO.bool()], evidence("logits"), Binary),
    "a logit with a metric of yes or no": (normal(1), [YES_OR_NO], evidence("binary"), Binary),
    "a probability": (normal(1).sigmoid(), [YES_OR_NO], evidence("probabilities"), Probability),
    "a probability with a metric of yes or no": (normal(1).sigmoid(), [YES_OR_NO], evidence("binary"), Probability),
    "an age": (normal(1), [20 + cycle(8)], evidence("numbers"), Task),
    "an age of unknown loss": (normal(1), [20 + cycle(8)], evidence(), Task),
    "a count that is 0 or 1": (normal(1), [YES_OR_NO], evidence("numbers"), Task),
    "a rank": (normal(1), [cycle(5)], evidence(), Task),
    "a number without labels": (normal(1), [], evidence(), Task),
    "real or not, beside labels": (normal(1).sigmoid(), [YES_OR_NO], evidence("probabilities", of_data=[3]), Task),
    # planes
    "regions": (normal(4, 6, 6), [MASKS], evidence("classes"), Regions),
    "regions of unknown loss": (normal(4, 6, 6), [MASKS], evidence(), Regions),
    "regions with places to ignore": (normal(4, 6, 6), [MASKS.masked_fill(MASKS == 0, 255)], evidence("classes"), Regions),
    "one region": (normal(1, 6, 6), [(MASKS > 1)], evidence("logits"), Regions),
    "depth": (normal(1, 6, 6), [normal(1, 6, 6)], evidence("numbers"), Task),
    "depth in millimetres": (normal(1, 6, 6), [1000 + MASKS[:, None]], evidence(), Task),
    "features of a backbone": (normal(512, 6, 6), [MASKS], evidence(counts=[4]), Task),
    "a reconstruction": (normal(3, 6, 6), [cycle(3)], evidence("numbers"), Task),
    "tokens": (normal(5, 7), [cycle(3)], evidence("classes"), Task),
}

GUESSED = {
    "labels below the last entry": (normal(4), [cycle(3)], evidence(), Classes, "classes"),
    "cross entropy, few classes seen": (normal(12), [cycle(3)], evidence("classes"), Classes, "classes"),
    "cross entropy, a class more than the data has": (normal(11), [cycle(3)], evidence("classes", counts=[10]), Classes, "classes"),
    "a pretrained head left in place": (normal(1000), [cycle(3)], evidence("classes", layers=[(512, 1000)]), Classes, "classes"),
    "the same, with names of the data set": (normal(1000), [cycle(3)], evidence("classes", of_data=[3]), Classes, "classes"),
    "a head behind the output": (normal(64), [cycle(3)], evidence("classes", layers=[(64, 3)]), Task, "number"),
    "a projection of a pretrained network": (normal(1000), [cycle(3)], evidence("embeddings", heads=[1000]), Task, "number"),
    "cross entropy over similarities": (normal(64), [cycle(3)], evidence("classes", counts=[3]), Task, "number"),
    "numbers of as many entries as classes": (normal(3), [cycle(3)], evidence("numbers", counts=[3]), Task, "number"),
    "small vectors that are compared": (normal(3), [cycle(3)], evidence("classes", "embeddings"), Classes, "classes"),
    "no labels": (normal(3), [], evidence(), Task, "number"),
    "no labels, cross entropy": (normal(3), [], evidence("classes"), Task, "number"),
    "labels of numbers in 0..1": (normal(6), [normal(6).sigmoid()], evidence(), Task, "number"),
    "yes or no of unknown loss": (normal(1), [YES_OR_NO], evidence(), Binary, "logit"),
    "thresholds between ordered classes": (normal(3), [cycle(4)], evidence("logits", counts=[4]), Task, "number"),
    "a distance": (normal(1).square(), [YES_OR_NO.bool()], evidence(), Task, "number"),
    "a distance with a metric of yes or no": (normal(1).square() + 1, [YES_OR_NO.bool()], evidence("binary"), Task, "number"),
    "a score in 0..1": (normal(1).sigmoid(), [YES_OR_NO], evidence(), Task, "number"),
    "a score in 0..1 out of a sigmoid": (normal(1).sigmoid(), [YES_OR_NO], evidence(ends_in_sigmoid=True), Probability, "logit"),
    "features of a backbone, no label map": (normal(512, 6, 6), [cycle(3)], evidence("classes"), Task, "number"),
}


@pytest.mark.parametrize("name", SURE)
def test_evidence_decides(name):
    scores, labels, known, kind = SURE[name]
    found = infer_task(scores, IMAGES, labels, known)
    assert type(found.task) is kind
    assert found.assumed is None


@pytest.mark.parametrize("name", GUESSED)
def test_what_evidence_does_not_decide_is_told(name):
    scores, labels, known, kind, chosen = GUESSED[name]
    found = infer_task(scores, IMAGES, labels, known)
    assert type(found.task) is kind
    assert f'Pass task="{chosen}" if that is right, else task="' in found.assumed
    assert f"[{', '.join(['N', *map(str, scores.shape[1:])])}]" in found.assumed


def test_all_labels_count_if_a_part_is_explained():
    part, labels = slice(0, 1), cycle(3)
    assert infer_task(normal(3)[part], IMAGES[part], [labels[part]]).assumed is not None
    assert infer_task(normal(3)[part], IMAGES[part], [labels[part]], of_all=[labels]).assumed is None


def test_the_labels_are_found_among_the_candidates():
    scores, several = torch.zeros(3, 4), torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
    assert infer_task(scores, IMAGES[:3], [several, torch.tensor([2, 0, 1])]).labels == 1
    assert infer_task(scores, IMAGES[:3], []).labels is None


def test_the_places_of_images_in_their_data_set_are_no_labels():
    places, ignored = torch.arange(N), cycle(3).masked_fill(cycle(3) == 0, 255)
    assert infer_task(normal(3), IMAGES, [places, cycle(3)]).labels == 1
    assert infer_task(normal(3), IMAGES, [ignored, cycle(2)], evidence("classes")).labels == 0
    part = slice(0, 2)
    found = infer_task(normal(3)[part], IMAGES[part], [places[part], cycle(3)[part]], of_all=[places, cycle(3)])
    assert found.labels == 1
