"""What the data says of its images that a batch does not: how they were normalized, and what their classes are called."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from inspect import getattr_static, getclosurevars
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from fg_lightning.visualization.overlay import Normalization

MOST_OBJECTS = 2000
"""Objects looked at in search of a transform: a data set may lead to anything."""

MOST_ITEMS = 64
"""Of a longer sequence only so many are looked at: it holds samples, not transforms."""

CLASS_NAMES = ("classes", "class_names", "categories", "label_names", "names")
"""What data sets call the names of their classes."""

ELSEWHERE = ("trainer", "_trainer", "_iterator")
"""Attributes that lead away from the data: of datamodules, and of loaders that are being read."""

LEAVES = (str, bytes, int, float, complex, bool, type(None), Tensor, np.ndarray, nn.Parameter, type)


class Facts:
    """
    Args:
        roots: loaders, data sets, datamodules, or anything that leads to their transforms; those that say most first.
    """

    def __init__(self, *roots: Any) -> None:
        self._roots = roots

    def normalization(self) -> Normalization | None:
        """The first normalization that a transform makes: one that is called so and has a mean and a std, as torchvision's,
        albumentations' and kornia's do; None if there is none."""
        for found in _reached(self._roots):
            if type(found).__name__ in ("Normalize", "Normalization"):
                mean, std = (_numbers(_attribute(found, name)) for name in ("mean", "std"))
                if mean and len(mean) == len(std) and all(std):
                    return Normalization(mean, std)
        return None

    def class_names(self, count: int) -> list[str] | None:
        """The names of so many classes, as torchvision's and Hugging Face's data sets have them; None if there are none.

        Fewer will do of an image folder, whose classes a network with more outputs is often trained on.
        """
        fewer = None
        for found in _reached(self._roots):
            for attribute in CLASS_NAMES:
                names = _attribute(found, attribute)
                if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
                    continue
                if len(names) == count:
                    return list(names)
                if fewer is None and attribute == "classes" and len(names) < count and _attribute(found, "class_to_idx"):
                    fewer = list(names)
        return fewer


def _reached(roots: Sequence[Any]) -> Iterator[Any]:
    """The objects that some objects lead to through attributes, items and closures, nearest first."""
    waiting: deque[Any] = deque(roots)
    seen: set[int] = set()
    while waiting and len(seen) < MOST_OBJECTS:
        found = waiting.popleft()
        try:
            if id(found) in seen or isinstance(found, LEAVES):
                continue
            led_to = _led_to(found)
        except Exception:  # a dead proxy, an empty closure: what one object fails at says nothing of the others
            continue
        seen.add(id(found))
        yield found
        waiting.extend(led_to)


def _led_to(found: Any) -> list[Any]:
    if isinstance(found, Mapping):
        return list(found.values())[:MOST_ITEMS] if len(found) <= MOST_ITEMS else []
    if isinstance(found, (list, tuple)):
        return list(found) if len(found) <= MOST_ITEMS else []
    if isinstance(found, MethodType):
        return [found.__self__]
    if isinstance(found, FunctionType):
        variables = getclosurevars(found)
        return [*variables.nonlocals.values(), *(v for v in variables.globals.values() if not isinstance(v, ModuleType))]
    if isinstance(found, partial):
        return [found.func, *found.args, *found.keywords.values()]
    return [value for name, value in getattr(found, "__dict__", {}).items() if name not in ELSEWHERE]


def _numbers(value: Any) -> tuple[float, ...]:
    """A number, sequence, array or tensor as a tuple of numbers; empty if it is none."""
    try:
        return tuple(float(number) for number in np.asarray(value, dtype=float).flatten())
    except (TypeError, ValueError, RuntimeError):
        return ()


def _attribute(found: Any, name: str) -> Any:
    """An attribute that is there, or None: an object may make up others when it is asked, and a property may fail."""
    attribute = getattr_static(found, name, None)
    if not isinstance(attribute, property):
        return attribute
    try:
        return getattr(found, name)
    except Exception:
        return None
