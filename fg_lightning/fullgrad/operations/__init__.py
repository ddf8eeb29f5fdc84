"""The table of operations: a bias rule and a layout rule for each.

The bias of an operation y = h(z) is the constant part of its linearization at z, b = h(z) - J_h(z) z, where z are the
operands that depend on the input (Srinivas & Fleuret 2019; they call biases of non-linearities implicit). A bias rule returns the
biases of an operation's outputs. `linearize` is correct for any differentiable operation, but runs it again. A layout rule computes
the layout of an output from those of the operands. Without a rule, `infer_layout` infers it from a few backward passes of the
operation; if that fails, the batch is run image by image.

To add an operation, add its name to the row with its two rules, or add a row. For an operation that is not in the table, the bias
comes from `linearize` and the layout from `infer_layout`.
"""

from __future__ import annotations

from typing import NamedTuple

from fg_lightning.fullgrad.linearization import BiasRule, if_constant, linearize, reads_overwritten
from fg_lightning.fullgrad.operations.bias_rules import (
    affine,
    count_dependent,
    elementwise,
    extremum_degree,
    from_history,
    gelu,
    hardswish_bias,
    hardtanh,
    homogeneous,
    no_bias,
    norm_degree,
    of_degree,
    pad,
    pointwise,
    power_degree,
    prelu_degree,
    quotient_degree,
    sigmoid_bias,
    silu_bias,
    sum_of,
    tanh_bias,
)
from fg_lightning.fullgrad.operations.elementwise_and_reductions import (
    affine_grid_layout,
    along_dims_layout,
    broadcast_tensors_layout,
    complex_view_layout,
    last_dims_layout,
    pad_layout,
    recurrent_layout,
    reduction_layout,
    repeat_interleave_layout,
    repeat_layout,
    window_layout,
)
from fg_lightning.fullgrad.operations.layout_rules import LayoutRule, broadcast_layout
from fg_lightning.fullgrad.operations.normalization import (
    BATCH_NORM_OPERANDS,
    batch_norm,
    group_norm,
    layer_norm,
    native_group_norm,
    norm_layout,
    rms_norm,
)
from fg_lightning.fullgrad.operations.products import (
    bilinear_plus,
    cdist_layout,
    cell_layout,
    einsum_layout,
    linear_layout,
    matmul_layout,
    matrix_layout,
    multiply,
    outer_layout,
    similarity_layout,
)
from fg_lightning.fullgrad.operations.reshaping import (
    col2im_layout,
    fftshift_layout,
    flip_layout,
    im2col_layout,
    reshape_layout,
    roll_layout,
    rot90_layout,
    unfold_layout,
)
from fg_lightning.fullgrad.operations.slicing_and_joining import (
    as_strided_layout,
    cat_layout,
    masked_scatter_layout,
    scatter_layout,
    setitem_layout,
    slice_scatter_layout,
    stack_layout,
    view_layout,
)
from fg_lightning.fullgrad.operations.softmax_and_attention import (
    attention,
    attention_layout,
    log_softmax,
    native_attention,
    softmax,
)

__all__ = ["OPERATIONS", "UNKNOWN", "Rules", "affine", "elementwise", "homogeneous", "no_bias", "of_degree", "pointwise"]


class Rules(NamedTuple):
    """The rules of an operation.

    Attributes:
        bias: function that returns the biases of the operation's outputs.
        layout: function that returns the layout of one output. None: it is inferred from the operation's gradients.
    """

    bias: BiasRule
    layout: LayoutRule | None


UNKNOWN = Rules(linearize, None)
"""The rules of operations that are not in the table."""

_CONVOLUTION = bilinear_plus(factors=((0, "input"), (1, "weight")), addend=(2, "bias"))
_MATMUL = bilinear_plus(factors=((0, "input"), (1, "other")), addend=None)
_MATMUL_PLUS = bilinear_plus(factors=((1, ""), (2, "")), addend=(0, "input"))
_PRODUCT_OF_ALL = homogeneous(count_dependent)
_EXTREMUM = homogeneous(extremum_degree)
_SAMPLED = if_constant(no_bias, (1, "grid"))
_NORMALIZED_DIMS = last_dims_layout(lambda op: len(op.argument(1, "normalized_shape")))

_ROWS: tuple[tuple[BiasRule, LayoutRule | None, str], ...] = (
    # views and copies
    (no_bias, reshape_layout, "view reshape flatten unflatten ravel view_as reshape_as unsafe_view reshape_alias"),
    (no_bias, view_layout, "squeeze unsqueeze permute transpose movedim moveaxis t T mT H mH adjoint expand expand_as"),
    (no_bias, view_layout, "narrow select split chunk tensor_split hsplit vsplit dsplit unbind slice index getitem"),
    (no_bias, view_layout, "broadcast_to diagonal split_with_sizes unsafe_chunk unsafe_split unsafe_split_with_sizes"),
    (no_bias, as_strided_layout, "as_strided"),
    (no_bias, broadcast_layout, "clone contiguous to type float double half bfloat16 type_as cpu cuda alias to_copy"),
    (no_bias, broadcast_layout, "real imag conj conj_physical resolve_conj resolve_neg positive neg negative deg2rad rad2deg"),
    (no_bias, complex_view_layout, "view_as_real view_as_complex"),
    (no_bias, broadcast_tensors_layout, "broadcast_tensors atleast_1d atleast_2d atleast_3d"),
    (no_bias, repeat_layout, "repeat tile"),
    (no_bias, repeat_interleave_layout, "repeat_interleave"),
    # picking and ordering entries
    (no_bias, along_dims_layout(1, keeps_order=False), "index_select gather"),
    (no_bias, along_dims_layout(2, keeps_order=False), "take_along_dim"),
    (no_bias, along_dims_layout(1, default=-1, keeps_order=False), "sort"),
    (no_bias, along_dims_layout(2, default=-1, keeps_order=False), "topk"),
    (no_bias, last_dims_layout(lambda op: 2), "tril triu"),
    (no_bias, flip_layout, "flip fliplr flipud"),
    (no_bias, rot90_layout, "rot90"),
    (no_bias, roll_layout, "roll"),
    (no_bias, unfold_layout, "unfold"),
    (no_bias, im2col_layout, "im2col"),
    (no_bias, col2im_layout, "col2im"),
    (no_bias, None, "take diag trace"),
    # joining, writing and padding: affine, if a constant is added, filled in or joined
    (affine, cat_layout, "cat hstack vstack dstack column_stack row_stack"),
    (affine, stack_layout, "stack"),
    (affine, broadcast_layout, "complex where masked_fill copy fill zero"),
    (affine, masked_scatter_layout, "masked_scatter"),
    (affine, setitem_layout, "setitem index_put"),
    (affine, scatter_layout, "index_copy index_fill index_add scatter scatter_add"),
    (affine, slice_scatter_layout, "slice_scatter select_scatter"),
    (pad, pad_layout, "pad constant_pad_nd"),
    (no_bias, pad_layout, "reflection_pad1d reflection_pad2d reflection_pad3d"),
    (no_bias, pad_layout, "replication_pad1d replication_pad2d replication_pad3d"),
    # windows, interpolation, sampling at given places
    (no_bias, window_layout, "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"),
    (no_bias, window_layout, "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
    (no_bias, window_layout, "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d"),
    (no_bias, window_layout, "fractional_max_pool2d fractional_max_pool3d pixel_shuffle pixel_unshuffle channel_shuffle"),
    (no_bias, window_layout, "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_nearest_exact1d"),
    (no_bias, window_layout, "upsample_nearest_exact2d upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d"),
    (no_bias, window_layout, "upsample_bicubic2d upsample_trilinear3d upsample_bilinear2d_aa upsample_bicubic2d_aa"),
    (_SAMPLED, window_layout, "grid_sampler grid_sampler_2d grid_sampler_3d"),
    (_SAMPLED, None, "roi_align roi_pool ps_roi_align"),
    (no_bias, affine_grid_layout, "affine_grid_generator"),
    # sums, means, extrema, norms
    (no_bias, reduction_layout, "sum mean nansum amax amin aminmax kthvalue median mode std linalg_norm linalg_matrix_norm"),
    (no_bias, along_dims_layout(1), "cumsum cummax cummin"),
    (homogeneous(norm_degree), reduction_layout, "linalg_vector_norm"),
    (_EXTREMUM, reduction_layout, "max min"),
    (_EXTREMUM, broadcast_layout, "maximum minimum fmax fmin"),
    (of_degree(2), reduction_layout, "var"),
    (linearize, reduction_layout, "prod logsumexp nanmean nanmedian quantile nanquantile var_mean std_mean"),
    (linearize, along_dims_layout(1), "softmin cumprod glu logcumsumexp"),
    # Fourier transforms
    (no_bias, along_dims_layout(2, default=-1), "fft_fft fft_ifft fft_rfft fft_irfft"),
    (no_bias, along_dims_layout(2, default=(-2, -1)), "fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2"),
    (no_bias, along_dims_layout(2), "fft_fftn fft_ifftn fft_rfftn fft_irfftn"),
    (no_bias, along_dims_layout(1), "fft_r2c fft_c2r fft_c2c"),
    (no_bias, fftshift_layout, "fft_fftshift fft_ifftshift"),
    # sums, products, quotients and powers, entry by entry
    (sum_of(1, 1, alpha_on=1), broadcast_layout, "add"),
    (sum_of(1, -1, alpha_on=1), broadcast_layout, "sub"),
    (sum_of(-1, 1, alpha_on=0), broadcast_layout, "rsub"),
    (multiply, broadcast_layout, "mul"),
    (homogeneous(quotient_degree), broadcast_layout, "div"),
    (homogeneous(power_degree), broadcast_layout, "pow"),
    (of_degree(2), broadcast_layout, "square"),
    (of_degree(0.5), broadcast_layout, "sqrt"),
    (of_degree(-0.5), broadcast_layout, "rsqrt"),
    (of_degree(-1), broadcast_layout, "reciprocal"),
    (of_degree(0), broadcast_layout, "angle sign sgn floor ceil round trunc"),
    (linearize, broadcast_layout, "lerp addcmul addcdiv atan2 polar hypot ldexp float_power signbit heaviside nextafter copysign"),
    (linearize, broadcast_layout, "logaddexp logaddexp2"),
    # products with a weight, plus a bias; products of matrices
    (_CONVOLUTION, window_layout, "convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    (_CONVOLUTION, linear_layout, "linear"),
    (_MATMUL, matmul_layout, "matmul mm bmm mv"),
    (_MATMUL_PLUS, matmul_layout, "addmm baddbmm addmv"),
    (_MATMUL_PLUS, None, "addbmm"),
    (_PRODUCT_OF_ALL, einsum_layout, "einsum"),
    (_PRODUCT_OF_ALL, outer_layout, "inner outer tensordot"),
    (_PRODUCT_OF_ALL, None, "dot"),
    (linearize, similarity_layout, "cosine_similarity pairwise_distance"),
    (linearize, cdist_layout, "cdist cdist_forward euclidean_dist"),
    (linearize, matrix_layout, "linalg_inv inverse linalg_pinv pinverse linalg_det det logdet linalg_slogdet slogdet"),
    (linearize, matrix_layout, "linalg_svdvals linalg_svd svd linalg_eigh linalg_eigvalsh linalg_eig linalg_eigvals"),
    (linearize, matrix_layout, "linalg_qr qr linalg_inv_ex linalg_solve_ex"),
    (linearize, matrix_layout, "linalg_cholesky cholesky linalg_cholesky_ex cholesky_solve linalg_lu linalg_matrix_exp matrix_exp"),
    (linearize, matrix_layout, "linalg_matrix_power matrix_power linalg_solve linalg_solve_triangular linalg_lstsq"),
    # attention, recurrent networks
    (softmax, along_dims_layout(1), "softmax safe_softmax"),
    (log_softmax, along_dims_layout(1), "log_softmax"),
    (attention, attention_layout, "scaled_dot_product_attention"),
    (native_attention, attention_layout, "scaled_dot_product_flash_attention_for_cpu scaled_dot_product_flash_attention"),
    (native_attention, attention_layout, "scaled_dot_product_efficient_attention scaled_dot_product_cudnn_attention"),
    (native_attention, attention_layout, "scaled_dot_product_attention_math"),
    (linearize, recurrent_layout, "lstm gru rnn_tanh rnn_relu"),
    (linearize, cell_layout, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell bilinear"),
    # normalization
    (if_constant(batch_norm, *BATCH_NORM_OPERANDS), norm_layout, "batch_norm instance_norm native_batch_norm_legit_no_training"),
    (if_constant(layer_norm, (2, "weight"), (3, "bias")), _NORMALIZED_DIMS, "layer_norm native_layer_norm"),
    (if_constant(rms_norm, (2, "weight")), _NORMALIZED_DIMS, "rms_norm"),
    (if_constant(group_norm, (2, "weight"), (3, "bias")), norm_layout, "group_norm"),
    (if_constant(native_group_norm, (1, "weight"), (2, "bias")), norm_layout, "native_group_norm"),
    # activations; dropout multiplies by a mask, and does nothing in evaluation
    (no_bias, broadcast_layout, "relu leaky_relu rrelu abs absolute dropout feature_dropout native_dropout"),
    (linearize, broadcast_layout, "alpha_dropout feature_alpha_dropout"),
    (homogeneous(prelu_degree), broadcast_layout, "prelu prelu_kernel"),
    (hardtanh, broadcast_layout, "hardtanh relu6"),
    (pointwise(sigmoid_bias, of_output=True), broadcast_layout, "sigmoid"),
    (pointwise(tanh_bias, of_output=True), broadcast_layout, "tanh"),
    (pointwise(silu_bias, of_output=True), broadcast_layout, "silu"),
    (pointwise(hardswish_bias), broadcast_layout, "hardswish"),
    (reads_overwritten()(gelu), broadcast_layout, "gelu"),
    (elementwise, broadcast_layout, "elu celu selu mish softplus log_sigmoid hardsigmoid hardshrink softshrink threshold"),
    (elementwise, broadcast_layout, "clamp clamp_min clamp_max frac fmod remainder nan_to_num"),
    (elementwise, broadcast_layout, "exp exp2 expm1 log log2 log10 log1p logit erf erfc sinc digamma lgamma xlogy"),
    (elementwise, broadcast_layout, "sin cos tan asin acos atan sinh cosh asinh atanh"),
    (elementwise, broadcast_layout, "fake_quantize_per_tensor_affine fake_quantize_per_channel_affine"),
    (elementwise, broadcast_layout, "fake_quantize_learnable_per_tensor_affine fake_quantize_learnable_per_channel_affine"),
    (from_history, broadcast_layout, "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask"),
    (from_history, broadcast_layout, "fused_moving_avg_obs_fake_quant"),
    (linearize, broadcast_layout, "acosh erfinv i0 i0e i1 i1e special_ndtr special_log_ndtr special_erfcx"),
    # losses
    (linearize, broadcast_layout, "binary_cross_entropy_with_logits"),
    (linearize, broadcast_layout, "smooth_l1_loss mse_loss l1_loss huber_loss binary_cross_entropy"),
)

OPERATIONS: dict[str, Rules] = {name: Rules(bias, layout) for bias, layout, names in _ROWS for name in names.split()}
