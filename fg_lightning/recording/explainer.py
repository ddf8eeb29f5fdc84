"""Explains a network on one probe: calls it, decides once what its output means, and computes maps, answers and terms."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import chain
from typing import Any, Union

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fg_lightning.fullgrad import FullGrad, FullGradients, Psi, TargetError, main_output
from fg_lightning.fullgrad.decomposition import as_several
from fg_lightning.fullgrad.readings import Reading
from fg_lightning.history.records import Answers, Explanation, LayerTerms
from fg_lightning.recording.called_module import CalledModule, Forward, ScoredModule
from fg_lightning.recording.masks import FIELD, region_masks
from fg_lightning.recording.methods import Method, draw_maps
from fg_lightning.recording.output_evidence import Evidence
from fg_lightning.recording.output_meaning import YES_OR_NO, Meaning, infer_task, task_by_name
from fg_lightning.recording.probe import HOW_TO_EXPLAIN_A_DETECTOR, Probe, are_detections, describe_parts, tensor_parts
from fg_lightning.recording.side_by_side import join_side_by_side
from fg_lightning.recording.task import Chosen, Classes, Entry, ProbeTarget, Regions, Task

FROM_REGIONS = "the region of the explained class in the label map"

SCORE = re.compile("pred_score|anomaly|distance|error", re.IGNORECASE)
"""Names of parts of an output that are numbers and not probabilities."""


class Explainer:
    """Explains a network on one probe. The explained classes stay fixed after the first explanation.

    Args:
        probe: the images. The first explanation replaces its labels by the labels that are explained.
        psi: FullGrad's post-processing. Default: "absolute".
        target: what to explain, see `ProbeTarget`. Default: None, the labels.
        forward: (module, batch) -> output, which calls the module. Default: None, the module is called on the images alone.
        task: meaning of the output, one of `CHOICES`. Default: None, the evidence decides.
        resumed_task: the task of an earlier run, which fixed the probe's labels. Default: None.
        evidence: reads a module and its data, before the first explanation.
        implicit: whether FullGrad draws implicit biases. Default: True.
        reading: which function FullGrad decomposes. Default: "exact".

    Attributes:
        labels: the probe's original labels; after the first explanation, those that belong to the output.
        misfit: after the first explanation, the reason why the labels do not fit the output; None if they fit.
        assumed: after the first explanation, the assumptions about the output; None if the evidence decided.
        is_guess: after the first explanation, whether the task is a guess.

    Raises:
        ValueError: if there is not a target for each image.
    """

    def __init__(
        self,
        probe: Probe,
        psi: Union[str, Psi] = "absolute",
        target: ProbeTarget = None,
        forward: Forward | None = None,
        task: str | None = None,
        resumed_task: Task | None = None,
        evidence: Callable[[nn.Module], Evidence] = Evidence.from_model,
        implicit: bool = True,
        reading: Reading = "exact",
    ) -> None:
        self.labels = probe.labels
        self.misfit: str | None = None
        self.assumed: str | None = None
        self.is_guess = False
        self._candidates = probe.candidates
        if target is not None and not callable(target):
            probe = replace(probe, labels=_expand_target(target, len(probe)), others=())
        self.probe = probe
        self.task = Chosen(target) if callable(target) else resumed_task
        self._of_fullgrad: dict[str, Any] = {"psi": psi, "implicit": implicit, "reading": reading}
        self._forward = forward
        self._target = target
        self._task_name = task
        self._evidence = evidence
        self._is_fixed = self.task is not None
        self._which = 0

    def explain(self, module: nn.Module, device: torch.device | str = "cpu") -> Explanation:
        """Computes maps, answers and terms with one forward and one backward pass.

        Raises:
            TargetError: if the target is not a class of the output.
            ValueError: if `FullGrad.attribute_with_terms` raises it.
        """
        parts = [self._explain_part(module, part) for part in self._parts(device)]
        maps, terms, outputs, labels = zip(*parts, strict=True)
        assert self.task is not None
        if not self._is_fixed:
            self.misfit = self.task.misfit(outputs[0], self._select(self.probe.candidates))
            fixed = None if labels[0] is None else torch.cat(labels).cpu()
            self.probe, self._is_fixed, self._which = replace(self.probe, labels=fixed, others=()), True, 0
        answers = [self.task.answers(output, fixed) for output, fixed in zip(outputs, labels, strict=True)]
        if isinstance(self.task, Regions):
            self.probe = self._mask_regions(torch.cat([answer.explained for answer in answers if answer.explained is not None]))
        num_classes = self.task.num_classes(outputs[0])
        joined = FullGradients.concatenate(terms)
        explanation = _build_explanation(module, torch.cat(maps), joined, _join_answers(answers), num_classes)
        return replace(explanation, num_inputs=len(self.probe.inputs or (self.probe.images,)))

    def _mask_regions(self, classes: Tensor) -> Probe:
        """The probe with masks: the regions of the explained classes in the label maps that came with it."""
        labels, fixed, masks = self.labels, self.probe.labels, self.probe.masks
        if labels is None or labels.ndim < 2 or fixed is None or self._target is not None:
            return self.probe
        origin = self.probe.masks_from
        is_label_map = masks is not None and origin.startswith(FIELD) and torch.equal(masks.flatten(1), labels.flatten(1) != 0)
        if masks is not None and origin != FROM_REGIONS and not is_label_map:
            return self.probe
        return replace(self.probe, masks=region_masks(fixed, classes.cpu(), self.probe.images), masks_from=FROM_REGIONS)

    def draw_maps(self, method: Method, module: nn.Module, device: torch.device | str = "cpu") -> Float[Tensor, "n 1 *s"]:
        """The maps of another method, for the same numbers as the last explanation.

        Args:
            method: a name in METHODS or a factory.
            module: the network that was explained.
            device: computes the maps. Default: the CPU.

        Raises:
            ValueError: if the method returns no maps of the images. Errors of the method are passed on.
        """
        assert self.task is not None
        score, needs_batch = self._score, self._forward is not None or isinstance(self.task, Chosen)
        scored = ((ScoredModule(module, part, self._forward, score, needs_batch=needs_batch), part) for part in self._parts(device))
        return torch.cat([draw_maps(method, model, part.model_inputs, **self._of_fullgrad) for model, part in scored])

    def _parts(self, device: torch.device | str) -> list[Probe]:
        """The probe in parts, each of which is explained in one pass."""
        probe = self.probe.to(device)
        return [probe] if self._forward is not None else probe.parts()

    def _score(self, output: Any, candidates: tuple[Tensor, ...]) -> Tensor:
        assert self.task is not None
        return self.task.score(output, self._select(candidates))

    def _explain_part(self, module: nn.Module, probe: Probe) -> tuple[Tensor, FullGradients, Any, Tensor | None]:
        """The maps, terms, output and fixed labels of a part of the probe."""
        called = CalledModule(module, probe, self._forward)
        evidence = self._evidence(module) if self.task is None else Evidence()  # while no operation is recorded
        outputs: list[Any] = []  # the first is of the whole batch, any others of single images

        def score(called_output: tuple[Any, tuple[Tensor, ...]]) -> Tensor:
            output, candidates = called_output
            outputs.append(output)
            if self.task is None:
                self._decide_task(output, probe, evidence)
            return self._score(output, candidates)

        maps, terms = FullGrad(called, **self._of_fullgrad).attribute_with_terms(probe.model_inputs, score, called.arguments)
        assert self.task is not None
        maps = join_side_by_side(maps) if isinstance(maps, tuple) else maps
        return maps.detach().float(), terms, outputs[0], self.task.fix_labels(outputs[0], self._select(probe.candidates))

    def _decide_task(self, output: Any, probe: Probe, evidence: Evidence) -> None:
        """Decides the task, from a part of the probe.

        Raises:
            TargetError: if the output is that of a detector, or does not have the user's class or shape.
        """
        if are_detections(output):
            raise TargetError(f"the output is a list of mappings, as detectors return it; {HOW_TO_EXPLAIN_A_DETECTOR}")
        scores = main_output(output)
        if scores.ndim and len(scores) != len(probe.images):
            raise TargetError(
                f"the network returns {len(scores)} rows for {len(probe.images)} images, as an ensemble does; "
                "pass a function from the output to one number for each image: target=function"
            )
        if any(SCORE.search(name) for name, part in tensor_parts(output).items() if part is scores):
            evidence = replace(evidence, kinds=evidence.kinds.difference(YES_OR_NO, {"binary"}) | {"numbers"})
        if self._target is not None:
            self.task = self._task_of_target(scores, probe, evidence)
            return
        if _are_features(scores, output, evidence):
            evidence = replace(evidence, kinds=frozenset({"embeddings"}), heads=frozenset())
        meaning = self._meaning(scores, probe.images, probe.candidates, evidence)
        notes = [note for note in (describe_parts(output), meaning.assumed) if note is not None]
        self.task, self.assumed, self.is_guess = meaning.task, "; ".join(notes) or None, meaning.assumed is not None
        self._which = len(probe.candidates) if meaning.labels is None else meaning.labels
        if meaning.labels is not None:
            self.labels = self._candidates[meaning.labels]
        elif self.task.has_classes:
            self.labels = None  # the labels do not belong to this output

    def _meaning(self, scores: Tensor, images: Tensor, candidates: Sequence[Tensor], evidence: Evidence) -> Meaning:
        if self._task_name is not None:
            return task_by_name(self._task_name, scores, images, candidates, evidence)
        return infer_task(scores, images, candidates, evidence, of_all=self._candidates)

    def _task_of_target(self, scores: Tensor, probe: Probe, evidence: Evidence) -> Task:
        """The task of a class that the user chose, or of an entry of an output without classes.

        Raises:
            TargetError: if the output has no such class.
        """
        wrong = "the output is one number" if scores.ndim < 2 else None
        task: Task = Classes() if scores.ndim == 2 else Regions()
        if wrong is None:
            rows = tuple(candidate[: len(scores)] for candidate in self._candidates)
            meaning = self._meaning(scores, probe.images, rows, evidence)
            if scores.ndim == 2 and not meaning.task.has_classes and meaning.assumed is None:
                task = Entry()
            elif isinstance(meaning.task, type(task)):
                task = meaning.task
            wrong = task.misfit(scores, probe.labels)
        if wrong is not None:
            raise TargetError(f"target {self._target} is not a class: {wrong}")
        return task

    def _select(self, candidates: Sequence[Tensor]) -> Tensor | None:
        """The labels among their candidates; None if none is."""
        return candidates[self._which] if self._which < len(candidates) else None


def device_of(model: nn.Module) -> torch.device:
    """The device of a model: its attribute `device`, else that of its first parameter or buffer, else the CPU."""
    device = getattr(model, "device", None)
    if isinstance(device, torch.device):
        return device
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def _are_features(scores: Tensor, output: Any, evidence: Evidence) -> bool:
    """Whether another part of the output has as many entries as there are classes, but this one does not."""
    shapes = [part.shape for part in tensor_parts(output).values() if part is not scores and part.ndim == 2]
    counts = evidence.counts | evidence.of_data
    return scores.ndim == 2 and scores.shape[1] not in counts and any(columns in counts for _, columns in shapes)


def _expand_target(target: int | Sequence[int] | Tensor, num_images: int) -> Tensor:
    """A class for each image.

    Raises:
        ValueError: if there are not as many.
    """
    classes = torch.as_tensor(target)
    if classes.is_floating_point() or classes.shape not in ((), (num_images,)):
        raise ValueError(f"target must be a class, one for each of {num_images} images or a function of the output, not {target!r}")
    return classes.expand(num_images).clone()


def _join_answers(parts: list[Answers]) -> Answers:
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Answers)}
    return Answers(**{name: None if values[0] is None else torch.cat(values).detach().cpu() for name, values in columns.items()})


def _build_explanation(
    module: nn.Module, maps: Tensor, terms: FullGradients, answers: Answers, num_classes: int | None
) -> Explanation:
    kinds = {"explicit": terms.bias_terms, "implicit": terms.implicit_terms}
    names = [("input", ""), *((kind, name) for kind, of_kind in kinds.items() for name in of_kind)]
    of_input = torch.stack(as_several(terms.input_term)).sum(0)
    table = torch.stack([of_input, *(term for of_kind in kinds.values() for term in of_kind.values())]).cpu()
    output = terms.output.cpu()
    total = output.abs().sum()
    shares = ((output.sign() * table).sum(1) / total).tolist() if total > 0 else [None] * len(table)
    places = {name: place for place, (name, _) in enumerate(module.named_modules())}
    layers = [
        LayerTerms(CalledModule.own_name(name), kind, share, tuple(of_each))
        for (kind, name), share, of_each in zip(names, shares, table.tolist(), strict=True)
    ]
    layers.sort(key=lambda layer: (layer.kind != "input", places.get(layer.module, -1), layer.kind))
    explicit = 1 + len(terms.bias_terms)
    sums = {"input_term": table[0], "bias_term": table[1:explicit].sum(0), "implicit_term": table[explicit:].sum(0)}
    per_image = {"output": output, **sums, "completeness_error": terms.completeness_error.cpu()}
    lost, num_drawn = terms.lost, len(terms.drawn)
    return Explanation(maps.cpu(), answers, per_image, layers, num_classes, terms.missing_ops, lost, num_drawn)
