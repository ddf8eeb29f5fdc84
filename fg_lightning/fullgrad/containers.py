"""Copies, refills and compares Python's containers, also those of the user's classes, whose methods may do something else."""

from __future__ import annotations

import operator
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from typing import Any

CONTAINERS = {dict, OrderedDict, defaultdict, list, set, deque}
BASE_CLASSES = (OrderedDict, dict, list, set, deque)


def items_of(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def base_class(container: Any) -> Any:
    """Python's own class of a container, whose methods no class of the user overrides."""
    return next(base for base in BASE_CLASSES if isinstance(container, base))


def copy_items(container: Any) -> Any:
    """The items of a container of the user's class, in a container of Python's own class."""
    base = base_class(container)
    return base(base.items(container) if isinstance(container, dict) else base.__iter__(container))


def refill(container: Any, items: Any) -> None:
    """Puts items back into a container, in their order. The container stays the same object."""
    if type(container) not in CONTAINERS:
        base = base_class(container)
        base.clear(container)
        if isinstance(container, dict):
            for key, item in items.items():
                base.__setitem__(container, key, item)
        else:
            (base.update if base is set else base.extend)(container, items)
    elif isinstance(container, dict):
        container.update(items)
        for added in [key for key in container if key not in items] if len(container) != len(items) else ():
            del container[added]
        if not all(map(operator.is_, container, items)):
            container.clear()
            container.update(items)
    elif len(container) != len(items) or not all(map(operator.is_, container, items)):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(items)


def holds(container: Any, items: Any) -> bool:
    """Whether a container has these items, in this order."""
    if type(container) not in CONTAINERS:
        container = copy_items(container)
    is_same = len(container) == len(items) and all(map(operator.is_, container, items))
    return is_same and (not isinstance(container, dict) or all(map(operator.is_, container.values(), items.values())))
