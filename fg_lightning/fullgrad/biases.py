"""The bias of every operation: one table of small rules, one general fallback.

The bias of an operation y = h(z) is the constant part of its linearisation at z, b = h(z) - J_h(z) z, taken over those of its
operands that depend on the input (Srinivas & Fleuret 2019, eq. 3 and its extension to implicit biases). A rule is a function of
one `Call` that returns the biases of its outputs. Adding one is a line in `RULES`; an operation that is not there goes through
`linearise`, which is right for any differentiable operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fg_lightning.fullgrad.call import Call, tensors_in
from fg_lightning.fullgrad.linearisation import Bias, Pointwise, Rule, linearise, reads_overwritten

# --- linear and homogeneous operations: Euler's theorem, J z = d y, so b = (1 - d) y ---------------------------------------------


def no_bias(call: Call) -> list[Bias]:
    """Linear, or homogeneous of degree 1: J z = y."""
    return []


def homogeneous(degree: Callable[[Call], float | Tensor | None]) -> Rule:
    """Homogeneous of some degree d in its dependent operands together, b = (1 - d) y; None where it is not homogeneous."""

    def rule(call: Call) -> list[Bias]:
        d = degree(call)
        if d is None:
            return linearise(call)
        if isinstance(d, (int, float)) and d == 1:
            return []
        return _multiples_of_the_outputs(call, 1 - d)

    return reads_overwritten(lambda call: degree(call) is None)(rule)


def _of_degree(d: float) -> Rule:
    """Homogeneous of a fixed degree, so that only the output is read."""

    def rule(call: Call) -> list[Bias]:
        return _multiples_of_the_outputs(call, 1 - d)

    return rule


def _multiples_of_the_outputs(call: Call, multiple: float | Tensor) -> list[Bias]:
    if isinstance(multiple, Tensor):
        values = [Pointwise(torch.mul, (call.result(i), multiple)) for i in range(len(call.outputs))]
    else:
        values = [Pointwise(partial(torch.mul, other=multiple), (call.result(i),)) for i in range(len(call.outputs))]
    return [Bias("implicit", value, i) for i, value in enumerate(values)]


@reads_overwritten(lambda call: all(call.depends(factor) for factor in call.args[:2]))
def _multiply(call: Call) -> list[Bias]:
    """x * y with both dependent has b = -x y; made again from the factors, which the backward pass keeps anyway."""
    a, b = call.args[:2]
    if not (call.depends(a) and call.depends(b)):
        return []
    a, b = call.value(a), call.value(b)
    return [Bias("implicit", Pointwise(_minus_product, (a, b)))]


def _minus_product(a: Tensor, b: Tensor) -> Tensor:
    return torch.mul(a, b).neg_()


def _quotient_degree(call: Call) -> float | None:
    if call.argument(2, "rounding_mode") is not None:
        return None
    return float(call.depends(call.args[0])) - float(call.depends(call.argument(1, "other")))


def _power_degree(call: Call) -> float | Tensor | None:
    base, exponent = call.args[0], call.argument(1, "exponent")
    return None if call.depends(exponent) or not call.depends(base) else exponent


def _extremum_degree(call: Call) -> float | None:
    """Maximum and minimum are homogeneous unless one of two operands is a constant."""
    other = call.argument(1, "other")
    return None if isinstance(other, Tensor) and not (call.depends(call.args[0]) and call.depends(other)) else 1


def _norm_degree(call: Call) -> float:
    """The norm of order 0 counts, every other one measures."""
    return 0 if call.argument(1, "ord", 2) == 0 else 1


def _prelu_degree(call: Call) -> float | None:
    return None if call.depends(call.argument(1, "weight")) else 1


def _count_dependent(call: Call) -> float:
    """The degree of a product of several operands, such as einsum's."""
    return float(len(call.dependent))


def _bilinear_plus(*, addend: tuple[int, str] | None, factors: tuple[tuple[int, str], tuple[int, str]]) -> Rule:
    """factor_1 * factor_2 + addend, with `*` any bilinear product: convolution, linear, matrix products."""

    def rule(call: Call) -> list[Bias]:
        degree = sum(call.depends(call.argument(*factor)) for factor in factors)
        added = None if addend is None else call.argument(*addend)
        biases = []
        if added is not None:
            shift = _as_added(call, added)
            if not call.depends(added):
                biases.append(Bias("explicit", shift))
        if degree != 1:
            y = call.result()
            product = y if added is None else y - call.value(shift)
            biases.append(Bias("implicit" if degree else "explicit", lambda: (1 - degree) * product))
        return biases

    return rule


def _as_added(call: Call, addend: Tensor) -> Tensor:
    """The addend as the operation adds it: along the channels for a convolution, times beta for a matrix product."""
    if call.name.startswith("conv"):
        return addend.reshape(-1, *(1,) * (call.argument(1, "weight").ndim - 2))  # the image may have no batch dimension
    beta = call.kwargs.get("beta", 1)
    return addend if beta == 1 else beta * addend


def _per_channel(vector: Tensor, output: Tensor) -> Tensor:
    """[C] as [C, 1, ...], to be added to [N, C, *S]."""
    return vector.reshape(-1, *(1,) * (output.ndim - 2))


# --- affine operations: the bias is the operation at zero ------------------------------------------------------------------------


def _finite(constant: Tensor) -> Tensor:
    """An infinite constant masks something out: its gradient is exactly zero, and so is its term."""
    return constant.nan_to_num(nan=math.nan, posinf=0.0, neginf=0.0)


def _overwrites_a_constant(call: Call) -> bool:
    return not call.depends(call.args[0])


def _combines(call: Call) -> bool:
    """scatter(..., reduce="multiply") is not affine."""
    return call.kwargs.get("reduce") is not None


def _sum_of(first_sign: int, second_sign: int, *, alpha_on: int) -> Rule:
    """A constant added to, or subtracted from, what depends on the input; `alpha` scales the operand at `alpha_on`."""

    def rule(call: Call) -> list[Bias]:
        operands = call.args[0], call.argument(1, "other")
        constants = [i for i in (0, 1) if not call.depends(operands[i])]
        if not constants:
            return []
        (i,) = constants
        scale = (first_sign, second_sign)[i] * (call.kwargs.get("alpha", 1) if i == alpha_on else 1)
        y = call.outputs[0]
        operand = operands[i]
        constant = call.value(operand).to(y.dtype) if isinstance(operand, Tensor) else torch.tensor(operand, dtype=y.dtype)
        return [Bias("explicit", _finite(scale * constant.to(y.device)))]

    return reads_overwritten(_overwrites_a_constant)(rule)


@reads_overwritten(lambda call: _overwrites_a_constant(call) or _combines(call))
def affine(call: Call) -> list[Bias]:
    """Affine in its dependent operands together: b is the operation at zero."""
    if _combines(call):
        return linearise(call)
    constants = [t for t in tensors_in((call.args, call.kwargs)) if not call.depends(t)]
    if not constants and call.name in ("cat", "stack", "hstack", "vstack"):
        return []
    return [Bias("explicit", _finite(call.at_zero()))]


def _padding(call: Call) -> list[Bias]:
    """Padding is linear unless it fills in a constant other than zero."""
    if call.name == "pad" and call.argument(2, "mode", "constant") != "constant":
        return []
    fill = call.argument(2, "value", 0) if call.name == "constant_pad_nd" else call.argument(3, "value", 0)
    return affine(call) if fill else []


def _normalised_by_running_statistics(call: Call, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Batch norm in evaluation of a single zero: beta - gamma mu / sqrt(var + eps), per channel."""
    zero = torch.zeros_like(mean).unsqueeze(0)
    at_zero = torch.batch_norm(zero, weight, bias, mean, var, False, 0.0, eps, False)
    return _per_channel(at_zero, call.outputs[0]).to(call.outputs[0].dtype)


# --- normalisation by the input's own statistics ---------------------------------------------------------------------------------


def _normalised(call: Call, statistics_of: Callable[[Tensor], Tensor], bias: Tensor | None, eps: float) -> list[Bias]:
    """gamma (z - mean) / sqrt(var + eps) + beta: of degree 0 but for beta and eps, so J z = eps / (var + eps) (y - beta).

    `statistics_of` gives the variance (or mean square) of the values in its own groups, broadcastable to the output.
    """
    z, y = call.value(call.args[0]), call.result()
    shift = 0.0 if bias is None else bias

    def implicit() -> Tensor:
        variance = statistics_of(z)
        return (y - shift).mul_(variance / (variance + eps))

    biases = [Bias("implicit", implicit)]
    return biases if bias is None else [Bias("explicit", bias), *biases]


def _constant_affine(rule: Rule, *operands: tuple[int, str]) -> Rule:
    """The rule where the named operands (weights, statistics) are constants, the general fallback elsewhere."""

    def guarded(call: Call) -> list[Bias]:
        return linearise(call) if any(call.depends(call.argument(*operand)) for operand in operands) else rule(call)

    return guarded


def _batch_norm(call: Call) -> list[Bias]:
    weight, bias, mean, var = (call.argument(*operand) for operand in _NORM_OPERANDS)
    own_statistics = call.argument(5, "training" if call.name == "batch_norm" else "use_input_stats")
    eps = call.argument(7, "eps")
    if not own_statistics:
        return [Bias("explicit", _normalised_by_running_statistics(call, weight, bias, mean, var, eps))]
    shape = call.outputs[0]
    bias = None if bias is None else _per_channel(bias, shape)
    axes = [0, *range(2, shape.ndim)] if call.name == "batch_norm" else list(range(2, shape.ndim))
    return _normalised(call, lambda z: z.var(axes, correction=0, keepdim=True), bias, eps)


def _layer_norm(call: Call) -> list[Bias]:
    """From the operand alone, which the backward pass keeps anyway: var / (var + eps) = 1 - eps rstd^2."""
    shape, weight, bias = (call.argument(i, name) for i, name in ((1, "normalized_shape"), (2, "weight"), (3, "bias")))
    eps = call.argument(4, "eps", 1e-5)
    z = call.value(call.args[0])

    def implicit() -> Tensor:
        normed, _, rstd = torch.native_layer_norm(z, shape, weight, None, eps)
        return normed.mul_(1 - eps * rstd * rstd)

    biases = [Bias("implicit", implicit)]
    return biases if bias is None else [Bias("explicit", bias), *biases]


def _rms_norm(call: Call) -> list[Bias]:
    axes = tuple(range(-len(call.argument(1, "normalized_shape")), 0))
    eps = call.argument(3, "eps")
    eps = torch.finfo(call.outputs[0].dtype).eps if eps is None else eps
    return _normalised(call, lambda z: z.square().mean(axes, keepdim=True), None, eps)


def _group_norm(call: Call) -> list[Bias]:
    groups, bias = call.argument(1, "num_groups"), call.argument(3, "bias")
    eps = call.argument(4, "eps", 1e-5)

    def variance(z: Tensor) -> Tensor:
        per_group = z.reshape(z.shape[0], groups, -1).var(-1, correction=0, keepdim=True)
        per_channel = per_group.expand(-1, -1, z.shape[1] // groups).reshape(z.shape[0], z.shape[1])
        return per_channel.reshape(*z.shape[:2], *(1,) * (z.ndim - 2))

    return _normalised(call, variance, None if bias is None else _per_channel(bias, call.outputs[0]), eps)


# --- non-linearities: b = y - h'(z) z --------------------------------------------------------------------------------------------


def pointwise(bias: Callable[[Tensor], Tensor]) -> Rule:
    """A non-linearity given by its implicit bias as a function of its operand."""

    def rule(call: Call) -> list[Bias]:
        return [Bias("implicit", Pointwise(bias, (call.value(call.args[0]),)))]

    return reads_overwritten()(rule)


def pointwise_with_output(bias: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    """A non-linearity given by its implicit bias as a function of its operand and its output."""

    def rule(call: Call) -> list[Bias]:
        return [Bias("implicit", Pointwise(bias, (call.value(call.args[0]), call.result())))]

    return reads_overwritten()(rule)


@reads_overwritten()
def elementwise(call: Call) -> list[Bias]:
    """Any elementwise function of one dependent operand: one elementwise derivative, b = y - h'(z) z."""
    if len(call.dependent) != 1 or not call.depends(call.args[0]) or call.args[0].is_complex():
        return linearise(call)
    (z, *rest), kwargs = call.at_values()
    repeat, in_place = call.repeat, call.in_place

    def implicit(z: Tensor) -> Tensor:
        with torch.enable_grad():
            operand = (z.clone() if in_place else z.detach()).requires_grad_()
            y = repeat((operand.clone() if in_place else operand, *rest), kwargs)
            (slope_times_z,) = torch.autograd.grad(y, operand, z.detach())
        return y.detach() - slope_times_z

    alone = not tensors_in((rest, kwargs))
    return [Bias("implicit", Pointwise(implicit, (z,)) if alone else partial(implicit, z))]


def _saturation(y: Tensor, low: float, high: float) -> Tensor:
    """The implicit bias of clamping to [low, high]: the output where it is a bound, nothing between."""
    between = torch.ops.aten.hardtanh_backward  # (g, z, low, high): g where z lies between, 0 elsewhere
    if low == 0:
        just_below = high * (1 - torch.finfo(y.dtype).eps / 2)  # the next number of y's precision
        return between(torch.tensor(float(high), dtype=y.dtype), y, just_below, math.inf)
    return y - between(y, y, low, high)


def _relu6(call: Call) -> list[Bias]:
    return [Bias("implicit", Pointwise(partial(_saturation, low=0.0, high=6.0), (call.result(),)))]


def _hardtanh(call: Call) -> list[Bias]:
    low, high = call.argument(1, "min_val", -1.0), call.argument(2, "max_val", 1.0)
    return [Bias("implicit", Pointwise(partial(_saturation, low=low, high=high), (call.result(),)))]


def _sigmoid_bias(z: Tensor, y: Tensor) -> Tensor:
    return y - y * (1 - y) * z


def _tanh_bias(z: Tensor, y: Tensor) -> Tensor:
    return y - (1 - y * y) * z


def _silu_bias(z: Tensor, y: Tensor) -> Tensor:
    """With the gate s = sigmoid(z), y = s z and b = -s (1 - s) z^2."""
    return (y - z).mul_(y)


def _gelu(call: Call) -> list[Bias]:
    if call.argument(1, "approximate", "none") != "none":
        return elementwise(call)
    return [Bias("implicit", Pointwise(_gelu_bias, (call.value(call.args[0]),)))]


def _gelu_bias(z: Tensor) -> Tensor:
    """-z^2 times the density of the normal distribution."""
    square = z * z
    return torch.mul(square, -0.5).exp_().mul_(square).mul_(-1 / math.sqrt(2 * math.pi))


def _hardswish_bias(z: Tensor) -> Tensor:
    return torch.where(z.abs() < 3, z * z / -6, torch.zeros((), dtype=z.dtype, device=z.device))


def _softmax(call: Call) -> list[Bias]:
    """J z = y (z - <y, z>), so b = y (1 - z + <y, z>); what a mask of -inf took out has y = 0 and no bias."""
    z, y, dim = call.value(call.args[0]), call.result(), call.argument(1, "dim")

    def implicit() -> Tensor:
        yz = torch.where(y > 0, y * z, 0.0)
        return y - yz + y * yz.sum(dim, keepdim=True)

    return [Bias("implicit", implicit)]


def _log_softmax(call: Call) -> list[Bias]:
    """J z = z - <p, z>, so b = y - z + <p, z> with p = exp(y)."""
    z, y, dim = call.value(call.args[0]), call.result(), call.argument(1, "dim")

    def implicit() -> Tensor:
        masked = z == -math.inf
        finite = z.masked_fill(masked, 0)
        return (y.masked_fill(masked, 0) - finite) + (y.exp() * finite).sum(dim, keepdim=True)

    return [Bias("implicit", implicit)]


def _attention(call: Call) -> list[Bias]:
    """y = A v with A = softmax(S + mask), S = scale q k^T, as one operation.

    S is of degree d, the number of q and k that depend on the input, so J z = [v depends] y + d ((A * S) v - r y),
    with r the row sums of A * S.
    """
    q, k, v = (call.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    mask, causal = call.argument(3, "attn_mask"), call.argument(5, "is_causal", False)
    if call.depends(mask) or call.argument(4, "dropout_p", 0.0):
        return linearise(call)
    degree, linear_in_v = call.depends(q) + call.depends(k), call.depends(v)
    scale = call.kwargs.get("scale") or 1 / math.sqrt(q.shape[-1])
    q, k, v, y = call.value(q), call.value(k), call.value(v), call.result()
    shared_by = q.shape[-3] // k.shape[-3] if call.kwargs.get("enable_gqa") else 1

    def implicit() -> Tensor:
        keys, values = (t if shared_by == 1 else t.repeat_interleave(shared_by, -3) for t in (k, v))
        scores = scale * q @ keys.mT
        masked = scores
        if causal:
            masked = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
        elif mask is not None:
            masked = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
        weighted = masked.softmax(-1) * scores
        return (1 - linear_in_v) * y - degree * (weighted @ values - weighted.sum(-1, keepdim=True) * y)

    return [Bias("implicit", implicit)]


# --- the table -------------------------------------------------------------------------------------------------------------------

_CONVOLUTION = _bilinear_plus(factors=((0, "input"), (1, "weight")), addend=(2, "bias"))
_PRODUCT = _bilinear_plus(factors=((0, "input"), (1, "other")), addend=None)
_PRODUCT_PLUS = _bilinear_plus(factors=((1, ""), (2, "")), addend=(0, "input"))
_NORM_OPERANDS = ((1, "weight"), (2, "bias"), (3, "running_mean"), (4, "running_var"))

_ROWS: tuple[tuple[Rule, str], ...] = (
    # moving values around
    (no_bias, "view reshape flatten unflatten ravel squeeze unsqueeze permute transpose movedim moveaxis t T mT H mH adjoint"),
    (no_bias, "expand expand_as broadcast_tensors view_as reshape_as repeat tile repeat_interleave narrow select split chunk"),
    (no_bias, "tensor_split unbind getitem index_select gather take take_along_dim diagonal diag tril triu flip fliplr flipud"),
    (no_bias, "split_with_sizes roll rot90 unfold im2col col2im as_strided pixel_shuffle pixel_unshuffle channel_shuffle"),
    (no_bias, "clone contiguous to type float double half bfloat16 type_as cpu cuda alias view_as_real view_as_complex real imag"),
    (no_bias, "conj conj_physical resolve_conj resolve_neg positive atleast_1d atleast_2d atleast_3d"),
    # sums and means, averages over a window, interpolation between pixels
    (no_bias, "sum mean nansum cumsum trace neg negative avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d"),
    (no_bias, "adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d"),
    (
        no_bias,
        "upsample_bicubic2d upsample_trilinear3d fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_fft fft_ifft",
    ),
    (
        no_bias,
        "upsample_bilinear2d_aa upsample_bicubic2d_aa upsample_nearest_exact2d fft_rfft fft_irfft fft_fftshift fft_ifftshift",
    ),
    # dropout multiplies by a mask (and does nothing in evaluation)
    (no_bias, "dropout feature_dropout native_dropout"),
    # homogeneous of degree 1: piecewise linear through zero, extrema, norms
    (no_bias, "relu leaky_relu rrelu abs absolute max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d"),
    (no_bias, "adaptive_max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices fractional_max_pool2d"),
    (no_bias, "fractional_max_pool3d max_unpool2d max_unpool3d amax amin aminmax sort topk kthvalue median cummax"),
    (no_bias, "cummin mode std linalg_norm linalg_matrix_norm"),
    (homogeneous(_norm_degree), "linalg_vector_norm"),
    (homogeneous(_extremum_degree), "max min maximum minimum fmax fmin"),
    # products, quotients and powers of what depends on the input
    (_multiply, "mul"),
    (homogeneous(_quotient_degree), "div"),
    (homogeneous(_power_degree), "pow"),
    (homogeneous(_prelu_degree), "prelu"),
    (homogeneous(_count_dependent), "einsum dot inner outer"),
    (_of_degree(2), "square var"),
    (_of_degree(0.5), "sqrt"),
    (_of_degree(-0.5), "rsqrt"),
    (_of_degree(-1), "reciprocal"),
    (_of_degree(0), "sign sgn floor ceil round trunc"),
    # products with a weight, plus a bias
    (_CONVOLUTION, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear"),
    (_PRODUCT, "matmul mm bmm mv"),
    (_PRODUCT_PLUS, "addmm baddbmm addbmm addmv"),
    # affine: the constant that is added, filled in or put beside
    (_sum_of(1, 1, alpha_on=1), "add"),
    (_sum_of(1, -1, alpha_on=1), "sub"),
    (_sum_of(-1, 1, alpha_on=0), "rsub"),
    (affine, "cat stack hstack vstack where masked_fill masked_scatter setitem copy index_put index_copy index_fill index_add"),
    (affine, "scatter scatter_add slice_scatter select_scatter fill zero"),
    (_padding, "pad constant_pad_nd"),
    # sampling at given places
    (_constant_affine(no_bias, (1, "grid")), "grid_sampler grid_sampler_2d grid_sampler_3d roi_align roi_pool ps_roi_align"),
    # normalisation
    (_constant_affine(_batch_norm, *_NORM_OPERANDS), "batch_norm instance_norm"),
    (_constant_affine(_layer_norm, (2, "weight"), (3, "bias")), "layer_norm"),
    (_constant_affine(_rms_norm, (2, "weight")), "rms_norm"),
    (_constant_affine(_group_norm, (2, "weight"), (3, "bias")), "group_norm"),
    # non-linearities in closed form
    (_hardtanh, "hardtanh"),
    (_relu6, "relu6"),
    (pointwise_with_output(_sigmoid_bias), "sigmoid"),
    (pointwise_with_output(_tanh_bias), "tanh"),
    (pointwise_with_output(_silu_bias), "silu"),
    (pointwise(_hardswish_bias), "hardswish"),
    (reads_overwritten()(_gelu), "gelu"),
    (_softmax, "softmax"),
    (_log_softmax, "log_softmax"),
    (_attention, "scaled_dot_product_attention"),
    # non-linearities by their derivative
    (elementwise, "elu celu selu mish softplus log_sigmoid hardsigmoid hardshrink softshrink threshold clamp clamp_min"),
    (elementwise, "clamp_max exp exp2 expm1 log log2 log10 log1p erf erfc sin cos tan asin acos atan sinh cosh asinh atanh logit"),
    (elementwise, "sinc digamma lgamma xlogy nan_to_num"),
)

RULES: dict[str, Rule] = {name: rule for rule, names in _ROWS for name in names.split()}
