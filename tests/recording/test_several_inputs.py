"""Probes of several image inputs: kept, measured and shown side by side."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fg_lightning import FullGrad, FullGradRecorder
from fg_lightning.history import History
from fg_lightning.recording.probe import NoProbe, Probe
from fg_lightning.recording.side_by_side import join_side_by_side

LABELS = torch.tensor([0, 1, 2, 0])


class TwoStreams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.right = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(32, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(left), self.right(right)], 1))


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 12, 10, generator=generator), torch.rand(4, 1, 9, 8, generator=generator)


def test_side_by_side_the_first_lies_at_the_left_and_smaller_ones_are_filled_up() -> None:
    left, right = inputs()
    joined = join_side_by_side((left, right))
    assert joined.shape == (4, 3, 12, 18)
    assert torch.equal(joined[..., :10], left)
    assert torch.equal(joined[:, :, :9, 10:], right.expand(-1, 3, -1, -1))
    assert not joined[:, :, 9:, 10:].any()


def test_maps_of_a_snapshot_are_those_of_each_input_side_by_side(tmp_path) -> None:
    model, images = TwoStreams(), inputs()
    masks = torch.zeros(4, 12, 10, dtype=torch.bool), torch.ones(4, 9, 8, dtype=torch.bool)
    probe = images, LABELS, masks
    with FullGradRecorder(
        tmp_path / "fullgrad", probe, task="classes", methods=("fullgrad", "simple_fullgrad"), strict=True
    ) as own:
        own.snapshot(model, step=0, epoch=0)
        own.snapshot(model, step=1, epoch=1)
    history = History.read(tmp_path / "fullgrad")
    maps = FullGrad(model).attribute(images, LABELS)
    joined = join_side_by_side(maps)
    assert own.history.last_maps is not None
    torch.testing.assert_close(own.history.last_maps, joined)
    torch.testing.assert_close(history.maps(-1), joined, rtol=1e-2, atol=1e-2 * float(joined.max()))  # kept as float16
    numbers = own.history.snapshots[-1].numbers
    assert numbers["fullgrad/completeness_error_max"] < 1e-4  # float32
    in_right = F.pad(maps[1], (0, 0, 0, 3)).flatten(1).sum(1) / joined.flatten(1).sum(1)
    assert numbers["fullgrad/relevance_mass"] == pytest.approx(float(in_right.mean()), abs=1e-5)
    assert not any("border" in key or "_left_" in key or "_right_" in key for key in numbers)  # of images side by side
    assert "simple_fullgrad/drift" in numbers
    assert history.about()["inputs"] == [[4, 3, 12, 10], [4, 1, 9, 8]]


def test_a_method_of_one_input_is_left_out_with_a_warning(tmp_path) -> None:
    recorder = FullGradRecorder(tmp_path / "fullgrad", (inputs(), LABELS), task="classes", methods=("fullgrad", "gradient"))
    with pytest.warns(UserWarning, match="gradient.*one image input, not 2"):
        snapshot = recorder.snapshot(TwoStreams(), step=0, epoch=0)
    assert snapshot is not None
    assert "fullgrad/concentration" in snapshot.numbers


def test_a_forward_gets_the_inputs_in_their_batch(tmp_path) -> None:
    def forward(module: nn.Module, batch: tuple[tuple[Tensor, Tensor], Tensor]) -> Tensor:
        (left, right), labels = batch
        assert labels.tolist() == LABELS.tolist()
        return module(left, right)

    snapshots = [
        FullGradRecorder(None, (inputs(), LABELS), task="classes", forward=own, strict=True).snapshot(TwoStreams(), step=0, epoch=0)
        for own in (None, forward)
    ]
    assert snapshots[0] == snapshots[1]


@pytest.mark.parametrize("has_probe", [True, False])
def test_a_resumed_run_goes_on_with_all_inputs(tmp_path, has_probe: bool) -> None:
    model, probe = TwoStreams(), (inputs(), LABELS)
    first = FullGradRecorder(tmp_path / "fullgrad", probe, task="classes", strict=True)
    first.snapshot(model, step=0, epoch=0)
    second = FullGradRecorder(tmp_path / "fullgrad", probe if has_probe else None, task="classes", strict=True)
    second.load_state_dict(first.state_dict())
    second.snapshot(model, step=1, epoch=1)
    assert [snapshot.epoch for snapshot in second.history.snapshots] == [0, 1]
    assert second.history.snapshots[1].numbers["fullgrad/drift"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("wrong", [(inputs()[0], inputs()[1][:2]), (inputs()[0], None), ()])
def test_inputs_that_do_not_go_together_are_refused(wrong) -> None:
    with pytest.raises(NoProbe, match="probe must be images"):
        Probe.from_user((wrong, LABELS))


def test_masks_of_one_input_alone_are_refused(tmp_path) -> None:
    with pytest.warns(UserWarning, match="masks of 2 image inputs must be a tuple"):
        FullGradRecorder(None, (inputs(), LABELS, torch.ones(4, 12, 10)))
