"""Captures a recording as a CUDA graph, which starts all of its kernels at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fg_lightning.fullgrad.run_recorder import CannotRecord, Recording


def capture(recording: Recording, inputs: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """A function that repeats a recording by a CUDA graph. It keeps the memory of a run.

    Args:
        recording: operations on one CUDA device.
        inputs: inputs of the shapes that later calls have.

    Raises:
        CannotRecord: if an operation cannot be captured, such as a copy from the CPU, or draws random numbers.
    """
    if recording.is_random:
        raise CannotRecord("an operation may draw random numbers, whose state could not be put back")
    device = inputs[0].device
    held = [own.clone() for own in inputs]
    try:
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                recording.repeat(held)  # libraries allocate their workspaces now
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the device
                results = recording.repeat(held)
    except RuntimeError as error:
        raise CannotRecord(f"CUDA cannot capture it: {error}") from error

    def repeat(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.cuda.device(device):
            for own, given in zip(held, inputs, strict=True):
                own.copy_(given)
            graph.replay()
            return tuple(result.clone() for result in results)

    return repeat
