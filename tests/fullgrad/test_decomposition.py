"""full_gradients: the terms add up, depend on the input weakly, and are what the paper says they are."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fg_lightning import FullGradients, full_gradients

# torch itself says so when forward-mode differentiation is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")

CLASSES = 5


def randomised(model: nn.Module, seed: int = 1) -> nn.Module:
    """Biases and statistics as a trained net has them, and not at their zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
        if isinstance(getattr(module, "bias", None), Tensor):
            nn.init.normal_(module.bias, std=0.3, generator=generator)
    return model


# --- random networks -------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """[N, C, H, W] -> [N, C, H, W]"""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=draw.random() < 0.5)
        self.linear = nn.Linear(channels, channels)
        self.norm = draw.choice(
            [nn.BatchNorm2d(channels), nn.GroupNorm(2, channels), nn.InstanceNorm2d(channels, affine=True), nn.Identity()]
        )
        self.act = draw.choice(
            [nn.ReLU(inplace=True), nn.SiLU(inplace=True), nn.GELU(), nn.ELU(), nn.Hardswish(), nn.LeakyReLU(0.1), nn.PReLU()]
        )
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("constant", torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Residual(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += x
        return self.act(y)


class Concatenated(Block):
    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return torch.cat([self.act(self.conv(x))[:, :half], x[:, half:]], dim=1)


class SqueezeAndExcitation(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.linear(self.act(x.clone()).mean((2, 3))))[:, :, None, None]


class Shared(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.act(self.conv(x))) / 2


class Dropped(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(F.dropout(self.conv(x), 0.2, training=self.training))


class Functional(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(F.conv2d(x, self.conv.weight, self.constant.flatten(), padding=1)) - 0.7


class Constants(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = 1 - x * self.constant
        y[:, 0] = 0.5
        return y.masked_fill(self.constant > 1, 0.3) + 0.1


class Attentive(Block):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        scores = tokens @ self.linear(tokens).transpose(1, 2) / 4
        return (scores.softmax(-1) @ tokens).transpose(1, 2).reshape(x.shape)


class ChannelsLast(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]))
        return x + F.gelu(y).permute(0, 3, 1, 2)


class Pooled(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.max_pool2d(x, 2) + F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")


BLOCKS = [
    Block,
    Residual,
    Concatenated,
    SqueezeAndExcitation,
    Shared,
    Dropped,
    Functional,
    Constants,
    Attentive,
    ChannelsLast,
    Pooled,
]


class RandomNetwork(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        draw = random.Random(seed)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(*(draw.choice(BLOCKS)(4, draw) for _ in range(draw.randint(2, 6))))
        self.head = nn.Linear(4 * (1 if (pooled := draw.random() < 0.5) else 36), CLASSES)
        self.pooled = pooled
        randomised(self, seed).double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.stem(x))
        return self.head((F.adaptive_avg_pool2d(y, 1) if self.pooled else y).flatten(1))


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def total(result: FullGradients) -> Tensor:
    return result.input_term + sum(result.bias_terms.values()) + sum(result.implicit_terms.values())


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(25))
def test_terms_of_a_random_network_sum_to_its_output(seed: int, n: int) -> None:
    model = RandomNetwork(seed)
    result = full_gradients(model, images(n, seed), target=seed % CLASSES)
    assert not result.unaccounted
    rounding = {"rtol": 1e-12, "atol": 1e-12}  # float64
    torch.testing.assert_close(result.output, model.eval()(images(n, seed))[:, seed % CLASSES].detach(), **rounding)
    torch.testing.assert_close(total(result) + result.residual, result.output, **rounding)
    # float64, with room for outputs that happen to be a hundredth of their terms
    assert result.completeness_error.max() < 1e-10


@pytest.mark.parametrize("block", BLOCKS)
def test_every_kind_of_block_is_drawn(block: type[nn.Module]) -> None:
    assert any(isinstance(module, block) for seed in range(25) for module in RandomNetwork(seed).blocks)


# --- torchvision's networks ------------------------------------------------------------------------------------------------------

TORCHVISION: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: torchvision.models.resnet18(), 32),
    "vgg11_bn": (lambda: torchvision.models.vgg11_bn(init_weights=False), 32),
    "densenet121": (lambda: torchvision.models.densenet121(), 32),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(), 32),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(), 32),
    "efficientnet_b0": (lambda: torchvision.models.efficientnet_b0(), 32),
    "googlenet": (lambda: torchvision.models.googlenet(aux_logits=False, init_weights=False), 48),
    "googlenet with auxiliary heads": (lambda: torchvision.models.googlenet(aux_logits=True, init_weights=False), 48),
    "inception_v3": (lambda: torchvision.models.inception_v3(aux_logits=False, init_weights=False), 75),
    "inception_v3 with auxiliary heads": (lambda: torchvision.models.inception_v3(aux_logits=True, init_weights=False), 75),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_terms_of_torchvisions_networks_sum_to_their_output(name: str) -> None:
    build, size = TORCHVISION[name]
    torch.manual_seed(0)
    model = randomised(build())
    x = torch.randn(2, 3, size, size)
    # float32, through up to 121 layers
    assert full_gradients(model, x).completeness_error.max() < 1e-4
    # float64: what is left is rounding
    assert full_gradients(model.double(), x.double()).completeness_error.max() < 1e-10


# --- what models return ----------------------------------------------------------------------------------------------------------


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


# --- weak dependence -------------------------------------------------------------------------------------------------------------


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


# --- explicit terms --------------------------------------------------------------------------------------------------------------


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


# --- constants -------------------------------------------------------------------------------------------------------------------


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


# --- bad input -------------------------------------------------------------------------------------------------------------------


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
        (Returns(lambda x: x.flatten(2)), X, 1, ValueError, "takes 2 indices"),
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
