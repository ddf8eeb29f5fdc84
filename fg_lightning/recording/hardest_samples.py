"""The loss of each sample, by which the hardest samples are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fg_lightning.fullgrad import main_output
from fg_lightning.fullgrad.preserve_model import as_model_input, copy_argument, preserve_model
from fg_lightning.recording.called_module import CalledModule, Forward
from fg_lightning.recording.dataset_metadata import DatasetMetadata
from fg_lightning.recording.explainer import Explainer, device_of
from fg_lightning.recording.output_evidence import Evidence
from fg_lightning.recording.probe import NoProbe, Probe
from fg_lightning.recording.settings import Settings
from fg_lightning.recording.task import Binary, Classes, Regions, SeveralClasses, Task, fits_classes

FEW = 8
"""Number of images that suffice to decide what the output means."""

LEAST = 1e-12
"""Smaller probabilities are replaced by it, so that every loss is finite."""

WORDS = {
    Regions: "mean cross-entropy of the places",
    SeveralClasses: "mean binary cross-entropy of the classes",
    Classes: "cross-entropy",
    Binary: "binary cross-entropy",
    Task: "mean absolute error",
}
"""Name of each task's loss. A task has the first of these classes that it is an instance of."""


class SampleLosses:
    """Measures the loss of each sample of a batch. The first batch decides what the output means.

    Args:
        build_explainer: makes the explainer of a probe. The explainer decides what the output means.
        forward: (module, batch) -> output, which calls the network. Default: None, it is called on the images alone.
    """

    def __init__(self, build_explainer: Callable[[Probe], Explainer], forward: Forward | None = None) -> None:
        self._build_explainer = build_explainer
        self._forward = forward
        self._task: Task | None = None
        self._which = 0

    @classmethod
    def from_settings(cls, settings: Settings, data: Sequence[Any] = ()) -> SampleLosses:
        """Uses the labels and the evidence of a run. It ignores the target of the run.

        Args:
            settings: of the run.
            data: loaders, data sets or datamodules, in which the number of classes is searched. Default: none.
        """
        names = settings.class_names

        def read_evidence(model: nn.Module) -> Evidence:
            counts = DatasetMetadata.from_model(model, *data).class_counts()
            return Evidence.from_model(model, counts, () if names is None else (len(names),))

        def build_explainer(probe: Probe) -> Explainer:
            return Explainer(probe, forward=settings.forward, task=settings.task, evidence=read_evidence)

        return cls(build_explainer, settings.forward)

    @property
    def words(self) -> str:
        """Name of the loss."""
        return next((words for kind, words in WORDS.items() if isinstance(self._task, kind)), "loss")

    def measure(self, module: nn.Module, batch: Any) -> Float[Tensor, " n"]:
        """The loss of each image of a batch, on the CPU; -inf for images without a label.

        Raises:
            NoProbe: if there is no loss, because no labels belong to the output.
        """
        device, has_batch = device_of(module), self._forward is not None
        if self._task is None:
            self._decide(module, Probe.from_batch(batch, FEW, with_batch=has_batch), device)
        probe = Probe.from_batch(batch, 2**31, with_batch=has_batch).to(device)
        called = CalledModule(module, probe, self._forward)
        with preserve_model(called, device), torch.no_grad():
            output, _ = called(as_model_input(probe.images, called), *map(copy_argument, called.arguments))
        assert self._task is not None
        losses = sample_losses(self._task, output, probe.candidates[self._which])
        return losses.float().nan_to_num(nan=-torch.inf, posinf=torch.inf).cpu()

    def _decide(self, module: nn.Module, probe: Probe, device: torch.device) -> None:
        probe = probe.to("cpu")  # as a recorder does: masks are there
        explainer = self._build_explainer(probe)
        explainer.explain(module, device)
        which = [i for i, candidate in enumerate(probe.candidates) if candidate is explainer.labels]
        if not which or not any(isinstance(explainer.task, kind) for kind in WORDS):
            raise NoProbe("the hardest images cannot be found without labels that belong to the output")
        self._task, self._which = explainer.task, which[0]


def sample_losses(task: Task, output: Any, labels: Tensor) -> Float[Tensor, " n"]:
    """The loss of each sample: of classes the cross-entropy, of numbers the mean absolute error.

    Args:
        task: what the output means.
        output: the network's output.
        labels: the original labels, with a row for each sample.

    Returns:
        [N]; -inf for samples without a label.

    Raises:
        NoProbe: if the labels do not have the shape of the output.
    """
    scores = main_output(output)
    labels = labels.to(scores.device)
    if isinstance(task, Regions):
        return _region_losses(task, scores, labels)
    if isinstance(task, Classes):
        probabilities = task.probabilities(scores).clamp_min(LEAST)
        if labels.shape == scores.shape and isinstance(task, SeveralClasses):
            return F.binary_cross_entropy(probabilities.clamp(0, 1), labels.to(scores).clamp(0, 1), reduction="none").mean(1)
        if labels.shape == scores.shape:
            return -(labels.to(scores) * probabilities.log()).sum(1)
        return _class_losses(probabilities, labels)
    if isinstance(task, Binary):
        probability = task.probability(task.score(output, None))
        both = torch.stack([1 - probability, probability], 1).clamp_min(LEAST)
        return _class_losses(both, labels)
    if labels.shape == scores.shape or labels.numel() == scores.numel():
        return (scores.flatten(1) if scores.ndim > 1 else scores[:, None]).sub(labels.reshape(len(scores), -1)).abs().mean(1)
    raise NoProbe(f"labels {list(labels.shape)} cannot be compared with an output {list(scores.shape)}")


def _class_losses(probabilities: Tensor, labels: Tensor) -> Tensor:
    """-log of the probability of each label, [N, *S]; -inf for labels that are none of the K classes of [N, K, *S]."""
    is_class = fits_classes(labels, probabilities)
    chosen = probabilities.gather(1, torch.where(is_class, labels, 0).long()[:, None]).squeeze(1)
    return torch.where(is_class, -chosen.log(), -torch.inf)


def _region_losses(task: Regions, scores: Tensor, labels: Tensor) -> Tensor:
    probabilities = torch.cat([-scores, scores], 1).sigmoid() if scores.shape[1] == 1 else scores.softmax(1)
    losses = _class_losses(probabilities.clamp_min(LEAST), task.fix_labels(scores, labels)).flatten(1)
    is_labelled = losses.isfinite()
    return torch.where(is_labelled.any(1), losses.where(is_labelled, 0).sum(1) / is_labelled.sum(1).clamp_min(1), -torch.inf)
