"""The layouts of the tensors of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar
from weakref import ref

from torch import Tensor

from fg_lightning.fullgrad.layout import Layout
from fg_lightning.fullgrad.torch_internals import storage_of

T = TypeVar("T")


class TensorTable(Generic[T]):
    """Values by tensor. A tensor is found by its identity, and the table does not keep it alive."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[T, ref[Tensor]]] = {}

    def __setitem__(self, tensor: Tensor, value: T) -> None:
        key, entries = id(tensor), self._entries
        entries[key] = value, ref(tensor, lambda _: entries.pop(key, None))  # the callback runs before the id is reused

    def get(self, tensor: Tensor) -> T | None:
        entry = self._entries.get(id(tensor))
        return entry[0] if entry else None

    def __contains__(self, tensor: Tensor | None) -> bool:
        return id(tensor) in self._entries

    def discard(self, tensor: Tensor) -> None:
        self._entries.pop(id(tensor), None)


class TensorLayouts(TensorTable["tuple[Layout | None, str]"]):
    """The layouts of the tensors of a forward pass, or the operations after which their samples could not be told apart.

    Args:
        images: the image inputs, each [N, C, *S].

    Attributes:
        num_images: number of samples.
    """

    def __init__(self, images: Sequence[Tensor]) -> None:
        super().__init__()
        self.num_images = len(images[0])
        self._mixed: dict[int, Tensor] = {}  # by memory: a tensor with mixed samples, which keeps its memory alive
        for number, image in enumerate(images):
            self.mark(image, Layout.of_images(image, number))

    def mark(self, tensor: Tensor, layout: Layout | None, mixed_by: str = "") -> None:
        """Enter a tensor that depends on the input.

        Args:
            tensor: the tensor.
            layout: its layout. None if its samples cannot be told apart.
            mixed_by: the operation and module after which they could not be told apart.
        """
        if layout is None and self.num_images == 1:
            layout = Layout.unknown(tensor.shape)
        self[tensor] = layout, "" if layout else mixed_by

    def mark_memory_mixed(self, tensor: Tensor) -> None:
        """Enter an overwritten tensor whose samples cannot be told apart. This applies to all tensors that share its memory."""
        self._mixed[storage_of(tensor)] = tensor

    def find(self, tensor: Tensor) -> Layout | None:
        """The layout of a tensor. None if it was not entered, or its samples cannot be told apart."""
        if self._mixed and (written := self._mixed.get(storage_of(tensor))) is not None:
            self[tensor] = None, self.mixed_by(written)
        entry = self._entries.get(id(tensor))
        return entry[0][0] if entry else None

    def mixed_by(self, tensor: Tensor) -> str:
        """The operation after which the samples of a tensor could not be told apart. Empty if they can be told apart."""
        entry = self._entries.get(id(tensor))
        return entry[0][1] if entry else ""

    def clear(self) -> None:
        self._entries.clear()
        self._mixed.clear()
