"""Writes that autograd does not see: through `.data`, through `detach()`, through an array of NumPy that shares the memory.

No gradient knows of such a write, so that what it changed is missing from the sum of all terms. It is found and named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from weakref import ref

import torch
from torch import Tensor

from fg_lightning.fullgrad.operation import Operation, tensors_in, works_in_place
from fg_lightning.fullgrad.torch_internals import base_of, storage_of

_HAND_OUT = frozenset({"detach", "data"})
"""What gives a second tensor on the same memory."""

_SHOW_TO_OTHERS = frozenset(
    {"numpy", "array", "array_interface", "dlpack", "storage", "untyped_storage", "typed_storage", "data_ptr"}
)
"""What gives the memory to something that writes to it without torch's knowledge."""

Miss = Callable[[str, Tensor], None]
"""Called with (what was written in which way, the tensor that was written to)."""


class HiddenWrites:
    """The tensors whose memory a model has got hold of outside of autograd.

    Args:
        miss: is told of each write that autograd did not see.
    """

    def __init__(self, miss: Miss) -> None:
        self._miss = miss
        self._known: defaultdict[int, list[ref[Tensor]]] = defaultdict(list)
        self._shown: dict[int, tuple[Tensor, Tensor]] = {}  # a tensor, and what was in it

    def note(self, op: Operation) -> None:
        """Take note of a call that gives away the memory of a tensor that depends on the input."""
        if op.name in _HAND_OUT and op.dependent:
            tensor = op.dependent[0]
            for owner in (tensor, base_of(tensor)):
                if owner is not None:
                    self._known[storage_of(tensor)].append(ref(owner))
        elif op.name in _SHOW_TO_OTHERS and op.args and self._known:
            for owner in self._owners(op.args[0])[:1]:
                self._shown[storage_of(owner)] = owner, owner.detach().clone()

    def save_targets(self, op: Operation) -> list[tuple[Tensor, Tensor]]:
        """What a call is about to write to behind autograd's back, and what is in it."""
        if not self._known:
            return []
        targets = tensors_in(op.args[:1]) if works_in_place(op.function) else []
        targets += tensors_in(op.kwargs.get("out"))
        if self._shown:
            self.check_memory()
        return [(t, t.detach().clone()) for t in targets if not op.depends(t) and self._owners(t)]

    def report_changes(self, op: Operation, targets: list[tuple[Tensor, Tensor]]) -> None:
        """Name what was changed."""
        for target, before in targets:
            if not torch.equal(target.detach(), before):
                for owner in self._owners(target):
                    self._miss(f"{op.name} past autograd, through .data or detach(),", owner)

    def report_assignment(self, tensor: Tensor) -> None:
        """Name a tensor that was given other memory."""
        self._miss("an assignment past autograd, to .data,", tensor)

    def check_memory(self) -> None:
        """Name what something other than torch has changed since it was shown the memory."""
        for storage, (owner, before) in list(self._shown.items()):
            if not torch.equal(owner.detach(), before):
                self._miss("a write past autograd, through NumPy or a pointer,", owner)
                self._shown.pop(storage)

    def update_memory(self, tensor: Tensor) -> None:
        """An operation that autograd knows has changed a tensor."""
        if (shown := self._shown.get(storage_of(tensor))) is not None:
            shown[1].copy_(shown[0].detach())

    def _owners(self, tensor: Tensor) -> list[Tensor]:
        """The tensors that depend on the input and whose memory this is."""
        if not isinstance(tensor, Tensor) or (storage := storage_of(tensor)) not in self._known:
            return []
        owners = [owner for known in self._known[storage] if (owner := known()) is not None and storage_of(owner) == storage]
        return list({id(owner): owner for owner in owners}.values())
