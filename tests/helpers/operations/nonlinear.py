"""Non-linearities that act on each entry, and operations whose input is given by keyword."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.helpers.operations.definition import cases, const, in_place, positive, within_one, z

NON_LINEAR = cases(
    {
        **{name: (getattr(torch, name), z(2, 3)) for name in ("sigmoid", "tanh", "celu", "selu", "nan_to_num")},
        **{name: (getattr(F, name), z(2, 3)) for name in ("silu", "mish", "gelu", "elu", "softplus", "hardshrink", "softshrink")},
        "hardtanh": (lambda x: (F.hardtanh(x), F.hardtanh(x, -0.5, 0.3), F.hardtanh(x, max_val=0.2)), z(4, 5)),
        "relu6": (lambda x: F.relu6(4 * x), z(4, 5)),
        "hardswish": (lambda x: F.hardswish(4 * x), z(4, 5)),
        "hardsigmoid": (lambda x: F.hardsigmoid(4 * x), z(4, 5)),
        "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), z(2, 3)),
        "log_sigmoid": (lambda x: F.logsigmoid(x), z(2, 3)),
        "special.expit": (lambda x: torch.special.expit(x), z(2, 3)),
        "threshold": (lambda x: F.threshold(x, 0.1, 2.0), z(2, 3)),
        "sigmoid_": (in_place(lambda x: x.sigmoid_()), z(2, 3)),
        "tanh_": (in_place(lambda x: x.tanh_()), z(2, 3)),
        "silu_": (in_place(lambda x: F.silu(x, inplace=True)), z(2, 3)),
        "elu_": (in_place(lambda x: F.elu(x, inplace=True)), z(2, 3)),
        "hardswish_": (in_place(lambda x: F.hardswish(x, inplace=True)), z(2, 3)),
        "relu6_": (in_place(lambda x: F.relu6(x, inplace=True)), z(2, 3)),
        "clamp": (lambda x: (x.clamp(-0.5, 0.5), torch.clip(x, max=0.3), x.clamp(min=const(3))), z(2, 3)),
        "clamp with dependent bounds": (lambda x, y: x.clamp(min=y), z(2, 3), z(2, 3)),
        "clamp_min": (lambda x: x.clamp_min(0.2), z(2, 3)),
        "clamp_max": (lambda x: x.clamp_max(0.2), z(2, 3)),
        "clamp_": (in_place(lambda x: x.clamp_(-0.5, 0.5)), z(2, 3)),
        **{name: (getattr(torch, name), z(2, 3)) for name in ("exp", "exp2", "expm1", "erf", "erfc", "sin", "cos", "tan", "atan")},
        **{name: (getattr(torch, name), z(2, 3)) for name in ("sinh", "cosh", "asinh", "sinc")},
        **{name: (getattr(torch, name), positive(2, 3)) for name in ("log", "log2", "log10", "log1p", "digamma", "lgamma")},
        **{name: (getattr(torch, name), within_one(2, 3)) for name in ("asin", "acos", "atanh")},
        "acosh": (lambda x: torch.acosh(x + 1), positive(2, 3)),
        "logit": (lambda x: torch.logit(x.abs() / 2 + 0.3), within_one(2, 3)),
        "xlogy": (lambda x, y: (torch.xlogy(x, y), torch.xlogy(x, 2.0)), z(2, 3), positive(2, 3)),
        "exp_": (in_place(lambda x: x.exp_()), z(2, 3)),
        "complex exp": (lambda x: torch.exp(torch.view_as_complex(x)), z(3, 2)),
        "glu": (lambda x: F.glu(x, 1), z(2, 4)),
    }
)

INPUT_BY_KEYWORD = cases(
    {
        f"{name}(input=x)": (lambda x, name=name, options=options: getattr(torch, name)(input=x, **options), positive(2, 3))
        for name, options in {
            "add": {"other": 1.0},
            "sub": {"other": 1.0},
            "mul": {"other": 2.0},
            "div": {"other": 2.0},
            "pow": {"exponent": 2},
            "maximum": {"other": const(2, 3)},
            "sigmoid": {},
            "exp": {},
            "softmax": {"dim": 1},
            "clamp": {"min": 0.8},
            "flatten": {},
            "sum": {"dim": 1},
            "square": {},
        }.items()
    }
)
