"""Finds writes that autograd does not see: through `.data`, `detach()` or a NumPy array that shares the memory.

Gradients do not include such a write, so its effect is missing from the sum of all terms. It is reported as missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from weakref import ref

import torch
from torch import Tensor

from fg_lightning.fullgrad.operation import Operation, tensors_in, works_in_place
from fg_lightning.fullgrad.torch_internals import base_of, storage_of

_ALIASING = frozenset({"detach", "data"})
"""Operations that return another tensor on the same memory."""

EXPOSING = frozenset({"numpy", "array", "array_interface", "dlpack", "storage", "untyped_storage", "typed_storage", "data_ptr"})
"""Operations that expose the memory to code that may write to it without torch."""

NOTED = _ALIASING | EXPOSING
"""Operations that must be passed to `HiddenWrites.note`."""

Report = Callable[[str, Tensor], None]
"""Is called with a description of the write and with the tensor that was written to."""


class HiddenWrites:
    """Watches the tensors whose memory a model can change without autograd.

    Args:
        report: is called for each write that autograd does not see.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._aliased: defaultdict[int, list[ref[Tensor]]] = defaultdict(list)
        self._exposed: dict[int, tuple[Tensor, Tensor]] = {}  # tensors, each with its values when it was exposed

    def note(self, op: Operation) -> None:
        """Notes an operation that exposes the memory of a tensor that depends on the input."""
        if op.name in _ALIASING and op.dependent:
            tensor = op.dependent[0]
            for owner in (tensor, base_of(tensor)):
                if owner is not None:
                    self._aliased[storage_of(tensor)].append(ref(owner))
        elif op.name in EXPOSING and op.args and self._aliased:
            for owner in self._owners(op.args[0])[:1]:
                self._exposed[storage_of(owner)] = owner, owner.detach().clone()

    def save_targets(self, op: Operation) -> list[tuple[Tensor, Tensor]]:
        """Copies of the tensors that an operation is about to write to without autograd, each beside its tensor."""
        if not self._aliased:
            return []
        targets = tensors_in(op.args[:1]) if works_in_place(op.function) else []
        targets += tensors_in(op.kwargs.get("out"))
        if self._exposed:
            self.check_memory()
        return [(t, t.detach().clone()) for t in targets if not op.depends(t) and self._owners(t)]

    def report_changes(self, op: Operation, targets: list[tuple[Tensor, Tensor]]) -> None:
        """Reports the tensors that an operation has changed."""
        for target, before in targets:
            if not torch.equal(target.detach(), before):
                for owner in self._owners(target):
                    self._report(f"{op.name} past autograd, through .data or detach(),", owner)

    def report_assignment(self, tensor: Tensor) -> None:
        """Reports a tensor that got other memory."""
        self._report("an assignment past autograd, to .data,", tensor)

    def check_memory(self) -> None:
        """Reports tensors that other code has changed since their memory was exposed."""
        for storage, (owner, before) in list(self._exposed.items()):
            if not torch.equal(owner.detach(), before):
                self._report("a write past autograd, through NumPy or a pointer,", owner)
                self._exposed.pop(storage)

    def update_memory(self, tensor: Tensor) -> None:
        """Saves the new values of an exposed tensor after autograd has seen a change."""
        if (exposed := self._exposed.get(storage_of(tensor))) is not None:
            exposed[1].copy_(exposed[0].detach())

    def _owners(self, tensor: Tensor) -> list[Tensor]:
        """The tensors that depend on the input and share the memory of a tensor."""
        if not isinstance(tensor, Tensor) or (storage := storage_of(tensor)) not in self._aliased:
            return []
        owners = [
            owner for reference in self._aliased[storage] if (owner := reference()) is not None and storage_of(owner) == storage
        ]
        return list({id(owner): owner for owner in owners}.values())
