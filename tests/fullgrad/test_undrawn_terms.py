"""How much of a network FullGrad draws, and that it says so where it is little."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import Tensor, nn

from fg_lightning import FullGrad, SmoothFullGrad, full_gradients
from fg_lightning.fullgrad import Term


def images(n: int = 2, side: int = 16) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


class Stripes(nn.Module):
    """Looks at the last of four stripes, of which it takes logarithms: their biases are infinite at zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        stripe = x.chunk(4, 2)[3] + 1
        return self.head(self.conv(stripe.log()).relu().mean((2, 3)))


class MergedByView(nn.Module):
    """Two stages of tokens, the patches of the first merged by view and permute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 2, 8, 0.0, F.gelu, batch_first=True) for width in (8, 12))
        self.merge = nn.Linear(32, 12)
        self.downsample = nn.Conv2d(12, 12, 2, 2)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        x = self.blocks[0](x.flatten(2).transpose(1, 2))
        x = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).reshape(n, h * w // 4, 4 * c)
        x = self.blocks[1](self.merge(x))
        x = self.downsample(x.transpose(1, 2).reshape(n, -1, h // 2, w // 2))
        return self.head(F.gelu(x).mean((2, 3)))


class ClassTokenCarriedOn(nn.Module):
    """Two stages of tokens, the class token of the first before the places of the second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token = nn.Parameter(torch.rand(1, 1, 8))
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8, 0.0, F.gelu, batch_first=True) for _ in range(2))
        self.pool = nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shape = x.shape
        x = self.blocks[0](torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1))
        token, places = x[:, :1], self.pool(x[:, 1:].transpose(1, 2).reshape(shape))
        x = self.blocks[1](torch.cat([token, places.flatten(2).transpose(1, 2)], 1))
        return self.head(x[:, 0])


def swin() -> nn.Module:
    """Whose windows do not divide its stages, so that it pads and crops, and rolls in between."""
    return zoo.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [3, 3], stochastic_depth_prob=0.0, num_classes=3)


def vit() -> nn.Module:
    return zoo.VisionTransformer(image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3)


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 4, 5), nn.ReLU(), nn.Flatten(), *(nn.Linear(256, 256) for _ in range(9))
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "merged by view": (MergedByView, {"linear in head"}),
    "class token carried on": (ClassTokenCarriedOn, {"linear in head"}),
    "stripes": (Stripes, {"linear in head"}),
    "swin": (swin, {"linear in head"}),
    "vit": (vit, {"linear in heads.head"}),
    "resnet18": (lambda: zoo.resnet18(num_classes=3), {"linear in fc"}),
    "shufflenet_v2_x0_5": (lambda: zoo.shufflenet_v2_x0_5(num_classes=3), {"linear in fc"}),
    "mobilenet_v3_small": (
        lambda: zoo.mobilenet_v3_small(num_classes=3),
        {"linear in classifier.0", "hardswish in classifier.1", "linear in classifier.3"},
    ),
    "five layers after the plane": (lenet, {f"linear in {i}" for i in range(5, 14)}),
    "no plane at all": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.GELU(), nn.Linear(8, 3)),
        {"linear in 1", "gelu in 2", "linear in 3"},
    ),
}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_all_of_a_network_is_drawn_but_its_head(name: str, n: int) -> None:
    build, head = NETWORKS[name]
    torch.manual_seed(0)
    _, terms = FullGrad(build().eval()).attribute_with_terms(images(n), 1)  # a warning is an error
    assert set(terms.undrawn) == head
    assert bool(terms.drawn) == (name != "no plane at all")
    assert not set(terms.drawn) & head
    assert terms.lost == ()  # all of them are behind the end of the plane


def test_a_map_is_zero_where_the_network_does_not_look() -> None:
    maps = FullGrad(Stripes()).attribute(images(), 1)
    assert torch.equal(maps[:, :, :12], torch.zeros(2, 1, 12, 16))
    assert maps[:, :, 12:].amax() > 0.5
    assert torch.isfinite(SmoothFullGrad(Stripes(), num_samples=2).attribute(images(), 1)).all()


def test_what_a_pad_adds_is_not_drawn() -> None:
    """On noise the quarters of the map of a network that pads to the right and below are alike."""
    torch.manual_seed(0)
    model = swin().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, -0.3, 0.3)
    maps = FullGrad(model).attribute(torch.randn(8, 3, 32, 32), 1)
    quarters = maps.unflatten(3, (2, 16)).unflatten(2, (2, 16)).mean((0, 1, 3, 5))
    assert quarters.amax() < 1.1 * quarters.amin()  # 1.39 with the pad drawn; windows at the border are not quite like others


# --- what cannot be drawn --------------------------------------------------------------------------------------------------------


class Scrambled(nn.Module):
    """Changes the order of its places, so that their places are not known."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(layers)
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.order = torch.randperm(16)
        self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x).flatten(2)[:, :, self.order].transpose(1, 2)).mean(1))


def test_a_network_of_which_little_is_drawn_is_warned_about_once() -> None:
    model = Scrambled(3)
    with pytest.warns(UserWarning, match=r"draws 1 of 4 bias terms.*from linear in layers\.0 on"):
        _, terms = FullGrad(model).attribute_with_terms(images(), 1)
    assert terms.undrawn == ("linear in layers.0", "linear in layers.1", "linear in layers.2", "linear in head")
    assert terms.drawn == ("conv2d in stem",)
    assert terms.lost == terms.undrawn[:3]
    assert terms.undrawn == full_gradients(model, images(), 1).undrawn
    FullGrad(model).attribute(images(), 1)  # a second warning would be an error
    with warnings.catch_warnings():  # which makes Python forget what it has shown
        FullGrad(model).attribute(images(1), 1)


def test_a_network_of_which_half_is_drawn_is_not_warned_about() -> None:
    FullGrad(Scrambled(1)).attribute(images(), 1)


def test_the_users_layout_is_enough() -> None:
    model = Scrambled(4)

    def layout(term: Term, values: Tensor) -> Tensor | None:
        return values[:, model.order.argsort()].transpose(1, 2).unflatten(2, (4, 4)) if "layers" in term.module else None

    FullGrad(model, layout=layout).attribute(images(), 1)
