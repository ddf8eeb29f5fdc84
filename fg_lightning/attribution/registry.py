"""The methods to compare, by name."""

from __future__ import annotations

from typing import Union

from fg_lightning.attribution import gradients
from fg_lightning.attribution.controls import blur_method, edges, random
from fg_lightning.attribution.gradcam import gradcam
from fg_lightning.attribution.guided_backprop import guided_backprop
from fg_lightning.attribution.method import Factory, method_from
from fg_lightning.fullgrad import FullGrad, SimpleFullGrad, SmoothFullGrad

METHODS: dict[str, Factory] = {
    "random": method_from(random),
    "edges": method_from(edges),
    "gradient": method_from(gradients.gradient),
    "input_x_gradient": method_from(gradients.input_x_gradient),
    "integrated_gradients": method_from(gradients.integrated_gradients),
    "smoothgrad": method_from(gradients.smoothgrad),
    "smoothgrad_squared": method_from(gradients.smoothgrad_squared),
    "vargrad": method_from(gradients.vargrad),
    "guided_backprop": method_from(guided_backprop),
    "gradcam": method_from(gradcam),
    "fullgrad": FullGrad,
    "simple_fullgrad": SimpleFullGrad,
    "smooth_fullgrad": SmoothFullGrad,
    "blurred_random": blur_method(method_from(random)),
    "blurred_fullgrad": blur_method(FullGrad),
}
"""name -> factory: (model, settings by name) -> an attribution with `attribute(images, target, additional_forward_args)`.

It returns maps [N, 1, *S], at least 0 (except for psi="signed"). The user can add a method with a factory from `method_from`:
`METHODS["mine"] = factory`.
"""

CONTROLS = ("random", "edges", "blurred_random")
"""The methods that do not depend on the model. The other methods should beat them."""


def find_method(method: Union[str, Factory]) -> Factory:
    """The factory of a method.

    Args:
        method: a name in `METHODS`, or a factory, which is returned unchanged.

    Raises:
        ValueError: if there is no method of that name.
    """
    if callable(method):
        return method
    if method not in METHODS:
        raise ValueError(
            f"method must be one of {', '.join(METHODS)}, not {method!r}; "
            "add your own with fg_lightning.attribution.METHODS[name] = factory"
        )
    return METHODS[method]
