"""The depth map shows each share where and as it should, and names every row, however many layers there are."""

import numpy as np
import pytest
import torchvision

from fg_lightning.visualization import depth_map
from fg_lightning.visualization.depth_map import MAX_ROWS, group_layers


def row_names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_a_depth_map_shows_signs_and_writes_numbers():
    shares = np.zeros((30, 5))
    shares[10], shares[20] = 0.3, -0.025
    figure = depth_map(shares, [f"layer{i}" for i in range(30)], [f"epoch {i}" for i in range(5)])
    axes, colours = figure.axes
    picture = axes.images[0]
    assert np.array_equal(picture.get_array(), shares)
    assert picture.norm(0) == pytest.approx(0.5)
    assert picture.norm(0.3) > 0.5 > picture.norm(-0.3)
    assert {text.get_text() for text in axes.texts} == {"30", "-2.5"}
    assert row_names(axes) == [f"layer{i}" for i in range(30)]
    assert "share of the output" in colours.get_ylabel()


def test_the_input_has_a_scale_of_its_own():
    shares = np.array([[5.0, -3.0, np.nan], [0.01, -0.02, np.nan], [0.02, 0.02, np.nan]])
    figure = depth_map(shares, ["input", "a", "b"], ["untrained", "epoch 1", "epoch 2"], title="What is added")
    bars, biases = figure.axes[:2]
    assert [bar.get_height() for bar in bars.patches] == [5, -3, 0]
    assert [text.get_text() for text in bars.texts] == ["500", "-300"]
    assert bars.get_ylabel() == "input"
    assert row_names(biases) == ["a", "b"]
    assert biases.images[0].norm.vmax < 0.03
    assert np.array_equal(biases.images[0].get_array().filled(np.nan), shares[1:], equal_nan=True)
    heading = figure.get_suptitle()
    assert heading.startswith("What is added\n")
    assert "hatched: undefined" in heading


def test_without_biases_there_is_the_input_alone():
    figure = depth_map(np.ones((1, 2)), ["input"], ["untrained", "epoch 1"])
    assert [bar.get_height() for bar in figure.axes[0].patches] == [1, 1]


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "densenet121", "efficientnet_b0", "swin_t", "mobilenet_v3_small"])
def test_every_row_has_a_name_and_every_layer_a_row(name):
    network = torchvision.models.get_model(name, weights=None)
    layers = [name for name, module in network.named_modules() if not list(module.children())]
    shares = np.random.default_rng(0).normal(size=(len(layers), 3))
    groups = group_layers(layers)
    assert sorted(i for members in groups.values() for i in members) == list(range(len(layers)))
    assert 6 <= len(groups) <= MAX_ROWS
    figure = depth_map(shares, layers, ["0", "1", "2"])
    axes = figure.axes[0]
    assert len(row_names(axes)) == len(groups)
    assert all(row_names(axes))
    assert axes.images[0].get_array().sum() == pytest.approx(shares.sum())
    for members, drawn in zip(groups.values(), axes.images[0].get_array(), strict=True):
        assert np.asarray(drawn) == pytest.approx(shares[members].sum(0))
    if len(groups) < len(layers):
        assert f"{len(layers)} layers, added up in {len(groups)} rows" in figure.get_suptitle()


def test_layers_of_one_long_list_are_joined_with_their_neighbours():
    groups = group_layers([f"layers.{i}" for i in range(200)] + ["head"])
    assert list(groups)[:2] == ["layers.0 to 5", "layers.6 to 11"]
    assert list(groups)[-1] == "head"
    assert groups["layers.6 to 11"] == list(range(6, 12))


def test_of_many_snapshots_some_are_named():
    axes = depth_map(np.ones((3, 100)), list("abc"), [f"e{i}" for i in range(100)]).axes[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert (len(names), names[0], names[-1]) == (16, "e0", "e99")
    assert not axes.texts


def test_a_depth_map_of_nothing_is_refused():
    with pytest.raises(ValueError, match="a row for each of 2 layers"):
        depth_map(np.zeros((3, 4)), ["a", "b"], ["1", "2", "3", "4"])
    with pytest.raises(ValueError, match="a row for each of 0 layers"):
        depth_map(np.zeros((0, 0)), [], [])
