"""Models of several image inputs: an input term and a map for each."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fg_lightning import FullGrad, SmoothFullGrad, full_gradients
from fg_lightning.fullgrad import Term
from fg_lightning.fullgrad.forward_backward import Batch, run_forward_backward
from fg_lightning.fullgrad.linearization import Pointwise, compute_bias

EXACT = 1e-12  # float64 rounding, relative to the output


def images(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape or (3, 3, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TwoStreams(nn.Module):
    """Encodes two images and joins them in one of several ways."""

    def __init__(self, joining: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.joining = joining
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(True),
        )
        self.encoder[1].running_mean.normal_()
        nn.init.normal_(self.encoder[1].bias)
        self.trunk = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(self.trunk(getattr(self, self.joining)(left, right)).mean((2, 3)))

    def channels(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.cat([self.encoder(left), self.encoder(right)], 1)

    def batch(self, left: Tensor, right: Tensor) -> Tensor:
        first, second = self.encoder(torch.cat([left, right])).chunk(2)
        return torch.cat([first, second], 1)

    def batch_by_slices(self, left: Tensor, right: Tensor) -> Tensor:
        both = self.encoder(torch.cat((left, right), dim=0))
        return torch.cat([both[: len(left)], both[len(left) :]], 1)

    def stack(self, left: Tensor, right: Tensor) -> Tensor:
        first, second = self.encoder(torch.stack([left, right]).flatten(0, 1)).unflatten(0, (2, -1)).unbind()
        return torch.cat([first, second], 1)

    def interleaved(self, left: Tensor, right: Tensor) -> Tensor:
        both = self.encoder(torch.stack([left, right], 1).flatten(0, 1)).unflatten(0, (-1, 2))
        return torch.cat([both[:, 0], both[:, 1]], 1)

    def every_other(self, left: Tensor, right: Tensor) -> Tensor:
        both = self.encoder(torch.stack([left, right], dim=1).view(-1, *left.shape[1:]))
        return torch.cat([both[::2], both[1::2]], 1)

    def assignment(self, left: Tensor, right: Tensor) -> Tensor:
        joined = left.new_zeros(len(left), 16, *(size // 2 for size in left.shape[2:]))
        joined[:, :8], joined[:, 8:] = self.encoder(left), self.encoder(right)
        return joined

    def difference(self, left: Tensor, right: Tensor) -> Tensor:
        first, second = self.encoder(left), self.encoder(right)
        return torch.cat([(first - second).abs(), first * second], 1)

    def correlation(self, left: Tensor, right: Tensor) -> Tensor:
        """What lies around each place of the left image, compared with a crop of the right one."""
        first, kernel = self.encoder(left), self.encoder(right)[:, :, 2:5, 2:5]
        found = F.conv2d(first.flatten(0, 1)[None], kernel.reshape(-1, 1, 3, 3), groups=8 * len(left), padding=1)
        return torch.cat([found.reshape(first.shape), first], 1)

    def cross_attention(self, left: Tensor, right: Tensor) -> Tensor:
        """Each place of the left image asks the right one."""
        query, value = (self.encoder(stream).flatten(2).transpose(1, 2) for stream in (left, right))
        asked = F.scaled_dot_product_attention(query, value, value)
        return torch.cat([query, asked], 2).transpose(1, 2).unflatten(2, (8, 8))


JOININGS = [
    "channels",
    "batch",
    "batch_by_slices",
    "stack",
    "interleaved",
    "every_other",
    "assignment",
    "difference",
    "correlation",
    "cross_attention",
]


class Seen:
    """A visitor that keeps which terms lie on which image."""

    def __init__(self) -> None:
        self.terms: list[tuple[Term, Tensor]] = []

    def visit(self, term: Term, bias: Tensor | Pointwise, gradient: Tensor) -> None:
        self.terms.append((term, gradient * compute_bias(bias)))

    def visit_input(self, images: Sequence[Tensor], gradients: Sequence[Tensor]) -> None: ...

    def planes(self, name: str) -> list[list[list[int]]]:
        """Of the terms of a module, in the order of the backward pass."""
        return [[sorted(of_entry) for of_entry in term.planes.images] for term, _ in self.terms if term.module == name]


def visit(model: nn.Module, *inputs: Tensor) -> Seen:
    seen = Seen()
    run_forward_backward(model, Batch.of(model, inputs, 1, None), [seen])
    return seen


@pytest.mark.parametrize("joining", JOININGS)
def test_each_image_has_an_input_term_and_the_sum_is_complete(joining: str) -> None:
    model, left, right = TwoStreams(joining).double().eval(), images(1), images(2)
    terms = full_gradients(model, (left, right), 1)
    assert float(terms.completeness_error.max()) < EXACT
    assert not terms.missing_ops
    leaves = [left.clone().requires_grad_(), right.clone().requires_grad_()]
    gradients = torch.autograd.grad(model(*leaves)[:, 1].sum(), leaves)
    for leaf, gradient, of_input, term in zip(leaves, gradients, terms.input_gradient, terms.input_term, strict=True):
        torch.testing.assert_close(of_input, gradient, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(term, (leaf * gradient).flatten(1).sum(1).detach(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("joining", ["batch", "batch_by_slices", "stack", "interleaved", "every_other", "assignment"])
@pytest.mark.parametrize("method", [FullGrad, lambda model: SmoothFullGrad(model, num_samples=2)], ids=["fullgrad", "smooth"])
def test_maps_do_not_depend_on_how_the_same_network_is_written(joining, method) -> None:
    inputs = images(1), images(2)
    expected = method(TwoStreams("channels").double().eval()).attribute(inputs, 1)
    maps = method(TwoStreams(joining).double().eval()).attribute(inputs, 1)
    for map_, of_channels in zip(maps, expected, strict=True):
        # In the batch, a term of both images is one tensor; its parts are rescaled by their own extremes.
        torch.testing.assert_close(map_, of_channels, rtol=1e-9, atol=1e-9)


def test_the_map_of_an_image_has_the_terms_of_its_own_stream_by_the_definition() -> None:
    model, inputs = TwoStreams("channels").double().eval(), (images(1), images(2))
    maps = FullGrad(model).attribute(inputs, 1)
    seen, terms = visit(model, *inputs), full_gradients(model, inputs, 1)

    def psi(term: Tensor) -> Tensor:
        flat = term.abs().flatten(1)
        low, high = (extreme.reshape(-1, 1, 1, 1) for extreme in (flat.amin(1), flat.amax(1)))
        scaled = (term.abs() - low) / (high - low + 1e-6)
        return F.interpolate(scaled, inputs[0].shape[2:], mode="bilinear", align_corners=True).sum(1, keepdim=True)

    of_encoder = [values for term, values in seen.terms if term.module.startswith("encoder")]
    of_trunk = [values for term, values in seen.terms if term.module.startswith("trunk")]
    right, left = of_encoder[:3], of_encoder[3:]  # last operation first
    assert (len(right), len(left), len(of_trunk)) == (3, 3, 1)
    for image, of_stream in enumerate((left, right)):
        expected = sum(psi(values) for values in (inputs[image] * terms.input_gradient[image], *of_stream, *of_trunk))
        torch.testing.assert_close(maps[image], expected, rtol=1e-9, atol=1e-9)


def test_a_term_lies_on_the_image_whose_places_it_has() -> None:
    inputs = images(1), images(2)
    of_both = [[[0, 1]]]
    assert visit(TwoStreams("channels").double(), *inputs).planes("trunk.0") == of_both
    assert visit(TwoStreams("difference").double(), *inputs).planes("trunk.0") == of_both
    assert visit(TwoStreams("batch").double(), *inputs).planes("encoder.0") == [[[0]] * 3 + [[1]] * 3]
    assert visit(TwoStreams("channels").double(), *inputs).planes("encoder.0") == [[[1]], [[0]]]
    for joining in ("correlation", "cross_attention"):  # the right image is moved to places of the left one
        assert visit(TwoStreams(joining).double(), *inputs).planes("trunk.0") == [[[0]]]


def test_a_sample_alone_is_explained_as_in_a_batch() -> None:
    for joining in JOININGS:
        model, left, right = TwoStreams(joining).double().eval(), images(1), images(2)
        together = FullGrad(model).attribute((left, right), 1)
        for i in range(len(left)):
            alone = FullGrad(model).attribute((left[i : i + 1], right[i : i + 1]), 1)
            for of_batch, of_one in zip(together, alone, strict=True):
                torch.testing.assert_close(of_batch[i : i + 1], of_one, rtol=1e-9, atol=1e-9)


class ImageAndSignal(nn.Module):
    """A picture and a signal of another size, joined behind their planes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.of_image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.of_signal = nn.Sequential(nn.Conv1d(2, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.head = nn.Linear(8, 3)

    def forward(self, image: Tensor, signal: Tensor) -> Tensor:
        return self.head(torch.cat([self.of_image(image), self.of_signal(signal)], 1))


def test_image_inputs_may_have_other_sizes_and_axes() -> None:
    model, image, signal = ImageAndSignal().double(), images(1, 2, 3, 12, 10), images(2, 2, 2, 40)
    maps, terms = FullGrad(model).attribute_with_terms((image, signal))
    assert [tuple(map_.shape) for map_ in maps] == [(2, 1, 12, 10), (2, 1, 40)]
    assert float(terms.completeness_error.max()) < EXACT
    assert terms.undrawn == ("linear in head",)


def test_samples_that_cannot_be_told_apart_are_run_alone() -> None:
    class Mixed(TwoStreams):
        def channels(self, left: Tensor, right: Tensor) -> Tensor:
            joined = super().channels(left, right)
            return torch.stack([joined[i] for i in range(len(joined))])

    model, inputs = Mixed("channels").double().eval(), (images(1), images(2))
    maps, terms = FullGrad(model).attribute_with_terms(inputs, 1)
    assert terms.unbatched_by
    assert float(terms.completeness_error.max()) < EXACT
    for map_, expected in zip(maps, FullGrad(TwoStreams("channels").double().eval()).attribute(inputs, 1), strict=True):
        torch.testing.assert_close(map_, expected, rtol=1e-9, atol=1e-9)


def test_an_image_that_does_not_count_has_an_empty_map() -> None:
    class First(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left.flatten(1)[:, :3]

    maps, terms = FullGrad(First()).attribute_with_terms((images(1), images(2)), 0)
    assert float(maps[1].abs().max()) == 0
    assert float(terms.input_term[1].abs().max()) == 0
    assert float(maps[0].max()) > 0


def test_a_tuple_of_one_image_is_one_image() -> None:
    model, left = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()).double(), images(1)
    (map_,) = FullGrad(model).attribute((left,), 0)
    assert torch.equal(map_, FullGrad(model).attribute(left, 0))
    assert isinstance(full_gradients(model, (left,), 0).input_term, Tensor)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ((images(1), images(2)[:2]), ValueError, "one image for each sample, but they have 3, 2 images"),
        ((), TypeError, "images must be a tensor"),
        ((images(1), None), TypeError, "images must be a tensor"),
        ((images(1), images(2)[0, 0]), ValueError, "spatial dimensions"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, error, message) -> None:
    with pytest.raises(error, match=message):
        FullGrad(TwoStreams("channels").double()).attribute(inputs, 1)


@pytest.mark.slow
def test_optical_flow_of_torchvision_has_a_map_for_each_frame() -> None:
    """RAFT encodes both frames in one batch and looks correlations up by an estimated flow."""
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    model = raft_small().eval()
    frames = images(1, 2, 3, 128, 128).float(), images(2, 2, 3, 128, 128).float()

    def flow(output: list[Tensor]) -> Tensor:
        return output[-1][:, 0].mean((1, 2))

    maps, terms = FullGrad(model).attribute_with_terms(frames, flow, (2,))
    assert float(terms.completeness_error.max()) < 1e-2  # float32, through a flow of some pixels
    assert [tuple(map_.shape) for map_ in maps] == [(2, 1, 128, 128)] * 2
    assert all(bool(map_.isfinite().all()) and float(map_.max()) > 0 for map_ in maps)
