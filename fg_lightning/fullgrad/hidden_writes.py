"""Writes that autograd does not see: through `.data`, `detach()` or an array of NumPy that shares the memory.

No gradient knows of such a write, so that its effect is missing from the sum of all terms. It is found and named.
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
"""Operations that return a second tensor on the same memory."""

EXPOSING = frozenset({"numpy", "array", "array_interface", "dlpack", "storage", "untyped_storage", "typed_storage", "data_ptr"})
"""Operations that give the memory to code which may write to it without torch."""

NOTED = _ALIASING | EXPOSING
"""Operations that `HiddenWrites.note` has to know of."""

Report = Callable[[str, Tensor], None]
"""Called with (how something was written, the tensor that was written to)."""


class HiddenWrites:
    """The tensors whose memory a model can reach outside of autograd.

    Args:
        report: is called for each write that autograd did not see.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._aliased: defaultdict[int, list[ref[Tensor]]] = defaultdict(list)
        self._exposed: dict[int, tuple[Tensor, Tensor]] = {}  # tensors, each with its values when it was exposed

    def note(self, op: Operation) -> None:
        """Note an operation that gives away the memory of a tensor that depends on the input."""
        if op.name in _ALIASING and op.dependent:
            tensor = op.dependent[0]
            for owner in (tensor, base_of(tensor)):
                if owner is not None:
                    self._aliased[storage_of(tensor)].append(ref(owner))
        elif op.name in EXPOSING and op.args and self._aliased:
            for owner in self._owners(op.args[0])[:1]:
                self._exposed[storage_of(owner)] = owner, owner.detach().clone()

    def save_targets(self, op: Operation) -> list[tuple[Tensor, Tensor]]:
        """The tensors that an operation is about to write to without autograd, each with its values."""
        if not self._aliased:
            return []
        targets = tensors_in(op.args[:1]) if works_in_place(op.function) else []
        targets += tensors_in(op.kwargs.get("out"))
        if self._exposed:
            self.check_memory()
        return [(t, t.detach().clone()) for t in targets if not op.depends(t) and self._owners(t)]

    def report_changes(self, op: Operation, targets: list[tuple[Tensor, Tensor]]) -> None:
        """Report the tensors that an operation has changed."""
        for target, before in targets:
            if not torch.equal(target.detach(), before):
                for owner in self._owners(target):
                    self._report(f"{op.name} past autograd, through .data or detach(),", owner)

    def report_assignment(self, tensor: Tensor) -> None:
        """Report a tensor that was given other memory."""
        self._report("an assignment past autograd, to .data,", tensor)

    def check_memory(self) -> None:
        """Report tensors that other code has changed since their memory was exposed."""
        for storage, (owner, before) in list(self._exposed.items()):
            if not torch.equal(owner.detach(), before):
                self._report("a write past autograd, through NumPy or a pointer,", owner)
                self._exposed.pop(storage)

    def update_memory(self, tensor: Tensor) -> None:
        """Save the new values of an exposed tensor that an operation known to autograd has changed."""
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
