"""What is explained: scores in whatever a model returns, of the classes that a target names; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fg_lightning import FullGrad, full_gradients
from tests.helpers.random_networks import CLASSES, images

# torch itself says so when forward-mode differentiation is first used.


@dataclass
class Output:
    loss: None
    logits: Tensor


class Named(NamedTuple):
    logits: Tensor
    auxiliary: Tensor


RETURNS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda scores, auxiliary: scores,
    "tuple": lambda scores, auxiliary: (scores, auxiliary),
    "list": lambda scores, auxiliary: [scores, auxiliary],
    "named tuple": lambda scores, auxiliary: Named(scores, auxiliary),
    "dataclass": lambda scores, auxiliary: Output(None, scores),
    "logits in a dict": lambda scores, auxiliary: {"loss": auxiliary, "logits": scores},
    "out in a dict": lambda scores, auxiliary: {"aux": auxiliary, "out": scores},
    "nested": lambda scores, auxiliary: ((scores, auxiliary), auxiliary),
}


class Returning(nn.Module):
    def __init__(self, packed: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.auxiliary = nn.Conv2d(3, 4, 3), nn.Linear(64, CLASSES), nn.Linear(64, 2)
        self.packed = packed
        self.double()

    def forward(self, x: Tensor) -> Any:
        y = F.silu(self.conv(x)).flatten(1)
        return self.packed(self.head(y), self.auxiliary(y))


@pytest.mark.parametrize("name", RETURNS)
def test_scores_are_found_in_what_a_model_returns(name: str) -> None:
    result = full_gradients(Returning(RETURNS[name]), images(3), target=2)
    expected = full_gradients(Returning(RETURNS["tensor"]), images(3), target=2)
    assert torch.equal(result.output, expected.output)
    assert torch.equal(result.input_gradient, expected.input_gradient)
    assert result.completeness_error.max() < 1e-10  # float64 rounding


def test_terms_off_the_path_to_the_output_count_nothing() -> None:
    result = full_gradients(Returning(RETURNS["tuple"]), images(3), target=2)
    assert torch.equal(result.bias_terms["auxiliary"], torch.zeros(3, dtype=torch.float64))


SHAPES: dict[str, tuple[Callable[[Tensor], Tensor], Any]] = {
    "[N]": (lambda y: y.sum((1, 2, 3)), None),
    "[N, 1]": (lambda y: y.sum((2, 3))[:, :1], None),
    "[N, K, H, W]": (lambda y: y, (2, 1, 3)),
    "[N, K, L]": (lambda y: y.flatten(2), (2, 7)),
    "[N, K, L], one for each": (lambda y: y.flatten(2), [(2, 7), (0, 1), (3, 4)]),
    "[N, K, L], a tensor": (lambda y: y.flatten(2), torch.tensor([(2, 7), (0, 1), (3, 4)])),
}


@pytest.mark.parametrize("name", SHAPES)
def test_outputs_of_every_shape_are_decomposed(name: str) -> None:
    shaped, target = SHAPES[name]

    class Shaped(Returning):
        def forward(self, x: Tensor) -> Tensor:
            return shaped(F.silu(self.conv(x)))

    model = Shaped(RETURNS["tensor"])
    result = full_gradients(model, images(3), target=target)
    scores = model(images(3)).detach()
    if target is None:
        expected = scores.flatten()
    else:
        each = [target] * 3 if isinstance(target, tuple) else [tuple(int(k) for k in item) for item in target]
        expected = torch.stack([scores[i][index] for i, index in enumerate(each)])
    assert torch.equal(result.output, expected)
    assert result.completeness_error.max() < 1e-10  # float64 rounding


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        (1, [1, 1, 1]),
        ([2, 0, 4], [2, 0, 4]),
        (torch.tensor([2, 0, 4]), [2, 0, 4]),
        (torch.tensor([2, 0, 4], dtype=torch.int32), [2, 0, 4]),
        (torch.tensor(3), [3, 3, 3]),
        (torch.tensor([3]), [3, 3, 3]),
        (range(3), [0, 1, 2]),
        ((4,), [4, 4, 4]),
    ],
    ids=str,
)
def test_targets_pick_classes(target: Any, classes: list[int]) -> None:
    model = Returning(RETURNS["tensor"])
    result = full_gradients(model, images(3), target=target)
    assert result.target.tolist() == classes
    assert torch.equal(result.output, model(images(3))[torch.arange(3), classes].detach())


def test_no_target_is_the_predicted_class() -> None:
    model = Returning(RETURNS["tensor"])
    result = full_gradients(model, images(3))
    assert torch.equal(result.target, model(images(3)).argmax(1))
    assert torch.equal(result.output, model(images(3)).amax(1).detach())


def test_a_function_may_pick_the_output() -> None:
    model = Returning(RETURNS["tuple"])
    result = full_gradients(model, images(3), target=lambda output: output[0][:, 1] - output[0][:, 2] * output[1][:, 0])
    scores, auxiliary = model(images(3))
    assert result.target is None
    torch.testing.assert_close(result.output, (scores[:, 1] - scores[:, 2] * auxiliary[:, 0]).detach(), rtol=1e-12, atol=0)
    assert result.completeness_error.max() < 1e-10  # float64 rounding


def test_additional_arguments_are_constants() -> None:
    class Shifted(Returning):
        def forward(self, x: Tensor, shift: Tensor, scale: float) -> Tensor:
            return super().forward(x + shift) * scale

    shift = images(3, seed=5)
    result = full_gradients(Shifted(RETURNS["tensor"]), images(3), target=2, additional_forward_args=(shift, 2.0))
    plain = full_gradients(Returning(RETURNS["tensor"]), images(3) + shift, target=2)
    # float64 rounding
    torch.testing.assert_close(result.output, 2 * plain.output, rtol=1e-12, atol=1e-12)
    moved = (2 * plain.input_gradient * shift).flatten(1).sum(1)
    torch.testing.assert_close(result.bias_terms[""], moved, rtol=1e-10, atol=1e-12)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))


class Returns(nn.Module):
    def __init__(self, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(x)


X = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("model", "x", "target", "error", "says"),
    [
        (lambda x: x, X, 0, TypeError, "model must be a torch.nn.Module, not function"),
        (classifier(), X.numpy(), 0, TypeError, "images must be a tensor.*not ndarray"),
        (classifier(), (X * 255).to(torch.uint8), 0, TypeError, "floating-point, not torch.uint8"),
        (classifier(), (X * 255).long(), 0, TypeError, "floating-point, not torch.int64"),
        (classifier(), X[0, 0], 0, ValueError, r"shape \(6, 6\).*batch dimension"),
        (classifier(), X[0], 0, ValueError, "batch dimension"),
        (classifier(), X[:0], 0, ValueError, "batch is empty"),
        (classifier(), X, CLASSES, ValueError, "out of range.*from 0 to 4"),
        (classifier(), X, -1, ValueError, "out of range"),
        (classifier(), X, [0, 1, 9], ValueError, "out of range"),
        (classifier(), X, [0, 1], ValueError, "2 targets.*3 samples"),
        (classifier(), X, torch.tensor([0, 1, 2, 3]), ValueError, "4 targets.*3 samples"),
        (classifier(), X, (0, 1), ValueError, "2 indices"),
        (classifier(), X, "cat", TypeError, "target must be.*not str"),
        (classifier(), X, 1.5, TypeError, "target must be.*not float"),
        (classifier(), X, {"a": 1}, TypeError, "target must be.*not dict"),
        (classifier(), X, ["a", "b", "c"], TypeError, "must be integers"),
        (classifier(), X, [0.5, 1.5, 2.5], TypeError, "integers"),
        (classifier(), X, (0.5,), TypeError, "integers"),
        (classifier(), X, torch.tensor([0.0, 1.0, 2.0]), TypeError, "integers.*torch.float32"),
        (classifier(), X, torch.tensor([True, False, True]), TypeError, "integers.*torch.bool"),
        (classifier(), X, lambda output: output, ValueError, r"one number for each of 3 samples.*\(3, 5\)"),
        (classifier(), X, lambda output: 3, ValueError, "one number for each of 3 samples.*int"),
        (Returns(lambda x: x.flatten(2)), X, None, ValueError, "dense.*tuple of 2 indices"),
        (Returns(lambda x: x.flatten(2)), X, 1, ValueError, "needs 2 indices"),
        (Returns(lambda x: x.flatten(1) * float("nan")), X, 0, ValueError, "not finite"),
        (Returns(lambda x: x.flatten(1) / 0), X, 0, ValueError, "not finite"),
        (Returns(lambda x: "scores"), X, 0, TypeError, "no scores in the model's output of type str"),
        (Returns(lambda x: None), X, 0, TypeError, "no scores.*NoneType"),
        (Returns(lambda x: {}), X, 0, TypeError, "no scores"),
        (Returns(lambda x: torch.ones(3, 5)), X, 0, ValueError, "does not depend on the images"),
        (Returns(lambda x: x.detach().flatten(1)), X, 0, ValueError, "does not depend on the images"),
        (Returns(lambda x: x.flatten(1).argmax(1)), X, None, ValueError, "does not depend on the images"),
        (Returns(lambda x: x.sum()), X, 0, ValueError, r"shape \(\) for 3 images"),
        (Returns(lambda x: x.flatten(1)[:2]), X, 0, ValueError, "for 3 images"),
    ],
)
def test_bad_input_is_refused_with_what_is_wrong(model: Any, x: Any, target: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        full_gradients(model, x, target)


def test_labels_made_in_inference_mode_are_targets() -> None:
    with torch.inference_mode():
        labels = torch.tensor([1, 0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x = torch.rand(2, 3, 2, 2)
    for graphed in (False, True):
        method = FullGrad(model, graphed=graphed)
        for _ in range(3):
            with torch.inference_mode():
                assert torch.equal(method.attribute(x, labels), FullGrad(model).attribute(x, [1, 0]))
