"""The bias of every operation: one table of small rules, one general fallback.

The bias of an operation y = h(z) is the constant part of its linearisation at z, b = h(z) - J_h(z) z, taken over those of its
operands that depend on the input (Srinivas & Fleuret 2019: explicit biases, and implicit ones of non-linearities). A rule is a
function of one `Call` that returns the biases of its outputs. Adding one is a line in `RULES`; an operation that is not there goes
through `linearise`, which is right for any differentiable operation.
"""

from __future__ import annotations

from fg_lightning.fullgrad.biases.affine import affine, padding, sum_of
from fg_lightning.fullgrad.biases.attention import attention, log_softmax, native_attention, softmax
from fg_lightning.fullgrad.biases.homogeneous import (
    count_dependent,
    extremum_degree,
    homogeneous,
    no_bias,
    norm_degree,
    of_degree,
    power_degree,
    prelu_degree,
    quotient_degree,
)
from fg_lightning.fullgrad.biases.nonlinear import (
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
from fg_lightning.fullgrad.biases.normalisation import (
    BATCH_NORM_OPERANDS,
    batch_norm,
    group_norm,
    layer_norm,
    native_group_norm,
    rms_norm,
)
from fg_lightning.fullgrad.biases.products import bilinear_plus, multiply
from fg_lightning.fullgrad.linearisation import Rule, reads_overwritten, where_constant

__all__ = ["RULES", "affine", "elementwise", "homogeneous", "no_bias"]

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
