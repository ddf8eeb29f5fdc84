"""The bias of every operation: one table of small rules, one general fallback.

The bias of an operation y = h(z) is the constant part of its linearisation at z, b = h(z) - J_h(z) z, taken over those of its
operands that depend on the input (Srinivas & Fleuret 2019: explicit biases, and implicit ones of non-linearities). A rule is a
function of one `Call` that returns the biases of its outputs. Adding one is a line in `RULES`; an operation that is not there goes
through `linearise`, which is right for any differentiable operation.

How operations move the samples and the image plane: the layout of an output from those of the operands, as one table.

A rule for one more operation is a line in `MOVERS`. An operation without one is watched; a batch in which it mixes the samples, or
does not show that it keeps them apart, is run sample by sample.
"""

from __future__ import annotations

from fg_lightning.fullgrad.layout import Layout
from fg_lightning.fullgrad.linearization import Rule, reads_overwritten, where_constant
from fg_lightning.fullgrad.operation import Call
from fg_lightning.fullgrad.operations.affine import (
    affine,
    count_dependent,
    extremum_degree,
    homogeneous,
    no_bias,
    norm_degree,
    of_degree,
    padding,
    power_degree,
    prelu_degree,
    quotient_degree,
    sum_of,
)
from fg_lightning.fullgrad.operations.attention import attention, log_softmax, native_attention, softmax
from fg_lightning.fullgrad.operations.concatenation import side_by_side, stacked
from fg_lightning.fullgrad.operations.dimensions import (
    along_dims,
    broadcast,
    each_apart,
    interleaved,
    over_last,
    over_windows,
    padded,
    paired,
    per_sample_and_channel,
    recurrent,
    reduction,
    repeated,
    sampling_grid,
)
from fg_lightning.fullgrad.operations.elementwise import (
    elementwise,
    from_history,
    gelu,
    hardswish_bias,
    hardtanh,
    pointwise,
    pointwise_with_output,
    relu6,
    sigmoid_bias,
    silu_bias,
    tanh_bias,
)
from fg_lightning.fullgrad.operations.indexing import (
    assigned,
    behind_view,
    masked,
    strided,
    strided_anew,
    written_along,
    written_slice,
)
from fg_lightning.fullgrad.operations.layout_rule import LayoutOf, Mover, watched
from fg_lightning.fullgrad.operations.normalization import (
    BATCH_NORM_OPERANDS,
    batch_norm,
    group_norm,
    layer_norm,
    native_group_norm,
    rms_norm,
)
from fg_lightning.fullgrad.operations.products import (
    bilinear_plus,
    cell,
    cosine_similarity,
    distances,
    einsum,
    linear,
    matrix_product,
    multiply,
    of_all_pairs,
    of_matrices,
    pairwise_distance,
    scaled_dot_product,
)
from fg_lightning.fullgrad.operations.reshaping import centred, flipped, in_windows, of_patches, patches, regrouped, rolled, rotated

__all__ = ["MOVERS", "RULES", "affine", "behind_view", "elementwise", "follow", "homogeneous", "no_bias"]

_CONVOLUTION = bilinear_plus(factors=((0, "input"), (1, "weight")), addend=(2, "bias"))
_PRODUCT = bilinear_plus(factors=((0, "input"), (1, "other")), addend=None)
_PRODUCT_PLUS = bilinear_plus(factors=((1, ""), (2, "")), addend=(0, "input"))

_ROWS: tuple[tuple[Rule, str], ...] = (
    # moving values around
    (no_bias, "view reshape flatten unflatten ravel squeeze unsqueeze permute transpose movedim moveaxis t T mT H mH adjoint"),
    (no_bias, "expand expand_as broadcast_tensors view_as reshape_as repeat tile repeat_interleave narrow select split chunk"),
    (no_bias, "tensor_split hsplit vsplit dsplit unbind slice index broadcast_to unsafe_view reshape_alias getitem index_select"),
    (no_bias, "gather take take_along_dim diagonal diag tril triu flip fliplr flipud"),
    (no_bias, "split_with_sizes roll rot90 unfold im2col col2im as_strided pixel_shuffle pixel_unshuffle channel_shuffle"),
    (no_bias, "clone contiguous to type float double half bfloat16 type_as cpu cuda alias view_as_real view_as_complex real imag"),
    (no_bias, "to_copy unsafe_chunk unsafe_split unsafe_split_with_sizes conj conj_physical resolve_conj resolve_neg positive"),
    (no_bias, "atleast_1d atleast_2d atleast_3d"),
    # sums and means, averages over a window, interpolation between pixels
    (no_bias, "sum mean nansum cumsum trace neg negative avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d"),
    (no_bias, "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"),
    (no_bias, "upsample_nearest_exact1d upsample_nearest_exact3d deg2rad rad2deg affine_grid_generator"),
    (no_bias, "adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d"),
    (no_bias, "upsample_bicubic2d upsample_trilinear3d upsample_bilinear2d_aa upsample_bicubic2d_aa upsample_nearest_exact2d"),
    # Fourier transforms
    (no_bias, "fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft fft_rfft2 fft_irfft2"),
    (no_bias, "fft_rfftn fft_irfftn fft_r2c fft_c2r fft_c2c fft_fftshift fft_ifftshift"),
    # dropout multiplies by a mask (and does nothing in evaluation)
    (no_bias, "dropout feature_dropout native_dropout"),
    # homogeneous of degree 1: piecewise linear through zero, extrema, norms
    (no_bias, "relu leaky_relu rrelu abs absolute max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d"),
    (no_bias, "adaptive_max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices fractional_max_pool2d"),
    (no_bias, "fractional_max_pool3d max_unpool2d max_unpool3d amax amin aminmax sort topk kthvalue median cummax"),
    (no_bias, "cummin mode std linalg_norm linalg_matrix_norm"),
    (homogeneous(norm_degree), "linalg_vector_norm"),
    (homogeneous(extremum_degree), "max min maximum minimum fmax fmin"),
    # products, quotients and powers of what depends on the input
    (multiply, "mul"),
    (homogeneous(quotient_degree), "div"),
    (homogeneous(power_degree), "pow"),
    (homogeneous(prelu_degree), "prelu prelu_kernel"),
    (homogeneous(count_dependent), "einsum dot inner outer tensordot"),
    (of_degree(2), "square var"),
    (of_degree(0.5), "sqrt"),
    (of_degree(-0.5), "rsqrt"),
    (of_degree(-1), "reciprocal"),
    (of_degree(0), "angle sign sgn floor ceil round trunc"),
    # products with a weight, plus a bias
    (_CONVOLUTION, "convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear"),
    (_PRODUCT, "matmul mm bmm mv"),
    (_PRODUCT_PLUS, "addmm baddbmm addbmm addmv"),
    # affine: the constant that is added, filled in or put beside
    (sum_of(1, 1, alpha_on=1), "add"),
    (sum_of(1, -1, alpha_on=1), "sub"),
    (sum_of(-1, 1, alpha_on=0), "rsub"),
    (affine, "cat stack hstack vstack dstack column_stack row_stack complex where masked_fill masked_scatter setitem copy"),
    (affine, "index_put index_copy index_fill index_add"),
    (affine, "scatter scatter_add slice_scatter select_scatter fill zero"),
    (padding, "pad constant_pad_nd"),
    # sampling at given places
    (where_constant(no_bias, (1, "grid")), "grid_sampler grid_sampler_2d grid_sampler_3d roi_align roi_pool ps_roi_align"),
    # normalisation
    (where_constant(batch_norm, *BATCH_NORM_OPERANDS), "batch_norm instance_norm native_batch_norm_legit_no_training"),
    (where_constant(layer_norm, (2, "weight"), (3, "bias")), "layer_norm native_layer_norm"),
    (where_constant(rms_norm, (2, "weight")), "rms_norm"),
    (where_constant(group_norm, (2, "weight"), (3, "bias")), "group_norm"),
    (where_constant(native_group_norm, (1, "weight"), (2, "bias")), "native_group_norm"),
    # non-linearities in closed form
    (hardtanh, "hardtanh"),
    (relu6, "relu6"),
    (pointwise_with_output(sigmoid_bias), "sigmoid"),
    (pointwise_with_output(tanh_bias), "tanh"),
    (pointwise_with_output(silu_bias), "silu"),
    (pointwise(hardswish_bias), "hardswish"),
    (reads_overwritten()(gelu), "gelu"),
    (softmax, "softmax safe_softmax"),
    (log_softmax, "log_softmax"),
    (attention, "scaled_dot_product_attention"),
    (native_attention, "scaled_dot_product_flash_attention_for_cpu scaled_dot_product_flash_attention"),
    (native_attention, "scaled_dot_product_efficient_attention scaled_dot_product_cudnn_attention"),
    (native_attention, "scaled_dot_product_attention_math"),
    # non-linearities by their derivative
    (elementwise, "elu celu selu mish softplus log_sigmoid hardsigmoid hardshrink softshrink threshold clamp clamp_min"),
    (elementwise, "clamp_max exp exp2 expm1 log log2 log10 log1p erf erfc sin cos tan asin acos atan sinh cosh asinh atanh logit"),
    (elementwise, "frac fmod remainder fake_quantize_per_tensor_affine fake_quantize_per_channel_affine"),
    (elementwise, "fake_quantize_learnable_per_tensor_affine fake_quantize_learnable_per_channel_affine"),
    (from_history, "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask"),
    (from_history, "fused_moving_avg_obs_fake_quant"),
    (elementwise, "sinc digamma lgamma xlogy nan_to_num"),
)

RULES: dict[str, Rule] = {name: rule for rule, names in _ROWS for name in names.split()}


def follow(call: Call, layout_of: LayoutOf, index: int, n: int) -> Layout | None:
    """The layout of an operation's output number `index`, or None where its `n` samples cannot be told apart."""
    output = call.outputs[index]
    mover = MOVERS.get(call.name)
    if not call.dependent or any(layout_of(t) is None for t in call.dependent):
        return None
    try:
        layout = mover(call, layout_of, output) if mover else watched(call, layout_of, output, n)
    except Exception:  # arguments of a kind that the rule does not know
        layout = watched(call, layout_of, output, n)
    if layout is layout_of(call.dependent[0]) and call.dependent[0].shape == output.shape:
        return layout
    sound = layout is not None and layout.shape == tuple(output.shape) and layout.samples == n
    return layout if sound else None


_LAYOUT_ROWS: tuple[tuple[Mover, str], ...] = (
    (broadcast, "add sub rsub mul div pow maximum minimum fmax fmin where masked_fill lerp addcmul addcdiv atan2 xlogy copy"),
    (broadcast, "neg negative positive abs absolute sign sgn square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p"),
    (broadcast, "sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc sigmoid logit sinc floor ceil round trunc"),
    (broadcast, "relu leaky_relu rrelu prelu elu celu selu mish softplus log_sigmoid silu gelu hardtanh relu6 hardsigmoid"),
    (broadcast, "hardswish hardshrink softshrink threshold clamp clamp_min clamp_max nan_to_num dropout feature_dropout"),
    (broadcast, "alpha_dropout feature_alpha_dropout clone contiguous to type float double half bfloat16 type_as cpu cuda alias"),
    (broadcast, "conj conj_physical resolve_conj resolve_neg zero fill real imag native_dropout lgamma digamma angle complex"),
    (broadcast, "polar"),
    (broadcast, "hypot fmod remainder ldexp float_power signbit heaviside frac i0 i0e i1 i1e erfinv nextafter copysign logaddexp"),
    (broadcast, "logaddexp2 deg2rad rad2deg special_ndtr special_log_ndtr special_erfcx smooth_l1_loss mse_loss"),
    (broadcast, "l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits prelu_kernel to_copy"),
    (broadcast, "fake_quantize_per_tensor_affine fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine"),
    (broadcast, "fake_quantize_per_channel_affine_cachemask fake_quantize_learnable_per_tensor_affine"),
    (broadcast, "fake_quantize_learnable_per_channel_affine fused_moving_avg_obs_fake_quant"),
    (over_windows, "convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d avg_pool1d avg_pool2d"),
    (over_windows, "avg_pool3d"),
    (over_windows, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d max_pool1d max_pool2d max_pool3d"),
    (over_windows, "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d"),
    (over_windows, "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d"),
    (over_windows, "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d"),
    (over_windows, "upsample_bicubic2d upsample_trilinear3d upsample_bilinear2d_aa upsample_bicubic2d_aa"),
    (over_windows, "upsample_nearest_exact1d upsample_nearest_exact2d upsample_nearest_exact3d pixel_shuffle pixel_unshuffle"),
    (over_windows, "channel_shuffle grid_sampler grid_sampler_2d grid_sampler_3d"),
    (per_sample_and_channel, "batch_norm instance_norm group_norm native_batch_norm_legit_no_training native_group_norm"),
    (over_last(lambda call: len(call.argument(1, "normalized_shape"))), "layer_norm rms_norm native_layer_norm"),
    (padded, "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d"),
    (padded, "replication_pad3d"),
    (over_last(lambda call: 2), "tril triu"),
    (along_dims(2, default=-1), "fft_fft fft_ifft fft_rfft fft_irfft"),
    (along_dims(2, default=(-2, -1)), "fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2"),
    (along_dims(2), "fft_fftn fft_ifftn fft_rfftn fft_irfftn"),
    (along_dims(1), "fft_r2c fft_c2r fft_c2c"),
    (centred, "fft_fftshift fft_ifftshift"),
    (linear, "linear"),
    (along_dims(1), "safe_softmax softmin softmax log_softmax cumsum cumprod cummax cummin glu logcumsumexp"),
    (along_dims(1, keeps_order=False), "index_select gather"),
    (along_dims(1, default=-1, keeps_order=False), "sort"),
    (along_dims(2, keeps_order=False), "take_along_dim"),
    (along_dims(2, default=-1, keeps_order=False), "topk"),
    (rolled, "roll"),
    (recurrent, "lstm gru rnn_tanh rnn_relu"),
    (flipped, "flip fliplr flipud"),
    (rotated, "rot90"),
    (reduction, "sum mean amax amin max min prod std var logsumexp nansum nanmean median nanmedian mode kthvalue aminmax quantile"),
    (reduction, "nanquantile"),
    (reduction, "var_mean std_mean linalg_vector_norm linalg_norm linalg_matrix_norm"),
    (cosine_similarity, "cosine_similarity"),
    (pairwise_distance, "pairwise_distance"),
    (distances, "cdist cdist_forward euclidean_dist"),
    (matrix_product, "matmul mm bmm mv baddbmm addmm addmv"),
    (of_all_pairs, "outer inner tensordot"),
    (of_matrices, "linalg_inv inverse linalg_pinv pinverse linalg_det det logdet linalg_slogdet slogdet linalg_svdvals linalg_svd"),
    (of_matrices, "svd linalg_eigh linalg_eigvalsh linalg_eig linalg_eigvals linalg_qr qr linalg_cholesky cholesky linalg_lu"),
    (of_matrices, "linalg_matrix_exp matrix_exp linalg_matrix_power matrix_power linalg_solve linalg_solve_triangular"),
    (of_matrices, "linalg_inv_ex linalg_cholesky_ex linalg_solve_ex cholesky_solve linalg_lstsq"),
    (scaled_dot_product, "scaled_dot_product_attention scaled_dot_product_flash_attention_for_cpu"),
    (scaled_dot_product, "scaled_dot_product_flash_attention scaled_dot_product_efficient_attention"),
    (scaled_dot_product, "scaled_dot_product_cudnn_attention scaled_dot_product_attention_math"),
    (cell, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell bilinear"),
    (einsum, "einsum"),
    (assigned, "setitem index_put"),
    (masked, "masked_scatter"),
    (written_slice, "slice_scatter select_scatter"),
    (written_along, "index_add index_copy index_fill scatter scatter_add"),
    (in_windows, "unfold"),
    (patches, "im2col"),
    (of_patches, "col2im"),
    (repeated, "repeat tile"),
    (interleaved, "repeat_interleave"),
    (side_by_side, "cat hstack vstack dstack column_stack row_stack"),
    (stacked, "stack"),
    (each_apart, "broadcast_tensors atleast_1d atleast_2d atleast_3d"),
    (sampling_grid, "affine_grid_generator"),
    (paired, "view_as_real view_as_complex"),
    (strided, "permute transpose movedim moveaxis t T mT H mH adjoint unsqueeze squeeze expand expand_as broadcast_to diagonal"),
    (strided, "getitem select narrow chunk split split_with_sizes tensor_split hsplit vsplit dsplit unbind slice index"),
    (strided, "unsafe_chunk unsafe_split unsafe_split_with_sizes"),
    (strided_anew, "as_strided"),
    (regrouped, "view reshape flatten unflatten ravel view_as reshape_as unsafe_view reshape_alias"),
)

MOVERS: dict[str, Mover] = {name: mover for mover, names in _LAYOUT_ROWS for name in names.split()}
