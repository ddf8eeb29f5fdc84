"""Evidence about the meaning of an output: the losses and metrics that a model uses, and the numbers of classes that it names.

Models declare none of this in a common place, and their steps cannot be run to find out. So this module reads the names in the
code of their steps, and the attributes of their modules. It reads bytecode, because the source may be missing.
"""

from __future__ import annotations

import dis
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import getattr_static
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

from torch import Tensor, nn

from fg_lightning.fullgrad.torch_internals import MODULE_TABLES

FRAMEWORKS = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "torchvision")
"""Packages whose functions are known by their names. The code of these functions is not read."""

NOT_FOLLOWED = ("forward", "log", "log_dict", "print")
"""Methods that a step calls, but whose code is not read, because it tells nothing about the loss."""

MOST_FUNCTIONS = 200

LOSS = re.compile("loss|criterion|entropy|similarity|distance", re.IGNORECASE)
"""Names of the classes of losses."""


def read_attribute(holder: Any, name: str) -> Any:
    """An existing attribute of an object, or None. It does not call `__getattr__`, which may invent attributes.

    Buffers, parameters and children of a module are attributes, too. A property that fails counts as missing.
    """
    if not isinstance(getattr_static(holder, name, None), property):
        return _static_attribute(holder, name)
    try:
        return getattr(holder, name)
    except Exception:
        return None


def collect_names(owner: Any, methods: Iterable[str], is_known: Callable[[str], bool] = lambda name: False) -> set[str]:
    """The names that methods of an object use, and the functions, methods and losses that they call in turn.

    An attribute adds the name of the function or class that it holds: `self.criterion` is also `CrossEntropyLoss`. Names are read
    from the code, and no code runs.

    Args:
        owner: the object.
        methods: names of its methods.
        is_known: whether the name of a loss is enough, so that its code is not read. Default: never.
    """
    waiting = [(owner, function) for name in methods if (function := _python_function(_static_attribute(owner, name))) is not None]
    seen: set[CodeType] = set()
    names: set[str] = set()
    while waiting and len(seen) < MOST_FUNCTIONS:
        holder, function = waiting.pop()
        if function.__code__ in seen:
            continue
        seen.add(function.__code__)
        used = set(_names_of_code(function.__code__))
        names |= used
        for name in used.difference(NOT_FOLLOWED):
            for value in (_static_attribute(holder, name), function.__globals__.get(name)):
                names |= _own_names(value)
                called = _python_function(_static_attribute(value, "forward") if is_loss(value) else value)
                is_told = is_loss(value) and is_known(type(value).__name__)
                if called is not None and not is_told and not _is_of_a_framework(called):
                    waiting.append((value if is_loss(value) else holder, called))
    return names


def is_loss(value: Any) -> bool:
    """Whether a value is a module with the name of a loss."""
    return isinstance(value, nn.Module) and LOSS.search(type(value).__name__) is not None


def _static_attribute(holder: Any, name: str) -> Any:
    """An existing attribute, read without running any code of the object; None for a property."""
    value = getattr_static(holder, name, None)
    try:
        if isinstance(value, property):
            return None
    except ReferenceError:  # a weak proxy whose object is gone
        return None
    if value is None and isinstance(holder, nn.Module):
        tables = (vars(holder).get(table) for table in MODULE_TABLES)
        return next((table[name] for table in tables if table and name in table), None)
    return value


def _names_of_code(code: CodeType) -> Iterator[str]:
    """The names in a function and in the functions within it, and "matmul" for the operator @."""
    yield from code.co_names
    if any(step.opname == "BINARY_MATRIX_MULTIPLY" or step.argrepr == "@" for step in dis.get_instructions(code)):
        yield "matmul"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_of_code(constant)


def _python_function(value: Any) -> FunctionType | None:
    """The Python function behind a method, a partial or a decorator; None if there is none."""
    while isinstance(value, partial):
        value = value.func
    value = getattr_static(value, "__func__", value)
    try:
        value = inspect.unwrap(value)
    except (ValueError, TypeError, AttributeError):
        return None
    return value if isinstance(value, FunctionType) else None


def _own_names(value: Any) -> set[str]:
    """The name of a function, class or loss; nothing for other objects."""
    while isinstance(value, partial):
        value = value.func
    if is_loss(value):
        return {type(value).__name__}
    if isinstance(value, (FunctionType, BuiltinFunctionType, type)):
        return {value.__name__}
    return set()


def _is_of_a_framework(function: FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] in FRAMEWORKS


COUNTS = (
    *("num_classes", "n_classes", "nb_classes", "num_class", "n_class", "nclasses", "number_of_classes", "out_classes"),
    *("num_labels", "n_labels", "classes", "class_names", "label_names", "labels"),
)
"""Attributes that hold the number of classes, or the list of them."""

KINDS: dict[str, re.Pattern[str]] = {
    "embeddings": re.compile(
        r"nt_?xent|info_?nce|sup_?con|contrastive|triplet|arc_?face|cos_?face|sphere_?face|arc_?margin|barlow|vic_?reg|dino|swav|byol"
        r"|sim_?siam|sim_?clr|moco|negativecosine|cosineembedding|cosine_embedding|cosine_similarity|cosinesimilarity|pairwise_distance|cdist"
        r"|^(pdist|matmul|mm|bmm|einsum)$|^normalize$|^temperature$|proxynca|multisimilarity|metric_learning",
        re.IGNORECASE,
    ),
    "logits": re.compile(
        r"binary_cross_entropy_with_logits|bcewithlogits|sigmoid_focal_loss|soft_margin_loss|softmarginloss|asymmetricloss"
        r"|^binarycrossentropy$",
        re.IGNORECASE,
    ),
    "probabilities": re.compile(r"^(binary_cross_entropy|bceloss)$", re.IGNORECASE),
    "classes": re.compile(
        r"^(cross_entropy|nll_loss|multi_margin_loss|multimarginloss|nllloss|nllloss2d)$|^(?!binary|bce).*crossentropy"
        r"|^(?!sigmoid).*focal_?loss|dice_?(loss|score|ce|focal)|label_?smooth|jaccard|lovasz|tversky|for\w*(classification|segmentation)$",
        re.IGNORECASE,
    ),
    "numbers": re.compile(
        r"^(mse_loss|l1_loss|smooth_l1_loss|huber_loss|gaussian_nll_loss|poisson_nll_loss|mseloss|l1loss|smoothl1loss|huberloss"
        r"|gaussiannllloss|poissonnllloss|mean_squared_error|mean_absolute_error|r2_score)$",
        re.IGNORECASE,
    ),
}
"""Kind of output -> pattern of the names of its losses. The kinds are vectors that are compared, logits of yes or no, their
probabilities, classes and numbers."""

STEPS = ("training_step", "validation_step")


@dataclass(frozen=True)
class Evidence:
    """
    Attributes:
        kinds: kinds of output that losses and metrics are for: those of `KINDS`, and "binary" and "labels", from metrics only.
        counts: numbers of classes that the module, its metrics or the user give.
        heads: numbers of classes that networks inside the module give. Such a number may be outdated.
        of_data: numbers of classes that the data set gives. A network may distinguish more.
        layers: (in_features, out_features) of the linear layers.
        ends_in_sigmoid: whether the network may return probabilities, because it has a sigmoid.
    """

    kinds: frozenset[str] = frozenset()
    counts: frozenset[int] = frozenset()
    heads: frozenset[int] = frozenset()
    of_data: frozenset[int] = frozenset()
    layers: frozenset[tuple[int, int]] = frozenset()
    ends_in_sigmoid: bool = False

    def knows(self, count: int) -> bool:
        """Whether the module, its networks, the user or the data give this number of classes."""
        return count in self.counts or count in self.heads or count in self.of_data

    def has_head_behind(self, count: int, num_seen: int) -> bool:
        """Whether a linear layer takes `count` numbers and returns fewer, but at least `num_seen`."""
        return any(inputs == count and num_seen <= outputs < count for inputs, outputs in self.layers)

    def is_for(self, *kinds: str) -> bool:
        """Whether a loss or metric is for one of the kinds."""
        return not self.kinds.isdisjoint(kinds)

    @classmethod
    def from_model(cls, module: nn.Module, data_counts: Iterable[int] = (), user_counts: Iterable[int] = ()) -> Evidence:
        """Reads a module without calling it, and adds the numbers of classes that its data and the user give."""
        names = collect_names(module, STEPS, lambda name: bool(_loss_kinds(name)))
        kinds = {kind for name in names for kind in _loss_kinds(name)}
        kinds |= {"embeddings" for base in type(module).__mro__ if "embeddings" in _loss_kinds(base.__name__)}
        # `hparams`, a property of Lightning's modules, would add `_hparams` to a module without hyperparameters
        counts, heads = {*user_counts, *_class_counts(module), *_class_counts(read_attribute(module, "_hparams"))}, set()
        layers = {(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)}
        for child in _modules_to_read(module):
            if type(child).__module__.startswith("torchmetrics"):
                kinds |= _metric_kinds(child)
                counts |= set(_class_counts(child))
            elif is_loss(child):
                kinds |= set(_loss_kinds(type(child).__name__))
                counts |= _weight_counts(child)
            elif child is not module:
                config = read_attribute(child, "config")
                heads |= {*_class_counts(child), *_class_counts(config)}
                kinds |= set(_head_kinds(type(child).__name__, config))
        has_sigmoid = any(isinstance(child, nn.Sigmoid) for child in module.modules())
        ends_in_sigmoid = has_sigmoid or "sigmoid" in collect_names(module, ("forward",))
        numbers = frozenset(counts), frozenset(heads), frozenset(data_counts)
        return cls(frozenset(kinds), *numbers, frozenset(layers), ends_in_sigmoid)


def _modules_to_read(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in a module, without the parts of losses whose names are enough."""
    known = {child for child in module.modules() if is_loss(child) and _loss_kinds(type(child).__name__)}
    inside = {child for loss in known for child in loss.modules() if child is not loss}
    return (child for child in module.modules() if child not in inside)


def _loss_kinds(name: str) -> list[str]:
    return [kind for kind, pattern in KINDS.items() if pattern.search(name)]


def _head_kinds(name: str, config: Any) -> list[str]:
    """The kind of output of a Hugging Face network, by its class and its configuration."""
    problem = {"regression": "numbers", "multi_label_classification": "logits", "single_label_classification": "classes"}
    kind = problem.get(getattr(config, "problem_type", None) or "")
    if kind is not None:
        return [kind]
    return _loss_kinds(name) if "For" in name else []


def _weight_counts(loss: nn.Module) -> set[int]:
    """The number of classes for which a loss has weights."""
    weight = read_attribute(loss, "weight")
    is_of_classes = isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) and isinstance(weight, Tensor)
    return {len(weight)} if is_of_classes else set()


def _metric_kinds(metric: nn.Module) -> set[str]:
    name = type(metric).__name__
    prefixes = {"Multiclass": "classes", "Multilabel": "labels", "Binary": "binary"}
    kinds = {kind for prefix, kind in prefixes.items() if name.startswith(prefix)}
    return kinds | {"numbers"} if type(metric).__module__.startswith("torchmetrics.regression") else kinds


def _class_counts(holder: Any) -> Iterator[int]:
    """The numbers of classes in the attributes of an object, or the items of a mapping."""
    if holder is None:
        return
    for name in COUNTS:
        value = holder.get(name) if isinstance(holder, Mapping) else read_attribute(holder, name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            yield value
        elif isinstance(value, Sequence) and not isinstance(value, str) and value and all(isinstance(v, str) for v in value):
            yield len(value)
