"""What an experiment is, in words that stay the same from one process to the next: what may not change in its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dis import get_instructions
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from fg_lightning.atomic import write_json
from fg_lightning.errors import CannotRun
from fg_lightning.roar.folder import NAME

if TYPE_CHECKING:
    from fg_lightning.roar.plan import Plan


def identity_of(plan: Plan, checkpoint: str | None) -> dict[str, Any]:
    """What may not change from one run to the next, since numbers depend on it.

    Args:
        plan: of the experiment.
        checkpoint: a hash of the one that is explained; None where a network is trained for it.
    """
    names = "mode order max_epochs target metric chunk threads data model imputation prepare transform trainer methods".split()
    return {name: described(getattr(plan, name)) for name in names} | {"checkpoint": checkpoint}


def check_identity(folder: Path, identity: Mapping[str, Any], is_begun: bool = True) -> None:
    """Writes what an experiment is, or compares it with what is there, to which methods of other names are added.

    Args:
        folder: of the experiment.
        identity: what `identity_of` gives.
        is_begun: whether anything there depends on it; if not, it is written anew.

    Raises:
        CannotRun: if another experiment is there.
    """
    path = folder / NAME
    here: dict[str, Any] = json.loads(json.dumps(identity))
    if not path.exists() or not is_begun:
        write_json(path, here)
        return
    try:
        there = json.loads(path.read_text())
        known = there.get("methods", {})
        known.keys()
    except (ValueError, AttributeError, RecursionError, OSError) as error:
        raise CannotRun(f"{path} is damaged ({error}); take another folder, or remove this one") from error
    of_methods = {f"method {name}": (known.get(name, value), value) for name, value in here.pop("methods", {}).items()}
    pairs = {key: (there.get(key), value) for key, value in here.items()} | of_methods
    different = [f"{key} {old!r} there, {new!r} here" for key, (old, new) in pairs.items() if old != new]
    if different:
        raise CannotRun(
            f"{folder} holds another experiment: {'; '.join(different)}. Take another folder with --output, or the same settings; "
            "fractions and seeds may change, and methods be added"
        )
    write_json(path, there | {"methods": known | dict(identity.get("methods", {}))})


def described(value: Any) -> Any:
    """A factory, function or setting in words and numbers that JSON can hold.

    A class or function is its import path. One without such a path, a lambda or a function made by another, is told from others by
    a hash of what it runs: its code, defaults, the variables that it closes over, and the plain global ones that it reads.
    """
    if isinstance(value, partial):
        # What the command line makes of a class path is a partial of functions of its own, with the class as the last argument.
        called = value.args[-1] if value.func.__module__.startswith("jsonargparse") else value.func
        args = () if called is not value.func else value.args
        return {"calls": described(called), **({"args": described(args)} if args else {}), **_described_items(value.keywords)}
    if _is_plain(value):
        return value
    if isinstance(value, Mapping):
        return _described_items(value)
    if isinstance(value, (list, tuple)):
        return [*map(described, value)]
    name = getattr(value, "__qualname__", None)
    if name is None:
        return repr(value) if " at 0x" not in repr(value) else type(value).__qualname__
    has_no_path = isinstance(value, FunctionType) and ("<lambda>" in name or "<locals>" in name)
    return f"{value.__module__}.{name}" + (f" {_hash_of(value)}" if has_no_path else "")


def _described_items(items: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): described(item) for key, item in items.items()}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _hash_of(function: FunctionType) -> str:
    codes = [*_codes(function.__code__)]
    runs = [[code.co_code.hex(), _constants(code), code.co_names] for code in codes]
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell.cell_contents is not function]
    read = {one.argval for code in codes for one in get_instructions(code) if one.opname == "LOAD_GLOBAL"}
    plain = {name: function.__globals__.get(name) for name in sorted(read) if _is_plain(function.__globals__.get(name))}
    given = described([function.__defaults__, function.__kwdefaults__, cells, plain])
    return hashlib.sha256(json.dumps([runs, given]).encode()).hexdigest()[:16]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _constants(code: CodeType) -> list[str]:
    """Without a set's order, which is another in every process."""
    found = (constant for constant in code.co_consts if not isinstance(constant, CodeType))
    return [repr(sorted(map(repr, one)) if isinstance(one, frozenset) else one) for one in found]
