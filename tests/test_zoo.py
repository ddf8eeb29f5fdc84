"""A representative third of the zoo: every family of torchvision's classifiers, dense, video and Hugging Face models."""

import runpy

import pytest

from tests import ROOT

ZOO = runpy.run_path(str(ROOT / "benchmarks" / "zoo.py"))

REPRESENTATIVES = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 mobilenet_v2 "
    "mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t "
    "swin_v2_t vgg11 vgg11_bn vit_b_32 wide_resnet50_2 deeplabv3_mobilenet_v3_large fcn_resnet50 lraspp_mobilenet_v3_large mc3_18 "
    "mvit_v1_b r2plus1d_18 s3d vit swin convnext deit beit"
).split()


def test_the_representatives_are_a_third_of_the_zoo():
    names = [candidate.name for candidate in ZOO["candidates"]()]
    assert set(REPRESENTATIVES) <= set(names)
    assert 3 * len(REPRESENTATIVES) >= len(names)


@pytest.mark.slow
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_completeness_on_the_zoo(name):
    (candidate,) = (c for c in ZOO["candidates"]() if c.name == name)
    row = ZOO["measured"](candidate)
    assert row.error_float64 < 1e-9
    assert not row.missing_ops
    # float32 rounds each term to 6e-8 of itself, in some hundred layers one after the other
    assert row.error_float32 < max(1e-3, 1e-5 * row.cancellation)
