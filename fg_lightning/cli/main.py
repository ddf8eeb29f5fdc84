"""The command line: fg-lightning."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from io import TextIOWrapper

from jsonargparse import auto_cli

from fg_lightning.errors import CannotRun

ADVICE = {
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: "make room, or take another folder",
    errno.EDQUOT: "make room, or take another folder",
    errno.EROFS: "take another folder",
}
"""What to do about faults of a disk that no command has words of its own for."""

SHOWN = 200
"""So many letters of a file's name are shown."""

LIGHTNING = "fg_lightning.cli.fit"
"""Where the commands are that hand their options over to Lightning's CLI."""

COMMANDS = {
    "demo": "fg_lightning.cli.demo",
    "explain": "fg_lightning.cli.explain",
    "roar": "fg_lightning.cli.roar",
    "report": "fg_lightning.cli.report",
    "completion": "fg_lightning.cli.completion",
    "fit": LIGHTNING,
    "validate": LIGHTNING,
    "test": LIGHTNING,
    "predict": LIGHTNING,
}
"""Every command, and the module that has a function of its name, whose signature is its options."""

DOES = {
    "demo": "Train a small residual network on 5,000 real MNIST digits and watch what it looks at.",
    "explain": "Draw what a network looks at in your pictures, as several methods see it.",
    "roar": "Remove what each method calls relevant from every image, train again from scratch, and compare accuracies.",
    "report": "Write what a monitored run or a ROAR experiment found as one HTML file that opens without a network.",
    "completion": "Print a script by which a shell completes the commands of fg-lightning and their options.",
    "fit": "Train an image classifier, any of torchvision's or your own, on your images.",
    "validate": "Measure a trained classifier on the validation images.",
    "test": "Measure a trained classifier on the test images.",
    "predict": "Write what a trained classifier says of the test images to a table.",
}
"""What each of them does: the first line of its docstring, so that the list of commands costs no import."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command of `fg-lightning`; what the user has to change is a sentence on standard error, with exit status 1.

    Args:
        args: what stands behind the program's name; by default what the process was started with.
    """
    if args is None and isinstance(sys.stdout, TextIOWrapper):  # a path is printed whatever letters are in it
        sys.stdout.reconfigure(errors="surrogateescape" if sys.stdout.encoding == "utf-8" else "backslashreplace")
    try:
        put_current_folder_last()
        _run(_joined(sys.argv[1:] if args is None else args))
    except CannotRun as error:
        sys.exit(f"fg-lightning: {error}")
    except OSError as error:
        if error.errno not in ADVICE:
            raise
        name = str(error.filename or "")
        where = f" ({name[:SHOWN]}{'...' * (len(name) > SHOWN)})" if name else ""
        sys.exit(f"fg-lightning: {os.strerror(error.errno)}{where}: {ADVICE[error.errno]}")
    except KeyboardInterrupt:
        print("fg-lightning: stopped", file=sys.stderr)
        sys.exit(130)


def put_current_folder_last() -> None:
    """Lets the user's own classes be found in the current folder, but nothing there stand for Python's or an installed module.

    A folder that PYTHONPATH names is left where the user put it.

    Raises:
        CannotRun: if the current folder was removed.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError as error:
        raise CannotRun("the current folder was removed; change to another one") from error
    named = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if here in named:
        return
    sys.path[:] = [path for path in sys.path if path and os.path.abspath(path) != here] + [here]


def _run(given: Sequence[str]) -> None:
    command = given[0] if given else ""
    if COMMANDS.get(command) == LIGHTNING:
        _function(command)(*given[1:])
    elif command in COMMANDS:
        auto_cli({command: _function(command)}, args=list(given), prog="fg-lightning")
    else:
        of = _function if command.startswith("--config") else _listed  # a configuration may have options of any command
        auto_cli({name: of(name) for name in COMMANDS}, args=list(given), prog="fg-lightning")


def _joined(args: Sequence[str]) -> list[str]:
    """The words of a command line, with `--output` for `-o`, and numbers below 0 with a `=` before them.

    argparse knows -1 for a number, but takes -1e-3 and -2.1,-2.0 for options.
    """
    words: list[str] = []
    for word in args:
        if re.match(r"-\.?\d", word) and words and words[-1].startswith("--") and "=" not in words[-1]:
            words[-1] += f"={word}"
        else:
            words.append("--output" if word == "-o" else word)
    return words


def _function(command: str) -> Callable[..., None]:
    found: Callable[..., None] = getattr(import_module(COMMANDS[command]), command)
    return found


def _listed(command: str) -> Callable[[], None]:
    """What stands for a command in the list of commands."""

    def listed() -> None: ...

    listed.__doc__ = DOES[command]
    return listed
