"""Operations as an exported program calls them, torch.ops.aten, and the kernels behind torch's functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.helpers.operations.definition import MASK, cases, const, eighths, positive, z

aten = torch.ops.aten

WEIGHT_AND_BIAS = const(3), const(3, seed=1)
MEAN, VARIANCE = const(3), const(3).abs() + 0.5
SCALES, ZEROS = torch.tensor([0.125, 0.25]), torch.zeros(2, dtype=torch.int32)


ATEN = cases(
    {
        "aten relu": (lambda x: aten.relu.default(x), z(2, 3)),
        "aten slice": (lambda x: aten.slice.Tensor(x, 1, 0, 2), z(2, 3)),
        "aten index": (lambda x: aten.index.Tensor(x, [None, torch.tensor([2, 0])]), z(2, 3)),
        "aten index_put": (lambda x: aten.index_put.default(x, [None, torch.tensor([1])], const(2, 1)), z(2, 3)),
        "_unsafe_view": (lambda x: aten._unsafe_view.default(x, [6]), z(2, 3)),
        "_reshape_alias": (lambda x: aten._reshape_alias.default(x, [6], [1]), z(2, 3)),
        "_to_copy": (lambda x: aten._to_copy.default(x, dtype=torch.float32), eighths(2, 3)),
        "unsafe_chunk": (lambda x: torch.unsafe_chunk(x, 2, 1), z(2, 4)),
        "unsafe_split": (lambda x: torch.unsafe_split(x, 2, 1), z(2, 4)),
        "unsafe_split_with_sizes": (lambda x: torch.unsafe_split_with_sizes(x, [1, 3], 1), z(2, 4)),
        **{
            f"{kind}_pad{d}d": (
                lambda x, kind=kind, d=d: getattr(aten, f"{kind}_pad{d}d").default(x, [1] * 2 * d),
                z(1, *[3] * (d + 1)),
            )
            for kind in ("reflection", "replication")
            for d in (1, 2, 3)
        },
        "_fft_r2c, _fft_c2r": (lambda x: aten._fft_c2r.default(aten._fft_r2c.default(x, [1], 0, True), [1], 2, 4), z(2, 4)),
        "_fft_c2c": (lambda x: aten._fft_c2c.default(torch.complex(x, 2 * x), [1], 0, True), z(2, 4)),
        "aten convolution": (
            lambda x: aten.convolution.default(x, const(4, 3, 2, 2), const(4), [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
            z(2, 3, 3, 3),
        ),
        "aten convolution, transposed": (
            lambda x: aten.convolution.default(x, const(3, 4, 2, 2), const(4), [1, 1], [0, 0], [1, 1], True, [0, 0], 1),
            z(2, 3, 3, 3),
        ),
        "_native_batch_norm_legit_no_training": (
            lambda x: aten._native_batch_norm_legit_no_training.default(x, const(3), const(3, seed=1), MEAN, VARIANCE, 0.1, 0.01)[
                0
            ],
            z(2, 3, 2),
        ),
        "native_layer_norm": (lambda x: aten.native_layer_norm.default(x, [3], const(3), const(3, seed=1), 0.01)[0], z(2, 3)),
        "native_group_norm": (
            lambda x: aten.native_group_norm.default(x, const(4), const(4, seed=1), 2, 4, 3, 2, 0.01)[0],
            z(2, 4, 3),
        ),
        "aten _softmax": (lambda x: aten._softmax.default(x, 1, False), z(2, 3)),
        "_safe_softmax": (lambda x: aten._safe_softmax.default(x, 1), z(2, 3)),
        "aten _log_softmax": (lambda x: aten._log_softmax.default(x, 1, False), z(2, 3)),
        "_prelu_kernel": (lambda x: aten._prelu_kernel.default(x, const(3)), z(2, 3)),
        "_scaled_dot_product_flash_attention_for_cpu": (
            lambda q, k, v: aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v, 0.0, True)[0],
            z(1, 2, 3, 4),
            z(1, 2, 3, 4),
            z(1, 2, 3, 4),
        ),
        "_scaled_dot_product_flash_attention_for_cpu, masked": (
            lambda q: aten._scaled_dot_product_flash_attention_for_cpu.default(q, q, q, attn_mask=const(1, 1, 3, 3), scale=0.4)[0],
            z(1, 2, 3, 4),
        ),
        "_scaled_dot_product_attention_math": (
            lambda q, k: aten._scaled_dot_product_attention_math.default(q, k, k, MASK[:, None].repeat(1, 3, 1)[:1, None], 0.0)[0],
            z(1, 2, 3, 4),
            z(1, 2, 3, 4),
        ),
        "aten max_pool2d_with_indices": (lambda x: aten.max_pool2d_with_indices.default(x, [2, 2], [2, 2])[0], z(1, 2, 4, 4)),
        "pow of a number": (lambda x: aten.pow.Scalar(2.0, x), z(2, 3)),
        "mul by a number": (lambda x: aten.mul.Scalar(aten.add.Scalar(x, 2.0), 3.0), z(2, 3)),
        "aten clamp": (lambda x: aten.clamp.default(x, -0.5, 0.5), z(2, 3)),
        "aten angle": (lambda x, y: (torch.complex(x, y).angle(), x.angle()), z(2, 3), z(2, 3)),
        "aten complex": (
            lambda x, y: (torch.complex(x, y), torch.complex(x, const(2, 3)), torch.complex(const(3), x)),
            z(2, 3),
            z(2, 3),
        ),
        "aten polar": (lambda x, y: (torch.polar(x, y), torch.polar(const(3).abs(), x)), positive(2, 3), z(2, 3)),
        "dstack": (lambda x: torch.dstack([x, const(2, 3)]), z(2, 3)),
        "column_stack": (lambda x: torch.column_stack([x, const(2), x]), z(2, 3)),
        "row_stack": (lambda x: torch.row_stack([x, const(3)]), z(2, 3)),
        "tensordot": (lambda x, y: (torch.tensordot(x, y, 1), torch.tensordot(x, const(3, 2), 1)), z(2, 3), z(3, 2)),
        "fmod": (lambda x: (x.fmod(0.4), x.remainder(0.4), x.frac()), z(2, 3)),
        "fake_quantize_per_tensor_affine": (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.125, 1, -4, 4), z(2, 3)),
        "fake_quantize_per_tensor_affine by tensors": (
            lambda x: torch.fake_quantize_per_tensor_affine(x, SCALES[:1], ZEROS[:1], -4, 4),
            z(2, 3),
        ),
        "fake_quantize_per_channel_affine": (
            lambda x: torch.fake_quantize_per_channel_affine(x.float(), SCALES, ZEROS, 0, -4, 4),
            eighths(2, 3),
        ),
        "_fake_quantize_learnable_per_tensor_affine": (
            lambda x: torch._fake_quantize_learnable_per_tensor_affine(x.float(), SCALES[:1], torch.zeros(1), -4, 4, 1.0),
            eighths(2, 3),
        ),
        "_fake_quantize_learnable_per_channel_affine": (
            lambda x: torch._fake_quantize_learnable_per_channel_affine(x.float(), SCALES, torch.zeros(2), 0, -4, 4, 1.0),
            eighths(2, 3),
        ),
        "fake_quantize_per_tensor_affine_cachemask": (
            lambda x: aten.fake_quantize_per_tensor_affine_cachemask.default(x, 0.125, 1, -4, 4)[0],
            z(2, 3),
        ),
        "fake_quantize_per_channel_affine_cachemask": (
            lambda x: aten.fake_quantize_per_channel_affine_cachemask.default(x.float(), SCALES, ZEROS, 0, -4, 4)[0],
            eighths(2, 3),
        ),
        "aten gelu": (lambda x: aten.gelu.default(x), z(2, 3)),
        "smooth_l1": (lambda x: F.smooth_l1_loss(x, const(2, 3), reduction="none"), z(2, 3)),
    }
)
