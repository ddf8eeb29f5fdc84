"""The methods that Captum has, as Captum gives them."""

from __future__ import annotations

from collections.abc import Callable

import captum.attr
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam, NoiseTunnel
from torch import Tensor, nn

from fg_lightning.sample_seeds import seeds_of
from tests.helpers.attribution_cases import NETS, TARGETS, assert_close, maps_of, net

CAPTUMS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "gradient": lambda model, x: captum.attr.Saliency(model).attribute(x, target=TARGETS),
    "input_x_gradient": lambda model, x: captum.attr.InputXGradient(model).attribute(x, target=TARGETS),
    "integrated_gradients": lambda model, x: captum.attr.IntegratedGradients(model).attribute(x, target=TARGETS, n_steps=5),
    "guided_backprop": lambda model, x: captum.attr.GuidedBackprop(model).attribute(x, target=TARGETS),
}


@pytest.mark.parametrize("net_name", NETS)
@pytest.mark.parametrize("name", CAPTUMS)
def test_a_wrapped_method_is_captums_result_summed_over_channels(name: str, net_name: str) -> None:
    model, x = net(net_name)
    expected = CAPTUMS[name](model, x.clone().requires_grad_()).abs().sum(1, keepdim=True)
    assert_close(maps_of(name, model, x, TARGETS), expected)


@pytest.mark.parametrize(("net_name", "layer"), [("planar", "4"), ("signal", "4"), ("volume", "2")])
def test_gradcam_is_captums_at_a_layer_that_is_named(net_name: str, layer: str) -> None:
    model, x = net(net_name)
    planes = LayerGradCam(model, model[int(layer)]).attribute(x, target=TARGETS, relu_attributions=True)
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
    expected = LayerAttribution.interpolate(planes, x.shape[2:], mode)
    assert expected.max() > 0
    assert_close(maps_of("gradcam", model, x, TARGETS, layer=layer), expected)


@pytest.mark.parametrize(
    ("name", "nt_type"), [("smoothgrad", "smoothgrad"), ("smoothgrad_squared", "smoothgrad_sq"), ("vargrad", "vargrad")]
)
def test_noisy_methods_are_captums_noise_tunnel_under_the_same_noise(
    name: str, nt_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = net()

    def noisy(image: Tensor, stdev: float, num_samples: int) -> Tensor:
        generator = torch.Generator().manual_seed(seeds_of(image, 7)[0])
        copies = [image + stdev * torch.randn(image.shape[1:], generator=generator) for _ in range(num_samples)]
        return torch.cat(copies)

    monkeypatch.setattr(NoiseTunnel, "_add_noise_to_input", staticmethod(noisy))
    expected = []
    for image, target in zip(x.split(1), TARGETS, strict=True):
        tunnel = NoiseTunnel(captum.attr.Saliency(model))
        stdev = 0.2 * float(image.max() - image.min())
        expected.append(tunnel.attribute(image, nt_type=nt_type, nt_samples=6, stdevs=stdev, target=target, abs=False))
    drawn = maps_of(name, model, x, TARGETS, num_samples=6, noise=0.2, seed=7)
    assert_close(drawn, torch.cat(expected).abs().sum(1, keepdim=True))
