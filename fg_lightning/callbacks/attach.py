"""Attaches a monitor to an unmodified script: FG_LIGHTNING=1 python train.py

Lightning calls `monitors` for every Trainer, through the entry point group `lightning.pytorch.callbacks_factory`, and
`fabric_callbacks` for every Fabric. A script that uses neither does not load this package, unless it imports it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fg_lightning.callbacks.fullgrad_monitor import FullGradMonitor

VARIABLE = "FG_LIGHTNING"
OFF = ("", "0", "false", "off", "no")
ON = ("1", "true", "on", "yes")

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
"""Variables that number the processes of a training."""


CHILD_SECONDS = 0.1
"""In processor seconds. Any training in child processes takes more."""


def monitors() -> list[FullGradMonitor]:
    """A monitor if the environment variable FG_LIGHTNING asks for one, else none.

    FG_LIGHTNING=1 uses the defaults. FG_LIGHTNING="every_n_epochs=5, num_samples=16, psi=signed" sets arguments of
    `FullGradMonitor`, except `masks` and `forward`, which cannot be given as text.

    Raises:
        ValueError: if an option does not exist or makes no sense.
    """
    asked = _asked()
    if asked.lower() in OFF:
        return []
    note_at_exit()
    from fg_lightning.callbacks.fullgrad_monitor import FullGradMonitor

    try:
        monitor = FullGradMonitor(**({} if asked.lower() in ON else _parse_options(asked)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{VARIABLE}={asked!r} cannot be read: {error}") from None
    monitor.attached_by = VARIABLE
    for earlier in FullGradMonitor.all_attached:
        earlier.is_superseded = True
    FullGradMonitor.all_attached.add(monitor)
    return [monitor]


def fabric_callbacks() -> list[Any]:
    """No callbacks: with Fabric the user writes the loop, so only the user knows when a snapshot is due."""
    note_at_exit()
    return []


def note_at_exit() -> None:
    """If FG_LIGHTNING asks for a monitor, the process prints a message at its end if no training was monitored."""
    if _asked().lower() not in OFF:
        atexit.unregister(_say_if_unwatched)
        atexit.register(_say_if_unwatched)


def _asked() -> str:
    return os.environ.get(VARIABLE, "").strip()


def _say_if_unwatched() -> None:
    """Prints one line on standard error if no training was monitored.

    It prints nothing in further processes of a training run, after an error, and in this package's own commands. Strategies such as
    `ddp_spawn` train in child processes. It is unknown here whether those were monitored, so it prints nothing then, too.
    """
    loaded = sys.modules
    monitor = getattr(loaded.get("fg_lightning.callbacks.fullgrad_monitor"), "FullGradMonitor", None)
    recorder = getattr(loaded.get("fg_lightning.recording.recorder"), "FullGradRecorder", None)
    is_watched = getattr(monitor, "has_met_training", False) or getattr(recorder, "has_taken_snapshots", False)
    is_first = all(os.environ.get(name, "0") in ("", "0") for name in RANKS) and multiprocessing.parent_process() is None
    waited = os.times().children_user + os.times().children_system
    may_be_elsewhere = (monitor is not None or recorder is not None) and waited > CHILD_SECONDS
    has_failed = hasattr(sys, "last_value") or hasattr(sys, "last_exc")  # an error ended the script
    if is_watched or may_be_elsewhere or not is_first or has_failed or "fg_lightning.cli.main" in loaded:
        return
    print(
        f"fg-lightning: {VARIABLE} is set, but no training was monitored, because no Lightning Trainer was fitted. In a loop of "
        "your own, take snapshots with fg_lightning.FullGradRecorder",
        file=sys.stderr,
    )


def _parse_options(text: str) -> dict[str, Any]:
    """ "every_n_epochs=5, psi=signed" as keyword arguments. A bare word is a string, except true, false and none."""
    import ast
    import inspect

    from fg_lightning.callbacks.fullgrad_monitor import FullGradMonitor

    defaults = inspect.signature(FullGradMonitor).parameters
    known = [name for name in defaults if name not in ("masks", "forward")]
    try:
        call = ast.parse(f"options({text})", mode="eval").body
    except SyntaxError:
        call = None
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("expected 1, or options such as every_n_epochs=5,num_samples=8")
    options: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg not in known:
            raise ValueError(f"there is no option {keyword.arg}; the options are {', '.join(known)}")
        if keyword.arg in options:
            raise ValueError(f"{keyword.arg} is given twice; give it once")
        value = _parse_value(keyword.value)
        options[keyword.arg] = _parse_switch(value) if isinstance(defaults[keyword.arg].default, bool) else value
    return options


def _parse_switch(value: Any) -> Any:
    """A word for on or off as a bool. Anything else is returned unchanged."""
    word = str(value).lower()
    return word in ON if word in ON + OFF else value


def _parse_value(node: Any) -> Any:
    """The value of an option; see `_parse_options`."""
    import ast

    words = {"true": True, "false": False, "none": None}
    if isinstance(node, ast.Name):
        return words.get(node.id.lower(), node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_parse_value(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)} is not a number, a word or a list of them") from None
