"""Masks from every form that users and batches have them in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from fg_lightning.recording.masks import WrongMasks, find_masks, read_masks, region_masks
from fg_lightning.recording.probe import Probe

N, H, W = 3, 6, 8
IMAGES = torch.zeros(N, 2, H, W)
BOXES = torch.tensor([[1, 2, 4, 5], [0, 0, 8, 1], [7, 5, 8, 6]])


def filled(boxes: Any = BOXES) -> Tensor:
    """Box by box and pixel by pixel: a pixel is inside if the box touches it."""
    masks = torch.zeros(N, 1, H, W, dtype=torch.bool)
    for i, (x0, y0, x1, y1) in enumerate(torch.as_tensor(boxes).tolist()):
        for row in range(H):
            for column in range(W):
                masks[i, 0, row, column] = x0 < column + 1 and column < x1 and y0 < row + 1 and row < y1
    return masks


EXPECTED = filled()
FORMS: dict[str, Any] = {
    "bool [N, 1, H, W]": EXPECTED,
    "bool [N, H, W]": EXPECTED[:, 0],
    "uint8 0 and 255": EXPECTED.byte() * 255,
    "float": EXPECTED.float() * 0.2,
    "numpy": EXPECTED.numpy(),
    "list of [H, W]": list(EXPECTED[:, 0]),
    "list of arrays": list(EXPECTED[:, 0].numpy()),
    "list of [k, H, W]": [torch.stack([mask & (torch.arange(W) < 4), mask & (torch.arange(W) >= 4)]) for mask in EXPECTED[:, 0]],
    "boxes [N, 4]": BOXES,
    "float boxes": BOXES.float(),
    "boxes as an array": BOXES.numpy(),
    "boxes [N, k, 4]": BOXES[:, None].expand(-1, 2, -1),
    "list of [4]": list(BOXES),
    "list of lists": BOXES.tolist(),
    "list of [k, 4]": [BOXES[0][None], BOXES[1].expand(3, 4), [BOXES[2].tolist()]],
    "tv_tensors.Mask": tv_tensors.Mask(EXPECTED[:, 0]),
    "XYXY": tv_tensors.BoundingBoxes(BOXES, format="XYXY", canvas_size=(H, W)),
    "XYWH": tv_tensors.BoundingBoxes([[1, 2, 3, 3], [0, 0, 8, 1], [7, 5, 1, 1]], format="XYWH", canvas_size=(H, W)),
    "CXCYWH": tv_tensors.BoundingBoxes(
        torch.tensor([[2.5, 3.5, 3, 3], [4, 0.5, 8, 1], [7.5, 5.5, 1, 1]]), format="CXCYWH", canvas_size=(H, W)
    ),
    "list of XYWH": [
        tv_tensors.BoundingBoxes([box], format="XYWH", canvas_size=(H, W)) for box in [[1, 2, 3, 3], [0, 0, 8, 1], [7, 5, 1, 1]]
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_masks(form: str) -> None:
    masks = read_masks(FORMS[form], IMAGES)
    assert masks.dtype is torch.bool
    assert type(masks) is Tensor
    assert torch.equal(masks, EXPECTED)


def test_boxes_reach_to_every_pixel_that_they_touch_within_the_image() -> None:
    boxes = torch.tensor([[0.4, 1.5, 2.1, 3.0], [-5, -5, 3, 2], [7.9, 5.9, 20, 20]])
    assert torch.equal(read_masks(boxes, IMAGES), filled(boxes))


def test_images_may_have_no_mask() -> None:
    masks = read_masks([None, BOXES[1], torch.zeros(0, 4)], IMAGES)
    assert masks.flatten(1).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("size", [(9,), (4, 5, 6), (4,)])
def test_signals_and_volumes_have_masks_of_their_size(size: tuple[int, ...]) -> None:
    masks = torch.rand(N, *size, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(read_masks(masks, torch.zeros(N, 1, *size)), masks[:, None])


WRONG: dict[str, tuple[Any, str]] = {
    "another size": (torch.ones(N, 5, 5), r"mask of image 0 has shape \[5, 5\], and the image \[6, 8\] pixels"),
    "another number": (torch.ones(2, H, W), "2 masks or boxes for 3 images"),
    "another number of a list": ([None], "of 1 images for 3 images"),
    "text": ("masks", "masks are of type str"),
    "no number": (5, "masks are of type int"),
    "text in a list": (["a", "b", "c"], "mask of image 0 is of type str"),
    "channels": (torch.ones(N, 2, 5, 5), r"has shape \[2, 5, 5\]"),
    "an empty box": (torch.tensor([[4, 2, 4, 5]] * N), "x0 < x1"),
    "shares of the size": (torch.tensor([[0.1, 0.2, 0.4, 0.5]] * N), r"lie in 0\.\.1"),
    "NaN": (torch.tensor([[float("nan"), 2, 4, 5]] * N), "NaN"),
    "complex": (torch.ones(N, H, W, dtype=torch.cfloat), "complex64"),
    "rotated boxes": (
        [type("Rotated", (Tensor,), {"format": "XYWHR"})(BOXES[i][None].float()) for i in range(N)],
        "format XYWHR cannot be read",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_refused_in_one_sentence(kind: str) -> None:
    masks, message = WRONG[kind]
    with pytest.raises(WrongMasks, match=message):
        read_masks(masks, IMAGES)


def test_boxes_of_signals_are_refused() -> None:
    with pytest.raises(WrongMasks, match="has shape"):
        read_masks(torch.ones(N, 4), torch.zeros(N, 1, 9))


# --- of a batch

LABELS = torch.tensor([0, 1, 2])


class Named(NamedTuple):
    image: Tensor
    label: Tensor
    mask: Tensor


def test_the_masks_of_a_batch_are_taken_along() -> None:
    for batch in (
        {"image": IMAGES, "label": LABELS, "mask": EXPECTED},
        {"image": IMAGES, "label": LABELS, "Segmentation": EXPECTED[:, 0].long()},
        {"image": IMAGES, "target": {"label": LABELS, "masks": EXPECTED.float()}},
        Named(IMAGES, LABELS, EXPECTED),
        {"image": IMAGES, "label": LABELS, "bbox": BOXES},
        {"image": IMAGES, "label": LABELS, "boxes": [BOXES[0][None], BOXES[1][None], BOXES[2].expand(2, 4)]},
    ):
        probe = Probe.from_batch(batch, 3)
        assert torch.equal(probe.masks, EXPECTED)  # type: ignore[arg-type]
        assert "field" in probe.masks_from
        assert torch.equal(probe.labels, LABELS)  # type: ignore[arg-type]


def test_masks_stay_beside_their_images() -> None:
    probe = Probe.from_batch(
        {"image": torch.arange(3.0)[:, None, None, None].expand(IMAGES.shape), "label": LABELS, "mask": EXPECTED}, 2
    )
    rows = probe.images[:, 0, 0, 0].long()
    assert rows.tolist() == [0, 2]  # of different classes, evenly spread
    assert torch.equal(probe.masks, EXPECTED[rows])  # type: ignore[arg-type]


XYWH = torch.tensor([[1, 1, 3, 3], [0, 0, 5, 1], [2, 2, 3, 4]])


@pytest.mark.parametrize(
    "fields",
    [
        {"mask": EXPECTED.long()},  # alone it is the label map
        {"label": LABELS, "mask": torch.ones(N, H, W)},
        {"label": LABELS, "mask": torch.zeros(N, H, W)},
        {"label": LABELS, "mask": torch.ones(N, 4, 4)},
        {"label": LABELS, "attention": EXPECTED},
        {"label": LABELS, "bbox": XYWH},  # may be either
        {"label": LABELS, "bbox": BOXES / 10},
        {"label": LABELS, "bbox": torch.tensor([[1, 2, 40, 50]] * N)},  # of larger images
    ],
)
def test_what_may_mean_something_else_is_no_mask(fields: dict[str, Tensor]) -> None:
    assert Probe.from_batch({"image": IMAGES, **fields}, 3).masks is None


def test_fields_are_searched_in_order() -> None:
    found = find_masks([("label", LABELS), ("boxes", BOXES), ("mask", EXPECTED)], LABELS, IMAGES)
    assert found is not None
    assert found[1].startswith("the field 'boxes'")


def test_regions_are_those_of_the_explained_class() -> None:
    maps = torch.tensor([[[0, 1], [1, 2]], [[2, 2], [0, 0]], [[0, 0], [0, 0]]])
    expected = torch.tensor([[[0, 1], [1, 0]], [[1, 1], [0, 0]], [[0, 0], [0, 0]]]).bool()
    assert torch.equal(region_masks(maps, torch.tensor([1, 2, 0]), torch.zeros(N, 1, 2, 2)), expected[:, None])
    larger = region_masks(maps, torch.tensor([1, 2, 0]), torch.zeros(N, 1, 4, 4))
    assert torch.equal(larger[:, 0], expected.repeat_interleave(2, 1).repeat_interleave(2, 2))


# --- of the user


def test_masks_are_given_with_the_probe_or_by_a_function() -> None:
    assert torch.equal(Probe.from_user((IMAGES, LABELS, BOXES)).with_masks().masks, EXPECTED)  # type: ignore[arg-type]
    assert torch.equal(Probe.from_user((IMAGES, None, EXPECTED)).with_masks().masks, EXPECTED)  # type: ignore[arg-type]
    seen = []

    def boxes(batch: Any) -> Any:
        seen.append(batch)
        return BOXES

    by_function = Probe.from_user((IMAGES, LABELS)).with_masks(boxes)
    assert torch.equal(by_function.masks, EXPECTED)  # type: ignore[arg-type]
    assert by_function.masks_from == "made by boxes"
    assert torch.equal(seen[0][1], LABELS)
    batch = {"image": IMAGES, "label": LABELS, "lungs": EXPECTED, "mask": ~EXPECTED}
    of_batch = Probe.from_batch(batch, 3, with_batch=True)
    assert torch.equal(of_batch.with_masks(lambda batch: batch["lungs"]).masks, EXPECTED)  # type: ignore[arg-type]
    assert of_batch.with_masks(lambda batch: None).masks is None


def test_masks_given_twice_are_refused() -> None:
    with pytest.raises(WrongMasks, match="twice"):
        Probe.from_user((IMAGES, LABELS, BOXES)).with_masks(lambda batch: BOXES)


def test_arrays_of_objects_are_lists() -> None:
    boxes = np.empty(N, dtype=object)
    boxes[:] = [BOXES[0][None].numpy(), BOXES[1][None].numpy(), BOXES[2].expand(2, 4).numpy()]
    assert torch.equal(read_masks(list(boxes), IMAGES), EXPECTED)
