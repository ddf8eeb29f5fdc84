"""full_gradients: the terms depend on the input weakly, and are what the paper says they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fg_lightning import FullGradients, full_gradients
from tests.helpers.random_networks import CLASSES, images, randomised


def relu_net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES))
    return randomised(model).double().eval()


def test_full_gradients_of_a_relu_net_stay_the_same_in_a_linear_region() -> None:
    model, x = relu_net(), images(3)
    step = 1e-7 * images(3, seed=1)  # far less than any activation is away from zero
    assert torch.equal(model[:3](x) > 0, model[:3](x + step) > 0)
    here, there = full_gradients(model, x, target=1), full_gradients(model, x + step, target=1)
    assert (here.output - there.output).abs().min() > 1e-10  # it did move, by a thousand times its rounding
    # the same sums of the same numbers, up to float64 rounding
    torch.testing.assert_close(here.input_gradient, there.input_gradient, rtol=1e-12, atol=1e-14)
    for name, term in here.bias_terms.items():
        torch.testing.assert_close(term, there.bias_terms[name], rtol=1e-12, atol=1e-14)
    assert max(here.completeness_error.max(), there.completeness_error.max()) < 1e-10


def test_full_gradients_of_a_relu_net_change_across_a_boundary() -> None:
    model, x = relu_net(), images(3)
    here, there = full_gradients(model, x, target=1), full_gradients(model, images(3, seed=1), target=1)
    assert not torch.allclose(here.input_gradient, there.input_gradient)
    assert any(not torch.allclose(term, there.bias_terms[name]) for name, term in here.bias_terms.items())
    assert there.completeness_error.max() < 1e-10  # float64 rounding


def test_explicit_terms_are_gradient_times_bias_by_module_in_forward_order() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, CLASSES)  # defined first, run last
            self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features(x).flatten(1))

    torch.manual_seed(0)
    model, x = randomised(Net()).double().eval(), images(3)
    outputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name in ("features.0", "features.1", "head"):
            module.register_forward_hook(lambda module, args, y, name=name: outputs.__setitem__(name, y))
    score = model(x)[:, 3].sum()
    gradients = dict(zip(outputs, torch.autograd.grad(score, list(outputs.values())), strict=True))
    norm = model.features[1]
    biases = {
        "features.0": model.features[0].bias[:, None, None],
        "features.1": (norm.bias - norm.weight * norm.running_mean / torch.sqrt(norm.running_var + norm.eps))[:, None, None],
        "head": model.head.bias,
    }
    result = full_gradients(model, x, target=3)
    assert list(result.bias_terms) == ["features.0", "features.1", "head"]
    assert not any(term.abs().max() for term in result.implicit_terms.values())
    for name, term in result.bias_terms.items():
        expected = (gradients[name] * biases[name]).flatten(1).sum(1).detach()
        torch.testing.assert_close(term, expected, rtol=1e-12, atol=1e-14)  # float64 rounding


def test_a_shared_modules_terms_are_summed_under_its_name() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    shared = nn.Sequential(conv, nn.Tanh(), conv, nn.Flatten()).double()
    apart = nn.Sequential(conv, nn.Tanh(), nn.Conv2d(3, 3, 3, padding=1), nn.Flatten()).double()
    apart[2].load_state_dict(conv.state_dict())
    once, twice = full_gradients(shared, images(2), target=4), full_gradients(apart, images(2), target=4)
    assert list(once.bias_terms) == ["0"]
    # float64 rounding
    torch.testing.assert_close(once.bias_terms["0"], twice.bias_terms["0"] + twice.bias_terms["2"], rtol=1e-12, atol=1e-14)


class Backbone(nn.Module):
    def __init__(self, context: Callable[[], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten())
        self.head = nn.Linear(64, CLASSES)
        self.context = context
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            features = self.backbone(x)
        return self.head(features)


@pytest.mark.parametrize("frozen", [torch.no_grad, lambda: torch.set_grad_enabled(False)])
def test_a_backbone_run_without_gradients_counts_like_any_other(frozen: Callable[[], Any]) -> None:
    result = full_gradients(Backbone(frozen), images(3), target=1)
    expected = full_gradients(Backbone(torch.enable_grad), images(3), target=1)
    assert torch.equal(result.input_gradient, expected.input_gradient)
    for terms, wanted in ((result.bias_terms, expected.bias_terms), (result.implicit_terms, expected.implicit_terms)):
        assert terms.keys() == wanted.keys()
        assert all(torch.equal(terms[name], wanted[name]) for name in wanted)


def test_a_function_decorated_with_no_grad_counts_like_any_other() -> None:
    class Decorated(Backbone):
        @torch.no_grad()
        def features(self, x: Tensor) -> Tensor:
            return self.backbone(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features(x))

    result = full_gradients(Decorated(torch.no_grad), images(3), target=1)
    expected = full_gradients(Backbone(torch.enable_grad), images(3), target=1)
    assert torch.equal(result.input_gradient, expected.input_gradient)


def test_frozen_parameters_count_like_any_others() -> None:
    model = Backbone(torch.enable_grad)
    expected = full_gradients(model, images(3), target=1)
    result = full_gradients(model.requires_grad_(False), images(3), target=1)
    assert all(torch.equal(result.bias_terms[name], term) for name, term in expected.bias_terms.items())


def test_arguments_keep_their_class() -> None:
    class Conditions(dict[str, Tensor]):
        """Its entries are attributes, too."""

        name = "none"

        def __getattr__(self, name: str) -> Tensor:
            if name not in self:
                raise AttributeError(name)
            return self[name]

    class Scaled(nn.Module):
        def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
            assert conditions.name == "a scale"
            return (x * conditions.scale).flatten(1)

    x, conditions = images(3), Conditions(scale=torch.tensor(3.0, dtype=torch.float16))
    conditions.name = "a scale"
    result = full_gradients(Scaled(), x, target=0, additional_forward_args=conditions)
    assert torch.equal(result.output, 3 * x[:, 0, 0, 0])
    assert list(conditions) == ["scale"]
    assert conditions.scale.dtype is torch.float16


def test_what_is_detached_is_a_constant() -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (2 * x + 3 * x.detach()).flatten(1)

    x = images(3)
    result = full_gradients(Detached(), x, target=0)
    expected = torch.zeros_like(x)
    expected[:, 0, 0, 0] = 2
    assert torch.equal(result.input_gradient, expected)
    torch.testing.assert_close(result.bias_terms[""], 3 * x[:, 0, 0, 0], rtol=1e-14, atol=0)  # float64 rounding


# --- the result ------------------------------------------------------------------------------------------------------------------


def test_a_result_is_compared_by_identity_and_can_be_hashed() -> None:
    model, x = relu_net(), images(3)
    first, second = full_gradients(model, x), full_gradients(model, x)
    assert first == first
    assert first != second
    assert len({first, second, first}) == 2


def test_the_repr_of_a_result_is_a_summary() -> None:
    model, x = nn.Sequential(relu_net(), nn.Softmax(1)), images(8)
    terms = full_gradients(model, x, 1)
    lines = repr(terms).splitlines()
    assert lines[0].startswith(f"FullGradients of 8 images: output {terms.output[0]:.4g}, ")
    assert lines[0].endswith(" and 5 more")
    assert lines[1].strip().startswith("terms: the input, 3 explicit, 1 implicit; largest completeness error ")
    assert float(lines[1].split()[-1]) < 1e-10
    assert lines[2:] == ["  undrawn: linear in 0.5, softmax in 1"]
    every = replace(terms, missing_ops=("a", "b", "c", "d", "e"), fallback_ops=("f",), unbatched_by="g")
    assert repr(every).splitlines()[2:4] == ["  missing_ops: a, b, c and 2 more", "  fallback_ops: f"]
    assert repr(every).endswith("\n  unbatched_by: g")


def test_results_of_parts_are_put_together_as_the_result_of_the_batch() -> None:
    model, x = relu_net(), images(3)
    parts = [full_gradients(model, x[:1], [1]), full_gradients(model, x[1:], [2, 0])]
    together, whole = FullGradients.concatenate(parts), full_gradients(model, x, [1, 2, 0])
    assert whole.target is not None
    assert together.target is not None
    assert torch.equal(together.target, whole.target)
    torch.testing.assert_close(together.output, whole.output)
    torch.testing.assert_close(together.input_gradient, whole.input_gradient)
    assert together.bias_terms.keys() == whole.bias_terms.keys()
    for name, term in whole.bias_terms.items():
        torch.testing.assert_close(together.bias_terms[name], term)
    assert (together.undrawn, together.missing_ops, together.unbatched_by) == (whole.undrawn, (), None)
    alone = replace(whole, unbatched_by="sort in 1")
    assert (
        FullGradients.average([alone, alone]).unbatched_by == FullGradients.concatenate([whole, alone]).unbatched_by == "sort in 1"
    )
