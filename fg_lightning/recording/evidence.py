"""The names that a user's functions use: which losses a training step calls, which transforms a hook applies.

What a module and its data tell about the meaning of an output: losses, metrics, and how many classes they know.
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

FRAMEWORKS = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "torchvision")
"""Packages whose functions are known by their names: what they call in turn is not looked up."""

NOT_FOLLOWED = ("forward", "log", "log_dict", "print")
"""Methods that a step calls, but that decide nothing about its loss."""

MOST_FUNCTIONS = 200

LOSS = re.compile("loss|criterion|entropy|similarity|distance", re.IGNORECASE)
"""What classes of losses are called."""


def attribute(found: Any, name: str) -> Any:
    """An attribute that is there, or None: an object may make up others when it is asked, and a property may fail.

    Buffers, parameters and children of a module are attributes, too.
    """
    if not isinstance(getattr_static(found, name, None), property):
        return _static(found, name)
    try:
        return getattr(found, name)
    except Exception:
        return None


def names_in(owner: Any, methods: Iterable[str], is_known: Callable[[str], bool] = lambda name: False) -> set[str]:
    """The names that some methods of an object use, and the functions, methods and losses that they call in turn.

    The name of a function or of a class stands beside the name of the attribute that holds it: `self.criterion` is also
    `CrossEntropyLoss`. Names are read from the code; nothing is called.

    Args:
        owner: of the methods.
        methods: where to begin.
        is_known: whether the name of a loss tells all, so that its code is not read.
    """
    waiting = [(owner, function) for name in methods if (function := _function(_static(owner, name))) is not None]
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
            for value in (_static(holder, name), function.__globals__.get(name)):
                names |= _own_names(value)
                called = _function(_static(value, "forward") if is_loss(value) else value)
                is_told = is_loss(value) and is_known(type(value).__name__)
                if called is not None and not is_told and not _is_of_a_framework(called):
                    waiting.append((value if is_loss(value) else holder, called))
    return names


def is_loss(value: Any) -> bool:
    """Whether it is a module that is called like a loss."""
    return isinstance(value, nn.Module) and LOSS.search(type(value).__name__) is not None


def _static(found: Any, name: str) -> Any:
    """An attribute that is there without asking the object for it; None for a property."""
    value = getattr_static(found, name, None)
    if isinstance(value, property):
        return None
    if value is None and isinstance(found, nn.Module):
        tables = (vars(found).get(table) for table in ("_modules", "_buffers", "_parameters"))
        return next((table[name] for table in tables if table and name in table), None)
    return value


def _names_of_code(code: CodeType) -> Iterator[str]:
    """The names in a function and in those within it, and "matmul" for the operator @."""
    yield from code.co_names
    if any(step.opname == "BINARY_MATRIX_MULTIPLY" or step.argrepr == "@" for step in dis.get_instructions(code)):
        yield "matmul"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_of_code(constant)


def _function(value: Any) -> FunctionType | None:
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
    """What a function, class or loss is called; nothing for other objects."""
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
"""What modules call the number of their classes, or the list of them."""

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
"""What the names of losses say the output is for: vectors that are compared, logits of yes or no, their probabilities, classes,
numbers."""

STEPS = ("training_step", "validation_step")


@dataclass(frozen=True)
class Evidence:
    """
    Attributes:
        kinds: of `KINDS`, those that the losses and metrics speak of; also "binary" and "labels", of metrics alone.
        counts: how many classes the module, its metrics or the user speak of.
        heads: likewise the networks in the module, whose own number may be out of use.
        of_data: likewise the data set, of which a network may tell more classes apart.
        layers: of linear layers what goes in and what comes out.
        ends_in_sigmoid: whether the network may give probabilities.
    """

    kinds: frozenset[str] = frozenset()
    counts: frozenset[int] = frozenset()
    heads: frozenset[int] = frozenset()
    of_data: frozenset[int] = frozenset()
    layers: frozenset[tuple[int, int]] = frozenset()
    ends_in_sigmoid: bool = False

    def knows(self, count: int) -> bool:
        """Whether something speaks of so many classes."""
        return count in self.counts or count in self.heads or count in self.of_data

    def has_head_behind(self, count: int, seen: int) -> bool:
        """Whether a layer takes so many numbers and gives fewer, but enough for the classes that were seen."""
        return any(taken == count and seen <= given < count for taken, given in self.layers)

    def is_for(self, *kinds: str) -> bool:
        """Whether a loss or metric speaks of one of the kinds."""
        return not self.kinds.isdisjoint(kinds)

    @classmethod
    def of(cls, module: nn.Module, data_counts: Iterable[int] = (), given: Iterable[int] = ()) -> Evidence:
        """From a module, which is only read, and the numbers of classes that its data and the user speak of."""
        names = names_in(module, STEPS, lambda name: bool(_kinds_of(name)))
        kinds = {kind for name in names for kind in _kinds_of(name)}
        kinds |= {"embeddings" for base in type(module).__mro__ if "embeddings" in _kinds_of(base.__name__)}
        counts, heads = {*given, *_counts_of(module), *_counts_of(attribute(module, "_hparams"))}, set()
        layers = {(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)}
        for child in _told_apart(module):
            if type(child).__module__.startswith("torchmetrics"):
                kinds |= _kinds_of_metric(child)
                counts |= set(_counts_of(child))
            elif is_loss(child):
                kinds |= set(_kinds_of(type(child).__name__))
                counts |= _weighted_classes(child)
            elif child is not module:
                config = attribute(child, "config")
                heads |= {*_counts_of(child), *_counts_of(config)}
                kinds |= set(_kinds_of_head(type(child).__name__, config))
        ends_in_sigmoid = "sigmoid" in names_in(module, ("forward",)) or any(isinstance(m, nn.Sigmoid) for m in module.modules())
        numbers = frozenset(counts), frozenset(heads), frozenset(data_counts)
        return cls(frozenset(kinds), *numbers, frozenset(layers), ends_in_sigmoid)


def _told_apart(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in a module, without what losses are made of whose names tell all."""
    known = {child for child in module.modules() if is_loss(child) and _kinds_of(type(child).__name__)}
    inside = {child for loss in known for child in loss.modules() if child is not loss}
    return (child for child in module.modules() if child not in inside)


def _kinds_of(name: str) -> list[str]:
    return [kind for kind, pattern in KINDS.items() if pattern.search(name)]


def _kinds_of_head(name: str, config: Any) -> list[str]:
    """What a network of Hugging Face's is for, by its class and its configuration."""
    problem = {"regression": "numbers", "multi_label_classification": "logits", "single_label_classification": "classes"}
    kind = problem.get(getattr(config, "problem_type", None) or "")
    if kind is not None:
        return [kind]
    return _kinds_of(name) if "For" in name else []


def _weighted_classes(loss: nn.Module) -> set[int]:
    """The number of classes that a loss has weights for."""
    weight = attribute(loss, "weight")
    is_of_classes = isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) and isinstance(weight, Tensor)
    return {len(weight)} if is_of_classes else set()


def _kinds_of_metric(metric: nn.Module) -> set[str]:
    name = type(metric).__name__
    prefixes = {"Multiclass": "classes", "Multilabel": "labels", "Binary": "binary"}
    kinds = {kind for prefix, kind in prefixes.items() if name.startswith(prefix)}
    return kinds | {"numbers"} if type(metric).__module__.startswith("torchmetrics.regression") else kinds


def _counts_of(holder: Any) -> Iterator[int]:
    """The numbers of classes that stand in the attributes of an object, or the items of a mapping."""
    if holder is None:
        return
    for name in COUNTS:
        value = holder.get(name) if isinstance(holder, Mapping) else attribute(holder, name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            yield value
        elif isinstance(value, Sequence) and not isinstance(value, str) and value and all(isinstance(v, str) for v in value):
            yield len(value)
