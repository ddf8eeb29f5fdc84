"""Samples stay apart whatever a network does to its dimensions, and those that mix are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fg_lightning import FullGrad, full_gradients
from fg_lightning.fullgrad.linearization import linearize
from fg_lightning.fullgrad.operations import _ROWS, OPERATIONS
from tests.helpers.moving_networks import SEQUENCES, C, H, N, Network, W, const, images, network

# torch itself says so when forward-mode differentiation is first used.
pytestmark = [
    pytest.mark.filterwarnings("ignore:FullGrad draws"),  # of networks made of what scrambles places
]


@pytest.mark.parametrize("name", SEQUENCES)
def test_terms_of_a_batch_are_those_of_its_images_alone(name: str) -> None:
    model, batch = network(name), images()
    together = full_gradients(model, batch, target=1)
    assert not together.missing_ops
    for i in range(N):
        alone = full_gradients(model, batch[i : i + 1], target=1)
        assert together.bias_terms.keys() == alone.bias_terms.keys()
        assert together.implicit_terms.keys() == alone.implicit_terms.keys()
        # float64 sums of some hundred numbers, in another order for a batch
        close = {"rtol": 1e-9, "atol": 1e-10}
        torch.testing.assert_close(together.input_gradient[i], alone.input_gradient[0], **close)
        for terms, expected in (
            (together.bias_terms, alone.bias_terms),
            (together.implicit_terms, alone.implicit_terms),
        ):
            for key, value in expected.items():
                torch.testing.assert_close(terms[key][i], value[0], **close)
    # float64 rounding, whatever the terms cancel
    assert together.residual.abs().max() < 1e-10


@pytest.mark.parametrize("name", SEQUENCES)
def test_maps_of_a_batch_are_those_of_its_images_alone(name: str) -> None:
    batch = images(2)
    method = FullGrad(network(name))
    together = method.attribute(batch, target=1)
    alone = torch.cat([method.attribute(batch[i : i + 1], target=1) for i in range(2)])
    # float64; the rescaling divides by ranges
    torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-7)


# What the table of movements does not know: each image runs alone, which is right and slower.
RUN_ALONE = {"loop over samples"}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_batch_runs_once(name: str) -> None:
    model, calls = network(name), []
    model.before.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    full_gradients(model, images(), target=1)
    assert calls in ([[N, *[1] * N]] if name in RUN_ALONE else [[N], [N, 2, 1]])  # two parts check what constants do to samples


# --- side outputs ----------------------------------------------------------------------------------------------------------------


class Beside(Network):
    """Computes a statistic of the batch beside its output."""

    def __init__(self, beside: Callable[[nn.Module, Tensor, Tensor], Any]) -> None:
        super().__init__(lambda x: x)
        self.beside = beside

    def forward(self, x: Tensor) -> Any:
        features = F.silu(self.before(x)).mean((2, 3))
        return self.beside(self, features, features @ const(C, 3) + 0.5)


def _remembered(model: nn.Module, features: Tensor, logits: Tensor) -> Tensor:
    model.last = (features @ features.T).softmax(1)  # type: ignore[assignment]
    return logits


BESIDE: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "similarities": lambda model, features, logits: {"logits": logits, "similarities": features @ features.T},
    "a loss": lambda model, features, logits: {"loss": (features @ features.T).logsumexp(1).mean(), "logits": logits},
    "the batch's correlations": lambda model, features, logits: (logits, torch.corrcoef(features.T)),
    "kept in an attribute": _remembered,
    "its own copy overwritten": lambda model, features, logits: (logits, features.clone().copy_(features.flip(0))),
    "without a rule": lambda model, features, logits: (logits, features.renorm(2, 1, 1.0)),
    "no gradient": lambda model, features, logits: logits - features.detach().mean() + features.mean().detach(),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_not_explained_may_mix_samples(name: str) -> None:
    model = Beside(BESIDE[name])
    together = full_gradients(model, images(), 1)
    assert together.unbatched_by is None
    assert not together.missing_ops
    assert together.completeness_error.max() < 1e-10  # float64 rounding
    expected = full_gradients(Beside(lambda model, features, logits: logits), images(), 1)
    torch.testing.assert_close(together.input_gradient, expected.input_gradient, rtol=1e-12, atol=1e-14)  # float64 rounding


def test_what_is_mixed_on_the_way_is_named_by_the_first_operation() -> None:
    model = Beside(lambda model, features, logits: (logits, logits.mean(0) - logits.flip(0)))
    assert full_gradients(model, images(), 1).unbatched_by is None
    with pytest.raises(ValueError, match=r"mixes the samples of a batch, first in (mean|flip) in"):
        full_gradients(model, images(), lambda output: output[1][:, 0])


def test_what_was_overwritten_by_other_samples_counts_behind_every_view_of_it() -> None:
    def overwritten(x: Tensor) -> Tensor:
        y, source = x.clone(), x.flip(0).exp()
        beside, view = y[:, :2], y[:, 2:]
        view.copy_(source[:, 2:])
        return beside + y[:, 2:]

    with pytest.raises(ValueError, match="mixes the samples of a batch, first in flip in"):
        full_gradients(Network(overwritten), images(), 1)


def test_samples_in_another_order_are_refused() -> None:
    class Regrouped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp().unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1).flatten(1)

    with pytest.raises(ValueError, match="changes the order of the samples"):
        full_gradients(Regrouped(), images(6), 1)


# --- operations without a rule ---------------------------------------------------------------------------------------------------


class Blurred(torch.autograd.Function):
    """A function of the user: every entry and its neighbour to the right, in a tensor of the same shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x + x.roll(1, -1) / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient + gradient.roll(-1, -1) / 2


class Swapped(torch.autograd.Function):
    """A function of the user: two samples change places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.cat([x[1:2], x[:1], x[2:]])

    backward = staticmethod(lambda ctx, gradient: Swapped.forward(ctx, gradient))


class Doubled(torch.autograd.Function):
    """A function of the user: entry by entry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x + 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


UNKNOWN: dict[str, tuple[Callable[[Tensor], Tensor], bool, bool]] = {
    "entry by entry": (Doubled.apply, True, True),
    "sample by sample": (Blurred.apply, True, False),
    "sample by sample, another shape": (lambda x: Blurred.apply(x.flatten(1)[:, :10]), True, False),
    "two operands": (lambda x: torch.hypot(x, x.exp()), True, True),
    "of torch, sample by sample": (lambda x: x.flatten(1).renorm(2, 0, 1.0), True, False),
    "across samples": (Swapped.apply, False, False),
    "across samples, of torch": (lambda x: x.flatten(1).renorm(2, 1, 1.0), False, False),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_operation_without_a_rule_is_watched(name: str) -> None:
    function, runs_together, is_placed = UNKNOWN[name]
    model = Network(function)
    if not runs_together:
        with pytest.raises(ValueError, match="mixes the samples"):
            full_gradients(model, images(5), 1)
        return
    together, alone = (full_gradients(model, batch, 1) for batch in (images(5), images(5)[3:4]))
    assert together.unbatched_by is None
    assert together.completeness_error.max() < 1e-10  # float64 rounding
    for terms, expected in ((together.bias_terms, alone.bias_terms), (together.implicit_terms, alone.implicit_terms)):
        torch.testing.assert_close(terms[""][3], expected[""][0], rtol=1e-9, atol=1e-10)
    for terms in (together, alone):
        assert ("sigmoid in the model itself" not in terms.undrawn) == is_placed


TAKES_SAMPLES_APART = {
    "addbmm": "sums over the batch",
    "dot": "of two vectors, one number",
    "trace": "of one matrix, one number",
    "take": "of all entries in a row",
    "diag": "of one matrix",
    "roi_align": "boxes, which may be of any image",
    "roi_pool": "boxes, which may be of any image",
    "ps_roi_align": "boxes, which may be of any image",
}


LINEARIZED = set(
    """
    acosh addcdiv addcmul alpha_dropout atan2 bilinear binary_cross_entropy binary_cross_entropy_with_logits cdist cdist_forward
    cholesky cholesky_solve copysign cosine_similarity cumprod det erfinv euclidean_dist feature_alpha_dropout float_power glu gru
    gru_cell heaviside huber_loss hypot i0 i0e i1 i1e inverse l1_loss ldexp lerp linalg_cholesky linalg_cholesky_ex linalg_det
    linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh linalg_inv linalg_inv_ex linalg_lstsq linalg_lu linalg_matrix_exp
    linalg_matrix_power linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_solve_ex linalg_solve_triangular linalg_svd
    linalg_svdvals logaddexp logaddexp2 logcumsumexp logdet logsumexp lstm lstm_cell matrix_exp matrix_power mse_loss nanmean
    nanmedian nanquantile nextafter pairwise_distance pinverse polar prod qr quantile rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell
    signbit slogdet smooth_l1_loss softmin special_erfcx special_log_ndtr special_ndtr std_mean svd var_mean
    """.split()
)


def test_the_table_has_each_operation_once_and_these_gaps() -> None:
    names = [name for *_, names in _ROWS for name in names.split()]
    assert len(names) == len(set(names))
    assert {name for name, rules in OPERATIONS.items() if rules.layout is None} == set(TAKES_SAMPLES_APART)
    assert {name for name, rules in OPERATIONS.items() if rules.bias is linearize} == LINEARIZED


MIXING: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "mean over the batch": (lambda x: x - x.mean(0), "mean"),
    "mean over everything": (lambda x: x - x.mean(), "mean"),
    "softmax over the batch": (lambda x: x.softmax(0), "softmax"),
    "batch statistics": (lambda x: F.batch_norm(x, None, None, training=True), "batch_norm"),
    "sum over the batch": (lambda x: x * x.sum((0, 2, 3), keepdim=True), "sum"),
    "roll over the batch": (lambda x: x + x.roll(1, 0), "roll"),
    "flip of the batch": (lambda x: x.flip(0), "flip"),
    "flip of rows and batch": (lambda x: x.flip(2, 0), "flip"),
    "cumsum over the batch": (lambda x: x.cumsum(0), "cumsum"),
    "Gram matrix over the batch": (lambda x: x.flatten(1) @ x.flatten(1).T, "matmul"),
    "einsum over the batch": (lambda x: torch.einsum("nchw,mchw->nm", x, x), "einsum"),
    "order of the batch": (lambda x: x[torch.arange(len(x) - 1, -1, -1)], "getitem"),
    "first of the batch": (lambda x: x + x[0], "getitem"),
    "linear over the batch": (lambda x: F.linear(x.movedim(0, -1), const(N, N)).movedim(-1, 0), "linear"),
    "attention over the batch": (
        lambda x: F.scaled_dot_product_attention(*(x.flatten(1)[None],) * 3)[0],
        "scaled_dot_product_attention",
    ),
    "the batch as channels": (lambda x: F.conv2d(x.transpose(0, 1), const(N, N, 1, 1)).transpose(0, 1), "conv2d"),
    "reshape across samples": (lambda x: x.transpose(0, 1).reshape(x.shape), ""),
    "assignment across samples": (lambda x: _assigned_across(x), "getitem"),
    "assignment in another order": (lambda x: _assigned_in_another_order(x), "setitem"),
    "layer norm over the batch": (lambda x: F.layer_norm(x.movedim(0, -1), (N,)).movedim(-1, 0), "layer_norm"),
    "pad of the batch": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1], "pad"),
    "pairs of samples": (lambda x: F.cosine_similarity(x.flatten(1)[None], x.flatten(1)[:, None], dim=-1), "cosine_similarity"),
    "scatter over the batch": (lambda x: x.scatter(0, x.detach().argsort(0), x.exp()), "scatter"),
    "index_add over the batch": (lambda x: x.index_add(0, torch.tensor([1]), const(1, C, H, W)), "index_add"),
    "each image twice": (lambda x: x.repeat_interleave(2, 0)[:N], "getitem"),
    "unfold over the batch": (lambda x: x.unfold(0, N, 1)[0].movedim(-1, 0).flip(0), "unfold"),
    "sorted over the batch": (lambda x: x.sort(0).values, "sort"),
}


def _assigned_across(x: Tensor) -> Tensor:
    y = x.clone()
    y[0] = x[1]
    return y


def _assigned_in_another_order(x: Tensor) -> Tensor:
    y = x.clone()
    y[torch.arange(len(x) - 1, -1, -1)] = x.exp()
    return y


REFUSED = r"(mixes the samples of a batch, first in|samples of a batch cannot be told apart behind) {} in"


@pytest.mark.parametrize("name", MIXING)
def test_an_operation_that_mixes_samples_is_refused_by_name(name: str) -> None:
    function, operation = MIXING[name]
    model = Network(function)
    model.forward = lambda x: F.silu(model.function(model.before(x) * x)).flatten(1)[:, :3] ** 2  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=REFUSED.format(f"[a-z0-9_]*{operation}[a-z0-9_]*")):
        full_gradients(model, images(), target=0)
    with pytest.raises(ValueError, match=REFUSED.format(f"[a-z0-9_]*{operation}[a-z0-9_]*")):
        FullGrad(model).attribute(images(), target=0)


def test_batch_norm_without_running_statistics_is_refused_and_named_with_its_module() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(C, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()).double()
    with pytest.raises(ValueError, match="batch_norm in 1"):
        full_gradients(model, images(), target=0)
    alone = full_gradients(model, images(1), target=0)
    assert alone.residual.abs().max() < 1e-10  # float64 rounding


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor])
def test_each_sample_keeps_its_own_target_where_samples_run_alone(kind: Callable[[Any], Any]) -> None:
    model = network("loop over samples")  # whose batch is told apart by running each image alone
    targets = [2, 0, 1] if kind is not tuple else (1,)
    together = full_gradients(model, images(), target=kind(targets))
    for i, target in enumerate([2, 0, 1] if kind is not tuple else [1, 1, 1]):
        alone = full_gradients(model, images()[i : i + 1], target=target)
        # float64 rounding
        torch.testing.assert_close(together.output[i], alone.output[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(together.input_term[i], alone.input_term[0], rtol=1e-9, atol=1e-10)


def test_additional_arguments_follow_their_samples_where_samples_run_alone() -> None:
    class Conditioned(nn.Module):
        def forward(self, x: Tensor, condition: Tensor, scale: float) -> Tensor:
            alone = torch.stack([sample.exp() for sample in x])  # whose batch is told apart by running each image alone
            return (alone.mean((2, 3)) * condition).sum(1) * scale

    condition = torch.rand(N, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5
    together = full_gradients(Conditioned(), images(), additional_forward_args=(condition, 2.0))
    for i in range(N):
        alone = full_gradients(Conditioned(), images()[i : i + 1], additional_forward_args=(condition[i : i + 1], 2.0))
        # float64 rounding
        torch.testing.assert_close(together.input_term[i], alone.input_term[0], rtol=1e-9, atol=1e-10)
