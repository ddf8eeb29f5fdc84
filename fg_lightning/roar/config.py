"""What a ROARExperiment is given, looked at before anything is done.

What an experiment is, in words that stay the same from one process to the next: what may not change in its folder.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from dis import get_instructions
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from fg_lightning.atomic_files import write_json
from fg_lightning.errors import CannotRun
from fg_lightning.removal import Fill, find_fill
from fg_lightning.removal.pixel_ranking import check_fraction
from fg_lightning.roar.cell_training import ALL
from fg_lightning.roar.experiment_folder import NAME

if TYPE_CHECKING:
    from fg_lightning.roar.steps import Plan

MODES = ("roar", "kar", "road")

TARGETS = ("predicted", "label")

LONGEST = 150
"""Bytes of a method's name; a file system takes 255, of which a fraction, a seed and a suffix need some."""

LOWER_IS_BETTER = ("loss", "error", "perplexity")
"""Parts of the names of metrics that fall as a network gets better."""


def check_makers(data: Any, model: Any) -> None:
    """
    Raises:
        TypeError: if one is an instance.
    """
    for name, given, kind in (("data", data, LightningDataModule), ("model", model, LightningModule)):
        if isinstance(given, kind) or not callable(given):
            raise TypeError(
                f"{name} must be a function that makes a new {kind.__name__}, such as the class itself or a lambda, since every "
                f"training starts from scratch; not {type(given).__name__}"
            )


def check_mode(mode: str) -> None:
    """Raises ValueError."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")


def check_counts(**counts: int) -> None:
    """Raises TypeError if one is not an integer, and ValueError if one is less than 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{name} must be an integer, not {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")


def check_fractions(fractions: Sequence[float]) -> None:
    """Raises ValueError if one lies outside 0..1 or is given twice, or none is between 0 and 1, where methods differ."""
    for fraction in fractions:
        check_fraction(fraction)
    names = [f"{fraction:g}" for fraction in fractions]  # cells are told apart by them
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"fractions must differ, but {', '.join(twice)} is given more than once")
    if not any(0 < float(name) < 1 for name in names):
        raise ValueError(
            "fractions must have one between 0 and 1, since methods differ only where some pixels go and some stay; not "
            f"{list(fractions)}"
        )


def check_names(methods: Iterable[str]) -> None:
    """Names of methods become names of files, and stand in the table beside the cells that all methods share.

    Raises:
        ValueError: if they cannot, there is none, or one is given twice.
    """
    names = list(methods)
    if not names:
        raise ValueError("methods must have at least one name, such as fullgrad")
    for name in names:
        if name == ALL:
            raise ValueError(f"no method may be called {ALL!r}, which is what the table calls the cells that methods share")
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError(f"a method's name must be of letters, digits, _ . + and -, since files are called by it; not {name!r}")
        if len(name.encode()) > LONGEST:
            raise ValueError(
                f"a method's name must have at most {LONGEST} bytes, since files are called by it; not {name[:40]!r}..."
            )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"methods must differ, but {', '.join(twice)} is given more than once")


def check_kinds(target: str, engine: Any, imputation: Fill) -> None:
    """
    Raises:
        TypeError: if the engine is none, or pixels cannot be replaced by such a thing.
        ValueError: if there is no such target or imputation.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, not {target!r}")
    if engine is not None and not all(callable(getattr(engine, name, None)) for name in ("run", "close")):
        raise TypeError(f"engine must be a LocalEngine() or a RayEngine(), not {engine!r}")
    try:
        find_fill(imputation, dataset_mean=0.0)
    except (TypeError, ValueError) as error:
        raise type(error)(f"imputation: {error}") from error


def check_metric(metric: str | None) -> None:
    """Raises ValueError if more of it is not better."""
    if metric is not None and any(part in metric.lower() for part in LOWER_IS_BETTER):
        raise ValueError(
            f"metric must be one that is higher for a better network, such as accuracy, since scores are differences of it; "
            f"{metric!r} is lower: log its negative in test_step under another name, and name that"
        )


def on_one_device(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's arguments for a process of its own, where "auto" devices are one.

    Raises:
        ValueError: if they are for several devices or nodes, or one is none of the Trainer's.
    """
    known = list(inspect.signature(Trainer.__init__).parameters)[1:]
    if unknown := [name for name in trainer if name not in known]:
        close = get_close_matches(str(unknown[0]), known, n=1)
        raise ValueError(f"Lightning's Trainer has no argument {unknown[0]!r}" + (f"; did you mean {close[0]}?" if close else ""))
    given = {key: value for key, value in trainer.items() if (key, value) != ("devices", "auto")}
    devices = given.get("devices", 1)
    is_one = len(devices) == 1 if isinstance(devices, (list, tuple)) else str(devices) == "1"
    if not is_one or given.get("num_nodes", 1) != 1:
        raise ValueError(
            f"a training of the experiment takes one device, so devices in the Trainer's arguments must be 1, auto or the index of "
            f"one, [2], and num_nodes 1; not devices {devices!r}, num_nodes {given.get('num_nodes', 1)!r}. To use several devices, "
            "run trainings side by side: RayEngine(gpus=1), or --engine ray --gpus 1"
        )
    return given


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
