"""Outlines lie along the border of a mask, inside of it."""

import numpy as np
import pytest
import torch

from fg_lightning.visualization import film_strip
from fg_lightning.visualization.outlines import CASING, OUTLINE, draw_outlines

GREY = (90, 90, 90)


def outline(mask, size):
    picture = np.full((*size, 3), GREY, np.uint8)
    (drawn,) = draw_outlines([picture], torch.as_tensor(mask)[None, None])
    assert (picture == GREY).all()  # the picture of the caller stays as it was
    return drawn, *((drawn == colour).all(-1) for colour in (OUTLINE, CASING, GREY))


def test_a_line_lies_along_the_border_of_a_mask_and_a_dark_one_around_it():
    mask = np.zeros((9, 9), bool)
    mask[2:6, 3:8] = True
    _, line, casing, rest = outline(mask, (9, 9))
    for place in np.ndindex(mask.shape):
        around = mask[max(place[0] - 1, 0) : place[0] + 2, max(place[1] - 1, 0) : place[1] + 2]
        assert line[place] == (mask[place] and not around.all())
        assert casing[place] == (not mask[place] and around.any())
        assert rest[place] == (not line[place] and not casing[place])


def test_a_mask_in_the_corner_has_a_line_along_the_images_border():
    mask = np.zeros((8, 8), bool)
    mask[:3, :3] = True
    _, line, casing, _ = outline(mask, (8, 8))
    assert line.sum() == 8
    assert casing.sum() == 7


@pytest.mark.parametrize(("size", "thickness"), [((112, 112), 1), ((224, 224), 1), ((300, 300), 2), ((450, 600), 3)])
def test_a_mask_is_scaled_to_the_picture_and_the_line_with_it(size, thickness):
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    _, line, _, _ = outline(mask, size)
    assert line[size[0] // 2, : size[1] // 2].sum() == thickness
    assert np.nonzero(line.any(1))[0].min() == size[0] // 4


def test_an_empty_mask_leaves_the_picture_and_none_leaves_all():
    drawn, *_ = outline(np.zeros((5, 5), bool), (10, 10))
    assert (drawn == GREY).all()
    picture = np.zeros((4, 4, 3), np.uint8)
    assert draw_outlines([picture], None)[0] is picture


def test_of_a_volume_the_middle_slice_is_outlined():
    mask = torch.zeros(1, 1, 4, 6, 6, dtype=torch.bool)
    mask[:, :, 2, 1:4, 1:4] = True
    (drawn,) = draw_outlines([np.zeros((6, 6, 3), np.uint8)], mask)
    assert (drawn == OUTLINE).all(-1).sum() == 8


def test_a_film_strip_has_the_outlines_in_every_frame():
    masks = torch.zeros(2, 1, 28, 28, dtype=torch.bool)
    masks[0, :, :7, :7] = True
    strip = film_strip(torch.rand(2, 1, 28, 28), [(str(k), torch.rand(2, 1, 28, 28)) for k in range(3)], masks=masks)
    is_line = (np.asarray(strip) == OUTLINE).all(-1)
    assert is_line.sum() == 4 * (4 * 28 - 4)
