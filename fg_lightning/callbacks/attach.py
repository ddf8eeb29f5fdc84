"""Attaches a monitor to an unmodified script: FG_LIGHTNING=1 python train.py

Lightning calls `monitors` for every Trainer, through the entry point group `lightning.pytorch.callbacks_factory`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fg_lightning.callbacks.fullgrad_monitor import FullGradMonitor

VARIABLE = "FG_LIGHTNING"
OFF = ("", "0", "false", "off", "no")
ON = ("1", "true", "on", "yes")


def monitors() -> list[FullGradMonitor]:
    """A monitor if the environment variable FG_LIGHTNING asks for one, else none.

    FG_LIGHTNING=1 uses the defaults. FG_LIGHTNING="every_n_epochs=5, num_samples=16, psi=signed" sets arguments of
    `FullGradMonitor`, except `probe` and `forward`, which cannot be given as text.

    Raises:
        ValueError: if an option does not exist or makes no sense.
    """
    asked = os.environ.get(VARIABLE, "").strip()
    if asked.lower() in OFF:
        return []
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


def _parse_options(text: str) -> dict[str, Any]:
    """ "every_n_epochs=5, psi=signed" as keyword arguments; a bare word is a string, or true, false, none."""
    import ast
    import inspect

    from fg_lightning.callbacks.fullgrad_monitor import FullGradMonitor

    defaults = inspect.signature(FullGradMonitor).parameters
    known = [name for name in defaults if name not in ("probe", "forward")]
    try:
        call = ast.parse(f"options({text})", mode="eval").body
    except SyntaxError:
        call = None
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("expected 1, or options such as every_n_epochs=5,num_samples=8")
    options: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg not in known:
            raise ValueError(f"there is no option {keyword.arg}, only {', '.join(known)}")
        if keyword.arg in options:
            raise ValueError(f"{keyword.arg} is given twice")
        value = _parse_value(keyword.value)
        options[keyword.arg] = _parse_switch(value) if isinstance(defaults[keyword.arg].default, bool) else value
    return options


def _parse_switch(value: Any) -> Any:
    """A word for on or off as a bool; anything else stays as it is."""
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
