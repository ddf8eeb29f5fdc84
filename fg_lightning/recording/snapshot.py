"""A look: what the monitor finds at one moment of training."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Union

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fg_lightning.callbacks.module_call import Called, Forward
from fg_lightning.fullgrad import FullGrad, FullGradients
from fg_lightning.fullgrad.decomposition import joined
from fg_lightning.fullgrad.postprocess import Psi
from fg_lightning.fullgrad.target import TargetError, main_output
from fg_lightning.metrics.concentration import gini_index
from fg_lightning.metrics.drift import cosine_drift
from fg_lightning.recording.evidence import Evidence
from fg_lightning.recording.output_meaning import YES_OR_NO, Meaning, task_as_told, task_of
from fg_lightning.recording.probe import HOW_TO_WATCH_A_DETECTOR, Probe, are_detections, other_parts, parts_of
from fg_lightning.recording.task import Answers, Chosen, Classes, Entry, MonitorTarget, Regions, Task

SCORE = re.compile("pred_score|anomaly|distance|error", re.IGNORECASE)
"""What a part of an output is called that is a number and no probability."""

NUMBERS = {
    "completeness_error": "mean over the probe of |f - sum of all terms| / |f|",
    "completeness_error_max": "the largest of them",
    "input_share": "what share of the output the input explains",
    "bias_share": "the explicit biases",
    "implicit_share": "and the implicit biases",
    "drift": "mean cosine distance of the maps to those of the look before",
    "drift_from_untrained": "and to those of the untrained network",
    "concentration": "mean Gini index of the maps: 0 if all pixels count alike, near 1 if few count",
}
"""The scalars of a look: columns of `history.csv`, and logged with `fullgrad/` before their names."""


@dataclass(frozen=True)
class Look:
    """The numbers of one moment; what is not defined, such as shares of an output that is zero, is left out.

    Attributes:
        epoch: how many epochs the network had been trained for; 0 is the untrained one.
        step: the step of Lightning's loggers.
        numbers: by the keys under which they are logged.
    """

    epoch: int
    step: int
    numbers: dict[str, float]

    @property
    def title(self) -> str:
        return "untrained" if self.epoch == self.step == 0 else f"epoch {self.epoch}"


@dataclass(frozen=True)
class Layer:
    """What share of the output the biases of one module explain.

    Attributes:
        module: its qualified name; empty for the input.
        kind: input, explicit or implicit.
        share: sum over the probe of sign(f) times term, over the sum of |f|; None where that is 0.
        terms: what they add to each image's output.
    """

    module: str
    kind: str
    share: float | None
    terms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Findings:
    """All that one look finds of N images, on the CPU.

    Attributes:
        maps: saliency maps, [N, 1, *S].
        answers: what the network says.
        terms: output, input_term, bias_term, implicit_term and completeness_error, each [N].
        layers: the input, then modules in the order in which they are registered.
        classes: how many classes the network tells apart; None where it tells none.
        unaccounted: operations whose bias is missing from the sum.
    """

    maps: Float[Tensor, "n 1 *s"]
    answers: Answers
    terms: dict[str, Float[Tensor, " n"]]
    layers: list[Layer]
    classes: int | None = None
    unaccounted: tuple[str, ...] = ()


class Looker:
    """Looks at a network through one probe, and goes on explaining what it explained first.

    Args:
        probe: the images; once they were looked at, its labels are what is explained.
        psi: FullGrad's post-processing.
        target: what is explained.
        forward: how the module is called.
        task: as an earlier run found it, where the probe's labels are those that it fixed.
        told: what the user says that the output means, one of `CHOICES`; None to go by evidence.
        evidence: what is known of a module and its data, asked for at the first look.

    Attributes:
        labels: the probe's labels as they came; once a look was taken, those of what is explained.
        misfit: what is wrong with them, once a look was taken; None if nothing is.
        assumed: what the evidence did not decide, once a look was taken; None if it did.

    Raises:
        ValueError: if there is not a target for each image.
    """

    def __init__(
        self,
        probe: Probe,
        psi: Union[str, Psi] = "absolute",
        target: MonitorTarget = None,
        forward: Forward | None = None,
        task: Task | None = None,
        told: str | None = None,
        evidence: Callable[[nn.Module], Evidence] = Evidence.of,
    ) -> None:
        self.labels = probe.labels
        self.misfit: str | None = None
        self.assumed: str | None = None
        self._candidates = probe.candidates
        if target is not None and not callable(target):
            probe = replace(probe, labels=_for_each(target, len(probe)), others=())
        self.probe = probe
        self.task = Chosen(target) if callable(target) else task
        self._psi = psi
        self._forward = forward
        self._target = target
        self._told = told
        self._evidence = evidence
        self._is_fixed = self.task is not None
        self._which = 0

    def look(self, module: nn.Module, device: torch.device) -> Findings:
        """Maps, answers and terms, from one forward and one backward pass.

        Raises:
            TargetError: if the target is no class of the output.
            ValueError: what `FullGrad.attribute_with_terms` raises.
        """
        probe = self.probe.to(device)
        parts = [self._look(module, part) for part in ([probe] if self._forward is not None else probe.parts())]
        maps, terms, outputs, labels = zip(*parts, strict=True)
        assert self.task is not None
        if not self._is_fixed:
            self.misfit = self.task.misfit(outputs[0], self._of(self.probe.candidates))
            fixed = None if labels[0] is None else torch.cat(labels).cpu()
            self.probe, self._is_fixed, self._which = replace(self.probe, labels=fixed, others=()), True, 0
        answers = [self.task.answers(output, fixed) for output, fixed in zip(outputs, labels, strict=True)]
        classes = self.task.classes(outputs[0])
        return _findings(module, torch.cat(maps), joined(list(terms)), _joined(answers), classes)

    def _look(self, module: nn.Module, probe: Probe) -> tuple[Tensor, FullGradients, Any, Tensor | None]:
        """Of one part of the probe: maps, terms, the output, and the labels that stay explained."""
        called = Called(module, probe, self._forward)
        evidence = self._evidence(module) if self.task is None else Evidence()  # while no operation is recorded
        outputs: list[Any] = []  # the first is of the whole batch, any others of single images

        def explained(called_output: tuple[Any, tuple[Tensor, ...]]) -> Tensor:
            output, candidates = called_output
            outputs.append(output)
            if self.task is None:
                self._understand(output, probe, evidence)
            return self.task.explained(output, self._of(candidates))  # type: ignore[union-attr]

        maps, terms = FullGrad(called, psi=self._psi).attribute_with_terms(probe.images, explained, called.arguments)
        assert self.task is not None
        return maps.detach().float(), terms, outputs[0], self.task.fixed(outputs[0], self._of(probe.candidates))

    def _understand(self, output: Any, probe: Probe, evidence: Evidence) -> None:
        """Decides the task, from a part of the probe.

        Raises:
            TargetError: if the output is that of a detector, or it has not the class or the shape that the user speaks of.
        """
        if are_detections(output):
            raise TargetError(f"the output is a list of mappings, as detectors give it; {HOW_TO_WATCH_A_DETECTOR}")
        scores = main_output(output)
        if scores.ndim and len(scores) != len(probe.images):
            raise TargetError(
                f"the network gives {len(scores)} rows for {len(probe.images)} images, as an ensemble does; "
                "pass a function from the output to one number for each image: FullGradMonitor(target=function)"
            )
        if any(SCORE.search(name) for name, part in parts_of(output).items() if part is scores):
            evidence = replace(evidence, kinds=evidence.kinds.difference(YES_OR_NO, {"binary"}) | {"numbers"})
        if self._target is not None:
            self.task = self._of_target(scores, probe, evidence)
            return
        if _are_features(scores, output, evidence):
            evidence = replace(evidence, kinds=frozenset({"embeddings"}), heads=frozenset())
        found = self._meaning(scores, probe.images, probe.candidates, evidence)
        notes = [note for note in (other_parts(output), found.assumed) if note is not None]
        self.task, self.assumed = found.task, "; ".join(notes) or None
        self._which = len(probe.candidates) if found.labels is None else found.labels
        if found.labels is not None:
            self.labels = self._candidates[found.labels]
        elif self.task.tells_classes:
            self.labels = None  # they are labels of something else

    def _meaning(self, scores: Tensor, images: Tensor, candidates: Sequence[Tensor], evidence: Evidence) -> Meaning:
        if self._told is not None:
            return task_as_told(self._told, scores, images, candidates, evidence)
        return task_of(scores, images, candidates, evidence, of_all=self._candidates)

    def _of_target(self, scores: Tensor, probe: Probe, evidence: Evidence) -> Task:
        """The task of a class that the user chose, or of an entry of an output that has no classes.

        Raises:
            TargetError: if the output has no such class.
        """
        wrong = "the output is one number" if scores.ndim < 2 else None
        task: Task = Classes() if scores.ndim == 2 else Regions()
        if wrong is None:
            rows = tuple(candidate[: len(scores)] for candidate in self._candidates)
            found = self._meaning(scores, probe.images, rows, evidence)
            if scores.ndim == 2 and not found.task.tells_classes and found.assumed is None:
                task = Entry()
            elif isinstance(found.task, type(task)):
                task = found.task
            wrong = task.misfit(scores, probe.labels)
        if wrong is not None:
            raise TargetError(f"target {self._target} is no class: {wrong}")
        return task

    def _of(self, candidates: Sequence[Tensor]) -> Tensor | None:
        """The labels among what may be the labels."""
        return candidates[self._which] if self._which < len(candidates) else None


def _are_features(scores: Tensor, output: Any, evidence: Evidence) -> bool:
    """Whether another part of the output has as many entries as there are classes, and this one has not."""
    shapes = [part.shape for part in parts_of(output).values() if part is not scores and part.ndim == 2]
    counts = evidence.counts | evidence.of_data
    return scores.ndim == 2 and scores.shape[1] not in counts and any(columns in counts for _, columns in shapes)


def _for_each(target: int | Sequence[int] | Tensor, n: int) -> Tensor:
    classes = torch.as_tensor(target)
    if classes.is_floating_point() or classes.shape not in ((), (n,)):
        raise ValueError(f"target must be a class, one for each of {n} images or a function of the output, not {target!r}")
    return classes.expand(n).clone()


def _joined(parts: list[Answers]) -> Answers:
    def join(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values).detach().cpu()

    return Answers(*(join(field.name) for field in fields(Answers)))


def _findings(module: nn.Module, maps: Tensor, terms: FullGradients, answers: Answers, classes: int | None) -> Findings:
    kinds = {"explicit": terms.bias_terms, "implicit": terms.implicit_terms}
    names = [("input", ""), *((kind, name) for kind, of_kind in kinds.items() for name in of_kind)]
    table = torch.stack([terms.input_term, *(term for of_kind in kinds.values() for term in of_kind.values())]).cpu()
    output = terms.output.cpu()
    total = output.abs().sum()
    shares = ((output.sign() * table).sum(1) / total).tolist() if total > 0 else [None] * len(table)
    places = {name: place for place, (name, _) in enumerate(module.named_modules())}
    layers = [
        Layer(Called.own_name(name), kind, share, tuple(of_each))
        for (kind, name), share, of_each in zip(names, shares, table.tolist(), strict=True)
    ]
    layers.sort(key=lambda layer: (layer.kind != "input", places.get(layer.module, -1), layer.kind))
    explicit = 1 + len(terms.bias_terms)
    sums = {"input_term": table[0], "bias_term": table[1:explicit].sum(0), "implicit_term": table[explicit:].sum(0)}
    per_image = {"output": output, **sums, "completeness_error": terms.completeness_error.cpu()}
    return Findings(maps.cpu(), answers, per_image, layers, classes, terms.unaccounted)


def numbers_of(findings: Findings, previous: Tensor | None, untrained: Tensor | None) -> dict[str, float]:
    """The scalars of a look, by the keys under which they are logged; see `NUMBERS`.

    Args:
        findings: what it found.
        previous: the maps of the look before, [N, 1, *S]; None for the first.
        untrained: the maps of the untrained network, None where they are not known.

    Returns:
        Those that are defined. The three shares add up to 1 but for the completeness error; a distance goes from 0 to 1 for maps
        that are nowhere negative.
    """
    kinds = {"input": "input_share", "explicit": "bias_share", "implicit": "implicit_share"}
    error = findings.terms["completeness_error"]
    numbers = {"completeness_error": error.mean(), "completeness_error_max": error.max()}
    if all(layer.share is not None for layer in findings.layers):
        for kind, key in kinds.items():
            numbers[key] = torch.tensor([layer.share for layer in findings.layers if layer.kind == kind]).sum()
    for key, earlier in (("drift", previous), ("drift_from_untrained", untrained)):
        if earlier is not None and not earlier.isnan().any():  # as they are where they were lost
            numbers[key] = cosine_drift(findings.maps, earlier).mean()
    numbers["concentration"] = gini_index(findings.maps.abs()).mean()
    return {f"fullgrad/{key}": float(numbers[key]) for key in NUMBERS if key in numbers and not numbers[key].isnan()}
