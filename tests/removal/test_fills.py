"""What replaces the pixels that go."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from fg_lightning.removal import find_fill, noisy_linear


def images_and_mask(n: int = 3, channels: int = 2, size: tuple[int, ...] = (4, 5)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, channels, *size, generator=generator), torch.rand(n, 1, *size, generator=generator) < 0.5


def replaced_one_by_one(images: Tensor, mask: Tensor, values: list[list[float]]) -> Tensor:
    """Pixel by pixel, from a value for each image and channel."""
    result = images.clone()
    for n, c, *place in (torch.ones_like(images)).nonzero().tolist():
        if mask[(n, 0, *place)]:
            result[(n, c, *place)] = values[n][c]
    return result


@pytest.mark.parametrize("size", [(6,), (4, 5), (3, 2, 4)])
@pytest.mark.parametrize(
    ("fill", "values"),
    [
        (0.0, [0.0, 0.0]),
        (-1, [-1.0, -1.0]),
        ([0.5, -2.0], [0.5, -2.0]),
        ((0.5, -2.0), [0.5, -2.0]),
        (torch.tensor([0.5, -2.0]), [0.5, -2.0]),
        (torch.tensor([0.5, -2.0])[:, None, None], [0.5, -2.0]),
        (torch.tensor(3), [3.0, 3.0]),
    ],
)
def test_numbers_replace_pixels(fill: object, values: list[float], size: tuple[int, ...]) -> None:
    images, mask = images_and_mask(size=size)
    assert torch.equal(find_fill(fill)(images, mask), replaced_one_by_one(images, mask, [values] * 3))


def test_image_mean_is_each_images_own_of_each_channel_over_all_pixels() -> None:
    images, mask = images_and_mask()
    means = [[float(channel.mean()) for channel in image] for image in images]
    expected = replaced_one_by_one(images, mask, means)
    # float32: the order of twenty additions
    torch.testing.assert_close(find_fill("image_mean")(images, mask), expected, rtol=1e-6, atol=1e-6)


def test_dataset_mean_is_the_numbers_that_are_given_with_it() -> None:
    images, mask = images_and_mask()
    filled = find_fill("dataset_mean", dataset_mean=[0.5, -2.0])(images, mask)
    assert torch.equal(filled, replaced_one_by_one(images, mask, [[0.5, -2.0]] * 3))
    with pytest.raises(ValueError, match=r"'dataset_mean' needs the mean of the training images, .* fill=\[0.48"):
        find_fill("dataset_mean")
    with pytest.raises(ValueError, match="image_mean, noisy_linear, dataset_mean, a number"):
        find_fill("data_mean", dataset_mean=0.5)


def test_black_is_zero_of_images_that_are_not_normalized() -> None:
    images, mask = images_and_mask()
    assert torch.equal(find_fill("black")(images.abs(), mask), replaced_one_by_one(images.abs(), mask, [[0.0, 0.0]] * 3))
    assert find_fill("black")(images[:0], mask[:0]).shape == (0, 2, 4, 5)
    with pytest.raises(ValueError, match=r"not normalized, .* values below 0. Give their .* normalization=\(\["):
        find_fill("black")(images, mask)


NORMALIZATIONS = {
    "a number each": ((0.5, 0.25), [0.5, 0.5], [0.25, 0.25]),
    "for each channel": (([0.5, 0.25], [0.25, 2.0]), [0.5, 0.25], [0.25, 2.0]),
    "mixed": ((torch.tensor([0.5, 0.25])[:, None, None], 0.5), [0.5, 0.25], [0.5, 0.5]),
    "turned round": ((1.0, -1.0), [1.0, 1.0], [-1.0, -1.0]),
}


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_fills_of_normalized_images_are_those_of_the_images_before(name: str) -> None:
    normalization, mean, std = NORMALIZATIONS[name]
    images, mask = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)), images_and_mask()[1]
    per_channel = (1, 2, 1, 1)
    means, stds = torch.tensor(mean).reshape(per_channel), torch.tensor(std).reshape(per_channel)
    for fill in ("black", 0.0, 0.75, [0.25, 1.0], "dataset_mean"):
        before = find_fill(0.0 if fill == "black" else fill, dataset_mean=[0.125, 0.5])(images, mask)
        after = find_fill(fill, dataset_mean=[0.125, 0.5], normalization=normalization)((images - means) / stds, mask)
        torch.testing.assert_close(after, (before - means) / stds, rtol=1e-6, atol=1e-6)  # float32


def test_image_mean_and_functions_do_not_depend_on_the_normalization() -> None:
    images, mask = images_and_mask()
    for fill in ("image_mean", "noisy_linear", lambda x, m: torch.where(m, -x, x)):
        assert torch.equal(find_fill(fill, normalization=(0.5, 0.25))(images, mask), find_fill(fill)(images, mask))


def test_a_normalization_by_which_pixels_are_darker_than_black_is_refused() -> None:
    images, mask = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)), images_and_mask()[1]
    black = find_fill("black", normalization=(0.5, 0.5))
    assert black(2 * images - 1, mask).min() == -1
    black(2 * images - 1.05, mask)  # bicubic resizing overshoots as far
    with pytest.raises(ValueError, match=r"some pixels were -0.\d+: the images were normalized with other numbers. Give these"):
        black((images - 0.5) / 0.25, mask)


@pytest.mark.parametrize(
    "normalization", [0.5, (0.5,), (0.5, 0.0), (0.5, float("nan")), ([0.1, 0.2], [0.1, 0.2, 0.3]), ("a", "b"), (torch.eye(2), 1.0)]
)
@pytest.mark.ill_typed
def test_a_bad_normalization_is_refused(normalization: object) -> None:
    with pytest.raises(ValueError, match=r"normalization must be \(mean, std\), .* but is"):
        find_fill(0.5, normalization=normalization)
    images, mask = torch.rand(1, 2, 4, 5), torch.ones(1, 1, 4, 5, dtype=torch.bool)
    for fill in ("black", 0.5):
        with pytest.raises(ValueError, match="normalization gives 3 numbers, one for each channel, but the images have 2 channels"):
            find_fill(fill, normalization=([0.1, 0.2, 0.3], 1.0))(images, mask)


def test_names_stand_for_functions() -> None:
    images, mask = images_and_mask()
    assert torch.equal(find_fill("noisy_linear")(images, mask), noisy_linear(images, mask))


def test_a_function_of_the_users_is_called_with_images_and_mask() -> None:
    images, mask = images_and_mask()
    assert torch.equal(find_fill(lambda x, m: torch.where(m, -x, x))(images, mask), torch.where(mask, -images, images))


@pytest.mark.parametrize("fill", [0.5, [1.0, 2.0], "image_mean", "noisy_linear"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_fills_keep_precision_their_input_and_the_other_pixels(fill: object, dtype: torch.dtype) -> None:
    images, mask = images_and_mask()
    images = images.to(dtype)
    before = images.clone()
    filled = find_fill(fill)(images, mask)
    assert filled.dtype is dtype
    assert torch.equal(images, before)
    assert torch.equal(filled[~mask.expand_as(images)], images[~mask.expand_as(images)])


@pytest.mark.parametrize("fill", [0.5, [1.0, 2.0], "black", "image_mean", "noisy_linear", noisy_linear])
def test_a_fill_can_be_sent_to_a_data_loaders_workers(fill: object) -> None:
    images, mask = images_and_mask()
    function = find_fill(fill, normalization=(5.0, 1.0))
    assert torch.equal(pickle.loads(pickle.dumps(function))(images, mask), function(images, mask))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fill", [0.5, [1.0, 2.0], "black", "dataset_mean", "image_mean"])
def test_fills_on_a_gpu_are_those_on_a_cpu(fill: object) -> None:
    images, mask = images_and_mask()
    function = find_fill(fill, dataset_mean=[0.5, 1.0], normalization=([5.0, 4.0], 2.0))
    torch.testing.assert_close(function(images.cuda(), mask.cuda()).cpu(), function(images, mask), rtol=1e-6, atol=1e-6)


BAD_FILLS = {
    "a name": ("blur", ValueError, "image_mean, noisy_linear, a number, .* not 'blur'"),
    "None": (None, TypeError, "image_mean, noisy_linear, a number, .* not NoneType"),
    "words": (["black", "white"], TypeError, "not list"),
    "infinite": (float("inf"), ValueError, "a finite number, or one for each channel, but is inf"),
    "a picture": (torch.zeros(3, 4, 4), ValueError, "a finite number, or one for each channel"),
}


@pytest.mark.parametrize("name", BAD_FILLS)
@pytest.mark.ill_typed
def test_a_bad_fill_is_refused_when_it_is_chosen(name: str) -> None:
    fill, error, message = BAD_FILLS[name]
    with pytest.raises(error, match=message):
        find_fill(fill)


def test_a_fill_of_another_number_of_channels_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="fill gives 3 numbers, one for each channel, but the images have 2 channels"):
        find_fill([0.1, 0.2, 0.3])(*images_and_mask())


@pytest.mark.parametrize(
    ("images", "mask", "error", "message"),
    [
        (
            torch.zeros(1, 1, 2, 2, dtype=torch.uint8),
            torch.ones(1, 1, 2, 2).bool(),
            TypeError,
            r"torch.uint8: .* images.float\(\) / 255",
        ),
        (torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), TypeError, "mask must be a boolean tensor, .* torch.float32"),
        (torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2).bool(), ValueError, r"a mask of shape \(1, 1, 2, 2\)"),
        (torch.zeros(2, 3, 2, 2), torch.ones(1, 1, 2, 2).bool(), ValueError, r"a mask of shape \(2, 1, 2, 2\)"),
    ],
)
@pytest.mark.ill_typed
def test_images_and_masks_that_do_not_fit_are_refused(images: Tensor, mask: Tensor, error: type, message: str) -> None:
    for function in (find_fill(0.0), noisy_linear):
        with pytest.raises(error, match=message):
            function(images, mask)


@pytest.mark.parametrize("returned", [None, torch.zeros(1)])
def test_a_fill_that_returns_something_else_is_refused(returned: object) -> None:
    with pytest.raises(ValueError, match=r"images of the shape it was given, \(3, 2, 4, 5\), but returned"):
        find_fill(lambda images, mask: returned)(*images_and_mask())
