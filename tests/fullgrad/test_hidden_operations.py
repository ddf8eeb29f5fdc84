"""What no function mode sees, or what hides operations inside: all of it counts, exactly."""

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import nn

from fg_lightning import FullGrad, full_gradients
from tests.helpers.hidden_operations import HIDING, OnlyOnce, Swish, around, swish

# Rounding of a few hundred operations in float64.
EXACT = 1e-11


@pytest.mark.filterwarnings("error:.torch.jit.script:FutureWarning")  # of torch's forward-mode formulas: the package silences it
@pytest.mark.parametrize("name", HIDING)
def test_terms_are_complete_and_per_sample(name):
    model, images = around(HIDING[name]())
    terms = full_gradients(model, images, target=1)
    with torch.compiler.set_stance("force_eager"):  # as the compiled function is written
        assert torch.allclose(terms.output, model(images)[:, 1], rtol=EXACT)
    assert not terms.missing_ops
    assert terms.completeness_error.max() < EXACT
    for i in range(len(images)):
        alone = full_gradients(model, images[i : i + 1], target=1)
        for kind in ("bias_terms", "implicit_terms"):
            for module, value in getattr(alone, kind).items():
                assert getattr(terms, kind)[module][i] == pytest.approx(value.item(), rel=1e-9, abs=EXACT)


def test_a_custom_function_is_named_after_its_module_and_its_class():
    class Activation(nn.Module):
        def forward(self, x):
            return swish(x)

    model, images = around(Activation())
    terms = full_gradients(model, images)
    assert list(terms.implicit_terms) == ["inner"]
    assert terms.fallback_ops == ("Swish in inner",)


def test_what_can_be_differentiated_once_counts_and_is_not_drawn():
    model, images = around(OnlyOnce.apply)

    def layout(term, values):
        assert term.operation != "OnlyOnce"  # whose places are not known

    maps, terms = FullGrad(model, layout=layout).attribute_with_terms(images, 1)
    assert terms.fallback_ops == ("OnlyOnce in the model itself",)
    assert "OnlyOnce in the model itself" in terms.undrawn
    assert maps.isfinite().all()


def test_what_cannot_be_run_again_is_named_and_the_error_shows_it():
    runs = []

    class FirstTime(Swish):
        @staticmethod
        def forward(ctx, x):
            runs.append(x)
            if len(runs) > 1:
                raise RuntimeError("once only")
            return Swish.forward(ctx, x)

    model, images = around(FirstTime.apply)
    runs.clear()
    terms = full_gradients(model, images[:1])
    assert terms.missing_ops == ("FirstTime in the model itself",)
    assert terms.completeness_error.min() > 1e-3


def test_gradients_that_a_forward_asks_for_itself_are_not_taken_for_the_outputs():
    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = F.silu(self.conv(x))
            (gradient,) = torch.autograd.grad(y.square().sum(), y, create_graph=True)
            self.output = y + gradient / 2  # y once more
            return self.output

    model, images = around(Energy())
    terms = full_gradients(model, images, 1)
    outputs = {}
    model.inner.conv.register_forward_hook(lambda module, args, y: outputs.__setitem__("y", y))
    (gradient,) = torch.autograd.grad(model(images)[:, 1].sum(), outputs["y"])
    expected = (gradient.sum((2, 3)) * model.inner.conv.bias).sum(1).detach()
    assert torch.allclose(terms.bias_terms["inner.conv"], expected, rtol=1e-10)
    assert "which torch did not show" in terms.missing_ops[0]


def test_what_a_transform_of_torch_hides_is_named():
    model, images = around(lambda x: torch.func.vjp(torch.sin, x)[1](x)[0])
    terms = full_gradients(model, images)
    assert "which torch did not show" in terms.missing_ops[0]
    assert terms.completeness_error.min() > 1e-3


def test_what_torch_does_not_show_is_named_and_the_error_shows_it():
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3), nn.SiLU())).double()
    model, images = around(scripted)
    terms = full_gradients(model, images)
    assert "which torch did not show" in terms.missing_ops[0]
    assert terms.completeness_error.min() > 1e-3


def test_autograd_functions_are_left_as_they_were():
    attribute = vars(torch.autograd.function.FunctionMeta).get("__getattribute__")
    model, images = around(swish)
    full_gradients(model, images)
    assert vars(torch.autograd.function.FunctionMeta).get("__getattribute__") is attribute


def test_tensors_that_a_model_keeps_carry_no_trace():
    kept = []
    model, images = around(lambda x: (kept.append(swish(x) + x[:, :1]), kept[-1])[1])
    full_gradients(model, images)
    assert kept
    assert not any(map(vars, kept))


def test_samples_that_are_routed_differently_keep_all_their_terms():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.experts = nn.Linear(12, 2), nn.ModuleList([nn.Linear(12, 3), nn.Linear(12, 3)])

        def forward(self, images):
            y = images.flatten(1)
            chosen = self.gate(y).argmax(1)
            output = y.new_zeros(len(y), 3)
            for number, expert in enumerate(self.experts):
                rows = (chosen == number).nonzero().squeeze(1)
                if len(rows):
                    output[rows] = expert(y[rows])
            return output

    torch.manual_seed(0)
    model, images = Mixture().double(), torch.randn(6, 3, 2, 2, dtype=torch.float64)
    chosen = model.gate(images.flatten(1)).argmax(1)
    assert len(set(chosen.tolist())) == 2
    terms = full_gradients(model, images, target=0)
    assert terms.completeness_error.max() < EXACT
    for number in (0, 1):
        assert torch.equal(terms.bias_terms[f"experts.{number}"] != 0, chosen == number)


def test_a_wrapped_model_is_unwrapped_and_a_scripted_or_lazy_one_refused():
    model, images = around(swish)
    assert torch.equal(full_gradients(nn.DataParallel(model), images, 1).input_term, full_gradients(model, images, 1).input_term)
    for wrapped in (torch.compile(model), Fabric(accelerator="cpu", devices=1).setup(model), nn.DataParallel(torch.compile(model))):
        terms = full_gradients(wrapped, images, 1)
        assert list(terms.bias_terms) == ["conv", "head"]
        assert torch.equal(terms.input_term, full_gradients(model, images, 1).input_term)
    with pytest.raises(ValueError, match="lazy modules"):
        full_gradients(nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), images)


def test_images_are_taken_in_the_precision_of_the_parameters():
    model, images = around(swish)
    terms = full_gradients(model, images.float(), 1)
    assert terms.output.dtype == torch.float64
    assert full_gradients(model.bfloat16(), images, 1).output.dtype == torch.float32
