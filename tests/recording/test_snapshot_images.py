"""The pictures of a snapshot and of a run: what they say, and what they mark."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fg_lightning import FullGradRecorder
from fg_lightning.history.class_names import ClassNames
from fg_lightning.loggers import Log
from fg_lightning.recording.snapshot_images import describe_explained
from fg_lightning.recording.task import Binary, Chosen, Classes, Entry, Regions, Task
from fg_lightning.visualization.image_grids import MARK
from fg_lightning.visualization.outlines import OUTLINE

IMAGES, LABELS = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1])


class Fixed(nn.Module):
    """Gives class 1 for every image, and depends on all pixels."""

    def __init__(self, num_classes=2):
        super().__init__()
        self.head = nn.Linear(64, num_classes)
        with torch.no_grad():
            self.head.weight.fill_(0.01)
            self.head.bias.copy_(torch.arange(num_classes) == 1)

    def forward(self, images):
        return self.head(images.flatten(1))


class Keeps(Log):
    """A logger of pictures that keeps them."""

    takes_pictures = True

    def __init__(self):
        super().__init__(None)
        self.kept = []

    def log(self, numbers, pictures, step):
        self.kept.append(pictures)


def record(folder, network, probe, num_snapshots=2, **options):
    """The pictures of every snapshot, and the recorder."""
    log = Keeps()
    recorder = FullGradRecorder(folder, probe, strict=True, **options)
    recorder._logs = [log]
    for epoch in range(num_snapshots):
        recorder.snapshot(network, step=epoch, epoch=epoch)
    return log.kept, recorder


def titles(monkeypatch):
    """What `film_strip` is called with from here on."""
    calls = []
    module = "fg_lightning.recording.snapshot_images.film_strip"
    monkeypatch.setattr(module, lambda *args, **options: calls.append((args, options)) or Image.new("RGB", (4, 4)))
    return calls


def test_a_caption_names_a_map_that_is_zero(tmp_path):
    network = Fixed()
    with torch.no_grad():
        network.head.weight.zero_()
    (pictures, _), _ = record(tmp_path / "run", network, (IMAGES, LABELS), task="classes")
    assert [caption.split("\n")[-1] for caption in pictures.captions] == ["map: all zero"] * 3


def test_wrong_predictions_are_marked_in_captions_pictures_and_the_table(tmp_path):
    (pictures, _), recorder = record(tmp_path / "run", Fixed(), (IMAGES, LABELS), task="classes", class_names=["cat", "dog"])
    assert pictures.marked == [True, False, False]
    assert pictures.captions == ["cat\n→ ✗ dog · 73 %", "dog · 73 %", "dog · 73 %"]
    assert pictures.table["correct"] == [False, True, True]
    is_mark = (np.asarray(pictures.sheet) == MARK).all(-1)
    middle = is_mark.shape[1] // 2
    assert is_mark[:, :middle].any()
    assert not is_mark[:, middle:].any()
    strip = np.asarray(Image.open(recorder.conclude()).convert("RGB"))
    marked_rows = (strip == MARK).all(-1).any(1)
    assert marked_rows[: len(strip) // 3].any()
    assert not marked_rows[len(strip) // 2 :].any()


@pytest.mark.parametrize(
    ("probe", "options"),
    [
        ((IMAGES, None), {"task": "classes"}),
        ((IMAGES, LABELS.float()), {"task": "number"}),
        ((IMAGES, LABELS + 7), {"task": "number"}),
    ],
)
def test_nothing_is_marked_if_it_is_unknown_what_is_right(tmp_path, probe, options):
    probe = probe[0] if probe[1] is None else probe
    (pictures, _), _ = record(tmp_path / "run", Fixed(), probe, **options)
    assert not any(pictures.marked)
    assert "correct" not in pictures.table
    assert not any("✗" in caption for caption in pictures.captions)


def test_the_title_of_a_strip_says_what_is_explained_and_how_much_of_it_is_shown(tmp_path, monkeypatch):
    calls = titles(monkeypatch)
    _, recorder = record(tmp_path / "run", Fixed(), (IMAGES, LABELS), 40, task="classes")
    calls.clear()
    recorder.conclude()
    ((_, snapshots), options) = calls[-1]
    first, second = options["title"].split("\n")
    assert first == "FullGrad of the label's score · 12 of 40 snapshots"
    assert second == "left: label; below: prediction · probability; ✗ wrong prediction"
    assert [title for title, _ in snapshots] == ["untrained", *(f"epoch {i}" for i in (4, 7, 11, 14, 18, 21, 25, 28, 32, 35, 39))]


def test_a_segmentation_says_which_class_is_explained(tmp_path, monkeypatch):
    calls = titles(monkeypatch)
    labels = torch.zeros(3, 8, 8, dtype=torch.long)
    labels[:, 2:5, 2:5] = torch.tensor([1, 2, 1])[:, None, None]
    names = ["background", "road", "sky"]
    _, recorder = record(tmp_path / "run", nn.Conv2d(1, 3, 3, padding=1), (IMAGES, labels), task="regions", class_names=names)
    recorder.conclude()
    options = calls[-1][1]
    assert options["row_names"] == ["road", "sky", "road"]
    first, second = options["title"].split("\n")
    assert first == "FullGrad of a class's mean score over its region"
    assert second == "left: explained class; below: class of the largest predicted region; line: mask"


def test_masks_are_outlined_in_sheets_and_strips(tmp_path):
    masks = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    masks[1, :, :4, :4] = True
    (pictures, _), recorder = record(tmp_path / "run", Fixed(), (IMAGES, LABELS, masks), task="classes")
    outline = 4 * 56 - 4  # pixels around half of 112 x 112
    assert (np.asarray(pictures.sheet) == OUTLINE).all(-1).sum() == outline
    strip = np.asarray(Image.open(recorder.conclude()).convert("RGB"))
    assert (strip == OUTLINE).all(-1).sum() == 3 * outline


@pytest.mark.parametrize(
    ("task", "target", "labels", "words"),
    [
        (Classes(), None, LABELS, "the label's score"),
        (Classes(), None, None, "the score of the first prediction"),
        (Classes(), 1, LABELS, "the score of class dog"),
        (Classes(), [0, 1, 0], LABELS, "the chosen class's score"),
        (Binary(), None, LABELS, "the logit of class 1"),
        (Regions(), None, None, "a class's mean score over its region"),
        (Task(), None, LABELS, "the output"),
        (Entry(), 2, None, "entry 2 of the output"),
        (Chosen(torch.sum), torch.sum, None, "sum(output)"),
        (Chosen(torch.sum), lambda output: output, None, "a function of the output"),
    ],
)
def test_what_is_explained_has_words(task, target, labels, words):
    assert describe_explained(task, target, labels, ClassNames(["cat", "dog"])) == words


def test_the_words_are_in_the_runs_description(tmp_path):
    record(tmp_path / "run", Fixed(), (IMAGES, LABELS), task="classes", target=1)
    assert json.loads((tmp_path / "run" / "probe.json").read_text())["explained"] == "the score of class 1"
