"""What is changed in torchvision's networks to fit other images and classes."""

import pytest
import torch
import torchvision.models
from torch import nn
from torchvision.models import get_model

from fg_lightning.errors import CannotRun
from fg_lightning.training.torchvision_network import channels, classifier, keep_resolution, outputs, set_channels, set_outputs

NAMES = [
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if not name.startswith("regnet") or name.endswith("400mf")  # the others are as these, and need memory to be made
]


def without_memory(name):
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return get_model(name, weights=None, **({"init_weights": False} if name in ("googlenet", "inception_v3") else {}))


@pytest.mark.parametrize("name", NAMES)
def test_every_classifier_of_torchvision_gets_its_last_layer_and_its_first(name):
    network = without_memory(name)
    assert (outputs(network), channels(network)) == (1000, 3)
    set_outputs(network, 7)
    set_channels(network, 1)
    assert (outputs(network), channels(network)) == (7, 1)
    keep_resolution(network)
    assert (outputs(network), channels(network)) == (7, 1)


def test_a_grey_image_gives_what_it_gave_in_three_channels():
    network, grey = classifier("squeezenet1_1").eval(), torch.rand(2, 1, 64, 64)
    before = network(grey.expand(-1, 3, -1, -1))
    set_channels(network, 1)
    torch.testing.assert_close(network(grey), before, rtol=1e-4, atol=1e-5)  # float32, another order of summation


def test_equal_channels_give_the_same_however_many_they_are():
    network, grey = classifier("squeezenet1_1").eval(), torch.rand(2, 1, 64, 64)
    before = network(grey.expand(-1, 3, -1, -1))
    set_channels(network, 6)
    torch.testing.assert_close(network(grey.expand(-1, 6, -1, -1)), before, rtol=1e-4, atol=1e-5)


def test_nothing_is_replaced_that_fits():
    network = classifier("resnet18")
    first, last = network.conv1, network.fc
    set_channels(network, 3)
    set_outputs(network, 1000)
    assert network.conv1 is first
    assert network.fc is last


def test_a_resnet_for_small_images_is_the_one_of_the_literature():
    network = classifier("resnet18")
    keep_resolution(network)
    assert (network.conv1.kernel_size, network.conv1.stride, network.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(network.maxpool, nn.Identity)
    found = []
    network.layer4.register_forward_hook(lambda module, inputs, output: found.append(output.shape))
    network.eval()(torch.rand(1, 3, 32, 32))
    assert found == [(1, 512, 4, 4)]


def test_three_by_three_kernels_keep_their_weights():
    network = classifier("mobilenet_v3_small")
    weight = network.features[0][0].weight.clone()
    keep_resolution(network)
    assert network.features[0][0].stride == (1, 1)
    assert torch.equal(network.features[0][0].weight, weight)


def test_networks_that_begin_with_patches_stay_as_they_are():
    network = without_memory("vit_b_16")
    before = network.conv_proj
    keep_resolution(network)
    assert network.conv_proj is before


def test_in_training_there_are_logits_alone():
    network = classifier("inception_v3")
    assert network.train()(torch.rand(2, 3, 96, 96)).shape == (2, 1000)


def test_the_vgg_of_nine_layers_is_eight_convolutions_with_batch_norm_and_a_linear_layer():
    network = classifier("vgg9_bn").eval()
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear | nn.MaxPool2d)]
    widths = ["M" if isinstance(layer, nn.MaxPool2d) else layer.weight.shape[0] for layer in layers]
    assert widths == [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M", 100]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 8
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 100)
    keep_resolution(network)
    set_outputs(network, 7)
    set_channels(network, 1)
    assert network(torch.rand(2, 1, 64, 64)).shape == (2, 7)
    with pytest.raises(CannotRun, match="vgg9_bn has random weights only, not 'DEFAULT'"):
        classifier("vgg9_bn", "DEFAULT")
