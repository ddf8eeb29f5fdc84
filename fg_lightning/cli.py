"""The command line: fg-lightning."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from jsonargparse import auto_cli

from fg_lightning.errors import CannotRun

LIGHTNING = "fg_lightning.training.run"
"""Where the commands are that hand their options over to Lightning's CLI."""

COMMANDS = {
    "demo": "fg_lightning.demo.run",
    "explain": "fg_lightning.explain.run",
    "roar": "fg_lightning.roar.command",
    "report": "fg_lightning.report.command",
    "completion": "fg_lightning.completion",
    "fit": LIGHTNING,
    "validate": LIGHTNING,
    "test": LIGHTNING,
    "predict": LIGHTNING,
}
"""Every command, and the module that has a function of its name, whose signature is its options."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command of `fg-lightning`; what a person has to change is said in a sentence on standard error.

    Args:
        args: what stands behind the program's name; by default what the process was started with.
    """
    given = ["--output" if word == "-o" else word for word in (sys.argv[1:] if args is None else args)]
    called = [name for name in given[:1] if name in COMMANDS] or list(COMMANDS)  # a command costs no import of the others
    functions = {name: getattr(import_module(COMMANDS[name]), name) for name in called}
    try:
        if len(called) == 1 and COMMANDS[called[0]] == LIGHTNING:
            functions[called[0]](*given[1:])
        else:
            auto_cli(functions, args=given, prog="fg-lightning")
    except CannotRun as error:
        sys.exit(f"fg-lightning: {error}")
