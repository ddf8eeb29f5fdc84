"""One forward and one backward pass of a model under the tape, which leave everything as it was.

The model runs in evaluation mode on detached parameters, so that the backward pass goes to the input alone and nothing of the
model is touched.
"""

from __future__ import annotations

import operator
import sys
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from fg_lightning.fullgrad.call import map_tensors
from fg_lightning.fullgrad.hearing import Term, Visitor
from fg_lightning.fullgrad.readings import Reading, operations_of
from fg_lightning.fullgrad.tape import Tape

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Recording:
    """What one run found, its biases and their gradients apart, which went to the visitor.

    Attributes:
        images: the input as the model saw it, [N, C, *S].
        output: the explained output, [N].
        input_gradient: its gradient at the input, [N, C, *S].
        terms: the biases that were met, in forward order; one whose output leads nowhere was met but never visited.
        unaccounted: operations whose bias could not be computed.
        linearised: operations whose bias came from the general fallback.
    """

    images: Tensor
    output: Tensor
    input_gradient: Tensor
    terms: list[Term]
    unaccounted: list[str]
    linearised: list[str]


class SamplesMixed(RuntimeError):
    """Behind some operation the samples of the batch could not be told apart.

    Attributes:
        operation: that operation and its module.
        output: the explained output of the whole batch, [N].
    """

    def __init__(self, operation: str, output: Tensor) -> None:
        super().__init__(operation)
        self.operation = operation
        self.output = output


def record(
    model: nn.Module,
    images: Tensor,
    select: Callable[[Any], Tensor],
    visitor: Visitor,
    *,
    additional_forward_args: tuple[Any, ...] = (),
    reading: Reading = "exact",
    autocast: bool = False,
) -> Recording:
    """One forward and one backward pass of `model`, in evaluation mode, with every bias handed to `visitor`.

    The model, its buffers, the images and the random state are left as they were, also when it raises.

    Args:
        model: any module.
        images: [N, C, *S], floating-point.
        select: from the model's output to the numbers to explain, [N].
        visitor: called in the backward pass, last operation first.
        additional_forward_args: what the model's forward takes after the images; constants.
        reading: which function is decomposed, see readings.py.
        autocast: keep the autocast that is active around the call; otherwise everything runs in the parameters' own precision.

    Raises:
        SamplesMixed: where the samples of a batch of several cannot be told apart.
        ValueError: if the selected output does not depend on the images.
    """
    with undisturbed(model, images.device, autocast=autocast):
        model = unwrapped(model)
        leaf = as_the_model_takes(images, model).requires_grad_()
        names = {id(module): name for name, module in model.named_modules()}
        tape = Tape(x := leaf.clone(), visitor, names, operations_of(reading))
        with closing(tape.hearing):
            inputs, parameters = (x, *map_tensors(_lifted, additional_forward_args)), constants_of(model)
            with tape.following_modules(), tape.meeting_what_torch_hides(), tape:
                output = _explained(model, parameters, inputs, select)
            if not output.requires_grad:
                raise ValueError(
                    "the model's output does not depend on the images, so there is nothing to decompose; "
                    "does its forward detach them, use torch.inference_mode() or torch.func.vjp, or return a class index?"
                )
            if tape.mixed_by and tape.n > 1:
                raise SamplesMixed(tape.mixed_by, output.detach())
            with tape.hearing.on():
                (gradient,) = torch.autograd.grad(output.sum(), leaf, materialize_grads=True)
    return Recording(leaf.detach(), output.detach(), gradient, tape.hearing.terms, tape.unaccounted, tape.linearised)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network in what runs it on several devices, compiles it, or, as Fabric does, converts its inputs."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrapped(model.module)
    for name in ("_orig_mod", "_forward_module"):  # of torch.compile, of Fabric.setup
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return unwrapped(inner)
    return model


def _explained(model: nn.Module, constants: dict[str, Tensor], inputs: tuple[Any, ...], select: Callable[[Any], Tensor]) -> Tensor:
    """The selected output, [N]; an error of the model or of `select` is marked as theirs."""
    try:
        return select(_called(model, constants, inputs))
    except Exception as error:
        error._fg_in_forward = True  # type: ignore[attr-defined]
        raise


def _called(model: nn.Module, constants: dict[str, Tensor], inputs: tuple[Any, ...]) -> Any:
    """The model's output, its parameters held constant.

    Raises:
        ValueError: if a planar network fails on what may be a single image.
    """
    try:
        return torch.func.functional_call(model, constants, inputs, tie_weights=False)
    except (RuntimeError, ValueError, IndexError) as error:
        shape = tuple(inputs[0].shape)
        if len(shape) == 3 and any(isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) for m in model.modules()):
            raise ValueError(
                f"the model failed on images of shape {shape}, read as [N, C, L]; "
                f"a single image needs a batch dimension, images[None] ({error})"
            ) from error
        raise


def as_the_model_takes(images: Tensor, model: nn.Module) -> Tensor:
    """The images in the precision that the parameters will have."""
    precision = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
    return _lifted(images).to(torch.float32 if precision in HALF else precision)


def _lifted(tensor: Tensor) -> Tensor:
    """A tensor cut off from any graph, half precision lifted to float32, usable by autograd; a copy only where it has to be."""
    tensor = tensor.detach()
    if tensor.dtype in HALF:
        return tensor.float()
    return tensor.clone() if tensor.is_inference() else tensor


def constants_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters as constants, and copies of the buffers, which the model may write to; one under each of the names that it has."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    constants: dict[Tensor, Tensor] = {parameter: _lifted(parameter) for parameter in parameters.values()}
    constants |= {buffer: _lifted(buffer).clone() for buffer in buffers.values()}
    return {name: constants[tensor] for name, tensor in (parameters | buffers).items()}


@contextmanager
def undisturbed(model: nn.Module, device: torch.device, *, autocast: bool = False) -> Iterator[None]:
    """Runs a model in evaluation mode, eagerly and with gradients; it and the random state are put back, also when it raises.

    Random state, flags and what of torch is patched belong to all threads, so that a second one waits.

    Args:
        model: any module.
        device: where it runs.
        autocast: keep the autocast that is active around it.
    """
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(_ONE_THREAD)
        enter(torch.inference_mode(False))
        enter(torch.enable_grad())
        enter(torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else []))
        enter(_evaluation(model))
        enter(_eager())
        if not autocast:
            enter(torch.autocast(device.type, enabled=False))
        yield


_ONE_THREAD = RLock()


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, set flag by flag, since `eval()` may be overridden to do more; all attributes of all modules are put back.

    A forward counts its calls in them, and keeps what it would compute again: weights that are constants here, and what holds in
    evaluation alone.
    """
    modules = list(model.modules())
    in_training = [module for module in modules if module.training]
    kept = list(_contents(modules))
    try:
        for module in in_training:
            module.training = False
        yield
    finally:
        for container, items in kept:
            _put_back(container, items)
        for module in in_training:
            module.training = True


_CONTAINERS = {dict, OrderedDict, defaultdict, list, set, deque}
_TORCHS_OWN = vars(nn.Module()).keys() - {"_buffers", "_modules"}  # functional_call puts the parameters back


def _contents(modules: Iterable[nn.Module]) -> Iterator[tuple[Any, Any]]:
    """The attributes of each module, and each of them that is a plain container, with copies of what is in them."""
    for module in modules:
        attributes = vars(module)
        yield attributes, attributes.copy()
        for name in attributes.keys() - _TORCHS_OWN:
            value = attributes[name]
            if type(value) in _CONTAINERS:
                yield value, value.copy()


def _put_back(container: Any, items: Any) -> None:
    """Let a container hold these items again; it stays the object that it is."""
    if isinstance(container, dict):
        container.update(items)
        if len(container) != len(items):
            for added in container.keys() - items.keys():
                del container[added]
    elif len(container) != len(items) or not all(map(operator.is_, container, items)):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(items)


@contextmanager
def _eager() -> Iterator[None]:
    """Compiled modules and functions run as they are written; nothing to do where torch has compiled nothing."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        # torch advises on modules compiled by their call that are hooked, which is what decomposing them takes.
        warnings.filterwarnings("ignore", message="Using `torch.compile\\(module\\)` when there are global hooks")
        yield
