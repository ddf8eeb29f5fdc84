"""The film strip in motion, read back from its file."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from fg_lightning.visualization.film_strips import animation, save_animation
from fg_lightning.visualization.image_grids import pil_to_rgb
from fg_lightning.visualization.saliency_overlay import overlay
from tests.helpers.pictures import locate_frame


def made(count, n=3, size=28, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(f"epoch {k}", torch.rand(n, 1, size, size, generator=generator)) for k in range(count)]


def test_every_look_is_a_frame_with_all_overlays():
    images, snapshots = torch.rand(3, 1, 28, 28), made(4)
    frames = animation(images, snapshots, captions=[[f"{title} {i}" for i in range(3)] for title, _ in snapshots])
    assert len(frames) == 4
    assert len({frame.size for frame in frames}) == 1
    for frame, (_, maps) in zip(frames, snapshots, strict=True):
        for image, saliency in zip(images, maps, strict=True):
            assert len(locate_frame(pil_to_rgb(frame), overlay(image, saliency))) == 1


@pytest.mark.parametrize(("name", "kind", "tolerance"), [("a.gif", "GIF", 12), ("a.png", "PNG", 0)])
def test_a_file_holds_all_frames_repeats_and_stays_at_the_last(tmp_path, name, kind, tolerance):
    frames = animation(torch.rand(2, 1, 28, 28), made(5, n=2))
    save_animation(frames, tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        assert (picture.format, picture.n_frames, picture.info.get("loop")) == (kind, 5, 0)
        read, seconds = [], []
        for frame in ImageSequence.Iterator(picture):
            read.append(pil_to_rgb(frame).astype(int))
            seconds.append(frame.info["duration"] / 1000)
    assert seconds == pytest.approx([0.8] * 4 + [2.8])
    for before, after in zip(frames, read, strict=True):
        assert np.abs(pil_to_rgb(before) - after).mean() <= tolerance  # 256 colours of 16 million


def test_of_many_snapshots_as_many_are_shown_as_there_is_time_for(tmp_path):
    frames = animation(torch.rand(1, 1, 8, 8), made(300, n=1, size=8), max_frames=50)
    assert len(frames) == 50
    save_animation(frames, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.info["duration"] == 160


def test_large_images_are_reduced():
    assert animation(torch.rand(1, 3, 400, 400), made(1, n=1, size=400))[0].width < 300


def test_captions_of_any_number_of_lines_leave_frames_of_one_size():
    frames = animation(torch.rand(1, 1, 28, 28), made(2, n=1), captions=[["one"], ["one\ntwo"]])
    assert frames[0].size == frames[1].size


def test_what_cannot_be_animated_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one image and one snapshot"):
        animation(torch.rand(1, 1, 8, 8), [])
    with pytest.raises(ValueError, match="must have 2 maps"):
        animation(torch.rand(2, 1, 8, 8), made(1, n=1, size=8))
    with pytest.raises(ValueError, match="at least one frame"):
        save_animation([], tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"written to \.gif or \.png, not a\.mp4"):
        save_animation([Image.new("RGB", (4, 4))], tmp_path / "a.mp4")
