"""The layer that Grad-CAM looks at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.attribution_cases import maps_of, net


def test_gradcam_finds_the_last_plane() -> None:
    model, x = net()  # the dropout behind the residual block ends last
    assert torch.equal(maps_of("gradcam", model, x, 2), maps_of("gradcam", model, x, 2, layer="5"))
    pooled = nn.Sequential(nn.Conv2d(2, 5, 3), nn.AvgPool2d((8, 6)), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(45, 5))
    assert torch.equal(maps_of("gradcam", pooled, x, 2), maps_of("gradcam", pooled, x, 2, layer="0"))


class Tokens(nn.Module):
    """Patches, and a linear layer on what became of them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(2, 4, 2, stride=2), nn.Linear(4, 4), nn.Linear(4, 5)
        self.unused = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x)
        self.unused(patches)
        return self.head(self.mix(patches.flatten(2).mT).mean(1))


def test_gradcam_says_which_argument_to_give() -> None:
    model, x = net()
    with pytest.raises(ValueError, match=r"no layer 'layer5'; layers that fit are 1, 2, 3, 4\.norm, 4\.conv, 4\.relu, 4, 5"):
        maps_of("gradcam", model, x, layer="layer5")
    with pytest.raises(ValueError, match=r"layer '7' must be \[N, C, \*S\] with N = 3, but is \[3, 5\]"):
        maps_of("gradcam", model, x, layer="7")
    with pytest.raises(ValueError, match=r"found no layer whose output is a plane .* layer=\.\.\., or leave gradcam out"):
        maps_of("gradcam", nn.Sequential(nn.Flatten(), nn.Linear(160, 5)), x)
    with pytest.raises(ValueError, match=r"last planes .* 'unused', but the output of the later 'mix' is \[3, 20, 4\]"):
        maps_of("gradcam", Tokens(), x)
    assert maps_of("gradcam", Tokens(), x, layer="patches").shape == (3, 1, 10, 8)
    with pytest.raises(ValueError, match="does not depend on layer 'unused'"):
        maps_of("gradcam", Tokens(), x, layer="unused")


def test_gradcam_passes_over_a_scripted_part_which_takes_no_hooks() -> None:
    layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten())
    head, x = nn.Linear(96, 5), torch.rand(3, 2, 10, 8)
    model = nn.Sequential(layers[0], torch.jit.script(layers[1]), head)
    assert torch.allclose(maps_of("gradcam", model, x, 2), maps_of("gradcam", nn.Sequential(*layers, head), x, 2, layer="0"))
