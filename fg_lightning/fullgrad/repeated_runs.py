"""Decides when the recorded operations of a run are repeated, and when the model's own code runs.

The model's code runs in calls 1, 2, 4, 8 ... for batches of one kind, and whenever the model holds other objects than before. The
first two runs are recorded and must agree. Every later run of the model's code must give the maps of the recording.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fg_lightning.fullgrad.cuda_graph import capture
from fg_lightning.fullgrad.decomposition import warn_once
from fg_lightning.fullgrad.forward_backward import Batch, Run
from fg_lightning.fullgrad.function_facts import PLAIN
from fg_lightning.fullgrad.model_contents import ModelContents
from fg_lightning.fullgrad.preserve_model import ONE_THREAD
from fg_lightning.fullgrad.run_recorder import CannotRecord, Recording, RunRecorder
from fg_lightning.fullgrad.target import check_indices, requested_indices
from fg_lightning.fullgrad.torch_internals import has_hooks, is_watched

MAX_KINDS = 8
"""Largest number of kinds of batches that are remembered. The oldest is forgotten first."""

logger = logging.getLogger(__name__)

Repeat = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
"""Computes the results of a recorded run for other inputs."""

Draw = Callable[[Batch], Sequence[Tensor]]
"""Runs the model's own code without reading values. Returns the results that a repetition computes."""


class RepeatedRuns:
    """The recorded runs of a model, for several kinds of batches."""

    def __init__(self) -> None:
        self._runs: dict[Hashable, RepeatedRun] = {}
        self._is_off = False

    def __reduce__(self) -> tuple[Any, ...]:
        return RepeatedRuns, ()  # recordings belong to a process and a model: a copy has none

    def turn_off(self) -> None:
        """Forgets all recordings and makes no more."""
        self._runs.clear()
        self._is_off = True

    def find(self, model: nn.Module, batch: Batch, settings: Hashable) -> RepeatedRun | None:
        """The recorded run for batches of this kind. None if a repetition could differ from a run of the model's code.

        Args:
            model: the model.
            batch: the batch to explain.
            settings: whatever else decides which operations run.
        """
        inputs = (*batch.images, *batch.arguments)
        is_function = callable(batch.target) and not isinstance(batch.target, Tensor)  # its variables may change
        if self._is_off or is_function or not all(map(_is_plain, inputs)):
            return None
        shapes = tuple((own.shape, _dense(own).stride(), own.dtype, own.device) for own in inputs)
        kind = model, settings, shapes, len(batch.images), batch.target is None, torch.get_default_dtype()
        with ONE_THREAD:  # a run in another thread has hooks, and its model holds constants
            if is_watched():
                return None
            if kind not in self._runs and len(self._runs) == MAX_KINDS:
                del self._runs[next(iter(self._runs))]
            run = self._runs.get(kind)
            if run is None or run.is_outdated():
                run = self._runs[kind] = RepeatedRun(model, self.turn_off)
            run.num_calls += 1
            return run


class RepeatedRun:
    """The recorded run for one kind of batch.

    Args:
        model: the model.
        turn_off: is called if a recording gave other maps than the model's code.

    Attributes:
        num_calls: number of calls so far.
    """

    def __init__(self, model: nn.Module, turn_off: Callable[[], None]) -> None:
        self.num_calls = 0
        self._model = model
        self._turn_off = turn_off
        self._is_refused = False
        self._contents: ModelContents | None = None
        self._sizes: torch.Size | None = None
        self._recording: Recording | None = None
        self._repeat: Repeat | None = None

    def is_outdated(self) -> bool:
        """Whether the model holds other objects than when its run was recorded."""
        return self._contents is not None and not self._contents.are_unchanged()

    def repeat(self, batch: Batch) -> tuple[Tensor, ...] | None:
        """The results for a batch. None if the model's own code has to run: there is no recording yet, or a check of it is due.

        Raises:
            TypeError: if the target is of an unknown kind.
            TargetError: if the target does not fit the model's output.
        """
        if self._repeat is None or self.num_calls.bit_count() == 1:
            return None
        with ONE_THREAD:
            return self._repeat(self._flatten(batch))

    def learn(self, batch: Batch, run: Run, results: Sequence[Tensor], draw: Draw) -> None:
        """Records or checks, after a run of the model's own code.

        Args:
            batch: the batch.
            run: the run.
            results: its results.
            draw: runs the model's code once more.
        """
        if self._is_refused:
            return
        with ONE_THREAD:
            try:
                if self._recording is None:
                    self._recording = self._record(batch, run, draw)
                elif self._repeat is None:
                    self._repeat = self._verify(self._recording, self._record(batch, run, draw), batch, results)
                elif not _agree(self._repeat(self._flatten(batch)), results):
                    self._turn_off()
                    warn_once(self._model, "repeated", OUTDATED)
            except CannotRecord as reason:
                logger.info("FullGrad does not repeat runs of this network: %s", reason)
                self._is_refused = True
                self._recording = self._repeat = self._contents = None

    def _record(self, batch: Batch, run: Run, draw: Draw) -> Recording:
        """Raises CannotRecord if a repetition could differ from a run of the model's code."""
        if has_hooks(self._model):
            raise CannotRecord("it has hooks, whose effects a repetition would leave out")
        if run.reads_values:
            raise CannotRecord("its code turns values of tensors into Python's or NumPy's")
        contents = run.constants.contents()
        if contents is None or contents.may_change_unseen():
            raise CannotRecord("it holds arrays, random generators or variables of functions, which may change unseen")
        if run.sizes == () and batch.target is not None:
            raise CannotRecord("a target was given although there is no choice")
        self._contents, self._sizes = contents, run.sizes
        inputs = [own.clone() for own in self._flatten(batch)]
        recorder = RunRecorder(inputs)
        try:
            with recorder, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the run before gave the same
                results = draw(_restore(inputs, batch))
            return recorder.finish(results)
        except Exception as error:  # the run before raised none, so the recorder is the cause
            raise CannotRecord(f"the run failed under the recorder: {error}") from error

    def _verify(self, first: Recording, second: Recording, batch: Batch, results: Sequence[Tensor]) -> Repeat:
        """What repeats a recording. Raises CannotRecord if the two differ, or a repetition gives other results."""
        if not first.equals(second):
            raise CannotRecord("two runs had other operations or constants")
        inputs = self._flatten(batch)
        repeat: Repeat = second.repeat
        if inputs[0].is_cuda:
            try:
                repeat = capture(second, inputs)
            except CannotRecord as reason:
                logger.info("FullGrad repeats runs of this network without a CUDA graph: %s", reason)
        if not _agree(repeat(inputs), results):
            raise CannotRecord("the recorded operations give other results")
        return repeat

    def _flatten(self, batch: Batch) -> list[Tensor]:
        """The inputs of the recording: images, arguments and the indices of the target, without gaps or overlaps in memory."""
        inputs = [_dense(own) for own in (*batch.images, *batch.arguments)]
        if batch.target is None:
            return inputs
        indices = requested_indices(batch.target, len(batch))
        if self._sizes is not None:
            check_indices(indices, torch.Size((len(batch), *self._sizes)))
        return [*inputs, (indices.squeeze(1) if indices.shape[1] == 1 else indices).to(inputs[0].device)]


OUTDATED = (
    "FullGrad repeated the recorded operations of this network, but the network's own code now gives other maps. Maps since the "
    "last check may be wrong; recordings are not used any more. Does the forward depend on something outside the network, such as "
    "a global variable? Then do not pass graphed=True."
)


def _restore(inputs: Sequence[Tensor], batch: Batch) -> Batch:
    """A batch of flattened inputs."""
    num_images, num_inputs = len(batch.images), len(batch.images) + len(batch.arguments)
    target = inputs[num_inputs] if len(inputs) > num_inputs else batch.target
    return Batch(tuple(inputs[:num_images]), target, tuple(inputs[num_images:num_inputs]))


def _is_plain(argument: Any) -> bool:
    """Whether an argument is a tensor with values in memory, one for each entry."""
    if type(argument) not in PLAIN or argument.layout is not torch.strided:
        return False
    return not (argument.is_quantized or argument.is_nested or argument.is_mkldnn)


def _dense(tensor: Tensor) -> Tensor:
    """A tensor without gaps or overlaps in memory, as its clone has it."""
    is_dense = torch.empty_like(tensor, device="meta").stride() == tensor.stride()
    return tensor if is_dense else tensor.clone()


def _agree(results: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether results are the same up to rounding. Kernels of a GPU may add in another order each time."""

    def are_close(one: Tensor, other: Tensor) -> bool:
        precision = torch.finfo(other.dtype).eps ** 0.5
        return torch.allclose(one, other, rtol=precision, atol=precision * float(other.abs().max()), equal_nan=True)

    return all(map(are_close, results, others))
