"""The names that a user's functions use: which losses a training step calls, which transforms a hook applies."""

from __future__ import annotations

import dis
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from inspect import getattr_static
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

from torch import nn

FRAMEWORKS = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "torchvision")
"""Packages whose functions are known by their names: what they call in turn is not looked up."""

NOT_FOLLOWED = ("forward", "log", "log_dict", "print")
"""Methods that a step calls, but that decide nothing about its loss."""

MOST_FUNCTIONS = 200

LOSS = re.compile("loss|criterion|entropy|similarity|distance", re.IGNORECASE)
"""What classes of losses are called."""


def attribute(found: Any, name: str) -> Any:
    """An attribute that is there, or None: an object may make up others when it is asked, and a property may fail.

    Buffers, parameters and children of a module are attributes, too.
    """
    if not isinstance(getattr_static(found, name, None), property):
        return _static(found, name)
    try:
        return getattr(found, name)
    except Exception:
        return None


def names_in(owner: Any, methods: Iterable[str], is_known: Callable[[str], bool] = lambda name: False) -> set[str]:
    """The names that some methods of an object use, and the functions, methods and losses that they call in turn.

    The name of a function or of a class stands beside the name of the attribute that holds it: `self.criterion` is also
    `CrossEntropyLoss`. Names are read from the code; nothing is called.

    Args:
        owner: of the methods.
        methods: where to begin.
        is_known: whether the name of a loss tells all, so that its code is not read.
    """
    waiting = [(owner, function) for name in methods if (function := _function(_static(owner, name))) is not None]
    seen: set[CodeType] = set()
    names: set[str] = set()
    while waiting and len(seen) < MOST_FUNCTIONS:
        holder, function = waiting.pop()
        if function.__code__ in seen:
            continue
        seen.add(function.__code__)
        used = set(_names_of_code(function.__code__))
        names |= used
        for name in used.difference(NOT_FOLLOWED):
            for value in (_static(holder, name), function.__globals__.get(name)):
                names |= _own_names(value)
                called = _function(_static(value, "forward") if is_loss(value) else value)
                is_told = is_loss(value) and is_known(type(value).__name__)
                if called is not None and not is_told and not _is_of_a_framework(called):
                    waiting.append((value if is_loss(value) else holder, called))
    return names


def is_loss(value: Any) -> bool:
    """Whether it is a module that is called like a loss."""
    return isinstance(value, nn.Module) and LOSS.search(type(value).__name__) is not None


def _static(found: Any, name: str) -> Any:
    """An attribute that is there without asking the object for it; None for a property."""
    value = getattr_static(found, name, None)
    if isinstance(value, property):
        return None
    if value is None and isinstance(found, nn.Module):
        tables = (vars(found).get(table) for table in ("_modules", "_buffers", "_parameters"))
        return next((table[name] for table in tables if table and name in table), None)
    return value


def _names_of_code(code: CodeType) -> Iterator[str]:
    """The names in a function and in those within it, and "matmul" for the operator @."""
    yield from code.co_names
    if any(step.opname == "BINARY_MATRIX_MULTIPLY" or step.argrepr == "@" for step in dis.get_instructions(code)):
        yield "matmul"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_of_code(constant)


def _function(value: Any) -> FunctionType | None:
    """The Python function behind a method, a partial or a decorator; None if there is none."""
    while isinstance(value, partial):
        value = value.func
    value = getattr_static(value, "__func__", value)
    try:
        value = inspect.unwrap(value)
    except (ValueError, TypeError, AttributeError):
        return None
    return value if isinstance(value, FunctionType) else None


def _own_names(value: Any) -> set[str]:
    """What a function, class or loss is called; nothing for other objects."""
    while isinstance(value, partial):
        value = value.func
    if is_loss(value):
        return {type(value).__name__}
    if isinstance(value, (FunctionType, BuiltinFunctionType, type)):
        return {value.__name__}
    return set()


def _is_of_a_framework(function: FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] in FRAMEWORKS
