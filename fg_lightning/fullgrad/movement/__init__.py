"""How operations move the samples and the image plane: the layout of an output from those of the operands, as one table.

A rule for one more operation is a line in `MOVERS`. An operation without one is watched; a batch in which it mixes the samples, or
does not show that it keeps them apart, is run sample by sample.
"""

from __future__ import annotations

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.layout import Layout
from fg_lightning.fullgrad.movement.dimensionwise import (
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
from fg_lightning.fullgrad.movement.indexing import (
    assigned,
    behind_view,
    masked,
    strided,
    strided_anew,
    written_along,
    written_slice,
)
from fg_lightning.fullgrad.movement.mover import LayoutOf, Mover
from fg_lightning.fullgrad.movement.patches import in_windows, of_patches, patches
from fg_lightning.fullgrad.movement.products import (
    cell,
    cosine_similarity,
    distances,
    einsum,
    linear,
    matrix_product,
    of_all_pairs,
    of_matrices,
    pairwise_distance,
    scaled_dot_product,
)
from fg_lightning.fullgrad.movement.regrouping import regrouped
from fg_lightning.fullgrad.movement.tokens import side_by_side, stacked
from fg_lightning.fullgrad.movement.turning import centred, flipped, rolled, rotated
from fg_lightning.fullgrad.movement.watching import watched

__all__ = ["MOVERS", "behind_view", "follow"]


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


_ROWS: tuple[tuple[Mover, str], ...] = (
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

MOVERS: dict[str, Mover] = {name: mover for mover, names in _ROWS for name in names.split()}
