"""What a module and its data tell about the meaning of an output: losses, metrics, and how many classes they know."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fg_lightning.callbacks.code import attribute, is_loss, names_in

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
