"""How operations move the samples and the image plane: the layout of an output from those of the operands, as one table.

A rule for one more operation is a line in `MOVERS`; a batch that meets an operation without one is run sample by sample.
"""

from __future__ import annotations

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.layout import Layout
from fg_lightning.fullgrad.movement.dimensionwise import (
    along_dims,
    broadcast,
    interleaved,
    over_last,
    over_windows,
    padded,
    per_sample_and_channel,
    recurrent,
    reduction,
    repeated,
    rolled,
)
from fg_lightning.fullgrad.movement.indexing import assigned, strided, written_along
from fg_lightning.fullgrad.movement.mover import LayoutOf, Mover
from fg_lightning.fullgrad.movement.patches import in_windows, of_patches, patches
from fg_lightning.fullgrad.movement.products import cell, cosine_similarity, einsum, linear, matrix_product, scaled_dot_product
from fg_lightning.fullgrad.movement.regrouping import regrouped
from fg_lightning.fullgrad.movement.tokens import side_by_side, stacked


def follow(call: Call, layout_of: LayoutOf, index: int, n: int) -> Layout | None:
    """The layout of an operation's output number `index`, or None where its `n` samples cannot be told apart."""
    output = call.outputs[index]
    mover = MOVERS.get(call.name)
    layout = None if mover is None or any(layout_of(t) is None for t in call.dependent) else mover(call, layout_of, output)
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
    (broadcast, "conj conj_physical resolve_conj resolve_neg zero fill real imag native_dropout lgamma digamma"),
    (over_windows, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d avg_pool1d avg_pool2d avg_pool3d"),
    (over_windows, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d max_pool1d max_pool2d max_pool3d"),
    (over_windows, "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d"),
    (over_windows, "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d"),
    (over_windows, "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d"),
    (over_windows, "upsample_bicubic2d upsample_trilinear3d upsample_bilinear2d_aa upsample_bicubic2d_aa"),
    (over_windows, "upsample_nearest_exact2d pixel_shuffle pixel_unshuffle channel_shuffle grid_sampler"),
    (per_sample_and_channel, "batch_norm instance_norm group_norm"),
    (over_last(lambda call: len(call.argument(1, "normalized_shape"))), "layer_norm rms_norm"),
    (padded, "pad constant_pad_nd"),
    (over_last(lambda call: 2), "tril triu"),
    (along_dims(2, default=-1), "fft_fft fft_ifft fft_rfft fft_irfft"),
    (along_dims(2, default=(-2, -1)), "fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2"),
    (linear, "linear"),
    (along_dims(1), "softmax log_softmax cumsum cumprod cummax cummin glu logcumsumexp"),
    (along_dims(1, keeps_order=False), "index_select gather"),
    (along_dims(1, default=-1, keeps_order=False), "sort"),
    (along_dims(2, keeps_order=False), "take_along_dim"),
    (along_dims(2, default=-1, keeps_order=False), "topk"),
    (rolled, "roll"),
    (recurrent, "lstm gru rnn_tanh rnn_relu"),
    (along_dims(1, "dims", keeps_order=False), "flip"),
    (reduction, "sum mean amax amin max min prod std var logsumexp nansum median mode kthvalue"),
    (reduction, "var_mean std_mean linalg_vector_norm linalg_norm linalg_matrix_norm"),
    (cosine_similarity, "cosine_similarity"),
    (matrix_product, "matmul mm bmm baddbmm addmm"),
    (scaled_dot_product, "scaled_dot_product_attention"),
    (cell, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell bilinear"),
    (einsum, "einsum"),
    (assigned, "setitem"),
    (written_along, "index_add index_copy index_fill scatter scatter_add"),
    (in_windows, "unfold"),
    (patches, "im2col"),
    (of_patches, "col2im"),
    (repeated, "repeat tile"),
    (interleaved, "repeat_interleave"),
    (side_by_side, "cat hstack vstack"),
    (stacked, "stack"),
    (strided, "permute transpose movedim moveaxis t T mT H mH adjoint unsqueeze squeeze expand expand_as diagonal"),
    (strided, "getitem select narrow chunk split split_with_sizes tensor_split unbind"),
    (regrouped, "view reshape flatten unflatten ravel view_as reshape_as"),
)

MOVERS: dict[str, Mover] = {name: mover for mover, names in _ROWS for name in names.split()}
