"""The command line: fg-lightning."""

from __future__ import annotations

import ast
import errno
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from types import FunctionType

from jsonargparse import auto_cli

from fg_lightning.cli.command_help import CommandParser
from fg_lightning.cli.presets import find_presets
from fg_lightning.errors import CannotRun

ADVICE = {
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: "make room, or use another folder",
    errno.EDQUOT: "make room, or use another folder",
    errno.EROFS: "use another folder",
}
"""Advice on errors of the disk that a command does not explain itself."""

SHOWN = 200
"""Largest number of characters of a file's name in a message."""

COMMANDS = {
    "demo": "fg_lightning.cli.demo",
    "explain": "fg_lightning.cli.explain",
    "roar": "fg_lightning.cli.roar",
    "planted": "fg_lightning.cli.planted",
    "report": "fg_lightning.cli.report",
    "watch": "fg_lightning.cli.watch",
    "watch-checkpoints": "fg_lightning.cli.watch_checkpoints",
    "cite": "fg_lightning.cli.cite",
    "completion": "fg_lightning.cli.completion",
    **dict.fromkeys(("fit", "validate", "test", "predict"), "fg_lightning.cli.fit"),
}
"""Every command, and the module with a function of its name (with _ for -), whose signature is the options."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command of `fg-lightning`. If the user made a mistake, prints one sentence on standard error and exits with status 1.

    Args:
        args: the words after the program's name. Default: those of this process.
    """
    if args is None and isinstance(sys.stdout, TextIOWrapper):  # paths with any letters can be printed
        sys.stdout.reconfigure(errors="surrogateescape" if sys.stdout.encoding == "utf-8" else "backslashreplace")
    try:
        put_current_folder_last()
        _run(_join_values(sys.argv[1:] if args is None else args))
    except CannotRun as error:
        sys.exit(f"fg-lightning: {error}")
    except OSError as error:
        if error.errno not in ADVICE:
            raise
        name = str(error.filename or "")
        where = f" ({name[:SHOWN]}{'...' * (len(name) > SHOWN)})" if name else ""
        sys.exit(f"fg-lightning: {os.strerror(error.errno)}{where}: {ADVICE[error.errno]}")
    except (KeyboardInterrupt, SystemExit) as stop:
        is_by_trainer = isinstance(stop.__context__, KeyboardInterrupt) and getattr(stop, "code", 0) == 1  # it exits silently
        if isinstance(stop, SystemExit) and not is_by_trainer:
            raise
        print("fg-lightning: stopped", file=sys.stderr)
        sys.exit(130)


def put_current_folder_last() -> None:
    """Puts the current folder last in `sys.path`: the user's classes are found there, but installed modules come first.

    If PYTHONPATH names the folder, it stays where the user put it.

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
    if COMMANDS.get(command) == "fg_lightning.cli.fit":
        find_function(command)(*given[1:])  # Lightning's command line parses them
    elif command in COMMANDS:
        given = _fill_flags(given)
        if command in WORD_LISTS:
            given = _join_words(given)
        function = find_function(command)
        if not {"-h", "--help"}.isdisjoint(given):
            function = _without_classes(function)
        auto_cli(function, args=find_presets(given[1:]), prog=f"fg-lightning {command}", parser_class=CommandParser)
    else:
        of = find_function if command.startswith("--config") else _summary  # a configuration may have options of any command
        auto_cli(
            {name: of(name) for name in COMMANDS},
            args=list(given),
            prog="fg-lightning",
            usage="fg-lightning COMMAND [options]",
            version=version("fg-lightning"),
        )


SHORT = {"-o": "--output", "--seeds": "--num_seeds", "--no_controls": "--controls=false"}
"""Short forms of options."""


def _join_values(args: Sequence[str]) -> list[str]:
    """The words of a command line, with options in their long form, and numbers below 0 with a `=` before them.

    `auto_cli` makes no short options. argparse recognizes -1 as a number, but not -1e-3 and -2.1,-2.0: how it tells numbers from
    options is private to it.
    """
    words: list[str] = []
    for word in args:
        if re.match(r"-\.?\d", word) and words and words[-1].startswith("--") and "=" not in words[-1]:
            words[-1] += f"={word}"
        else:
            option, *value = word.split("=", 1)
            words.append("=".join([SHORT.get(option, option), *value]))
    return words


def _fill_flags(args: Sequence[str]) -> list[str]:
    """The words of a command, with `=true` added to each flag without a value: `auto_cli` requires one."""
    parameters = inspect.signature(find_function(args[0])).parameters
    flags = {f"--{name}" for name, parameter in parameters.items() if parameter.annotation in (bool, "bool")}
    following = [*args[1:], ""]
    return [
        f"{word}=true" if word in flags and after.lower() not in ("true", "false") else word
        for word, after in zip(args, following, strict=True)
    ]


WORD_LISTS = {"cite": "--names=", "report": ""}
"""Commands that take any number of words, and the option that holds the words. Empty for a positional argument."""


def _join_words(args: Sequence[str]) -> list[str]:
    """The words of a command in `WORD_LISTS`, without options and their values, as one list: `auto_cli` takes one word for each."""
    known = ["--config", *(f"--{name}" for name in inspect.signature(find_function(args[0])).parameters)]
    words, options, rest = list[str](), list[str](), iter(args[1:])
    for word in rest:
        if not word.startswith("-"):
            words.append(word)
            continue
        options.append(word)
        if any(option.startswith(word) for option in known):  # argparse allows abbreviations
            options += islice(rest, 1)
    return [args[0], *([WORD_LISTS[args[0]] + json.dumps(words)] if words else []), *options]


def find_function(command: str) -> Callable[..., None]:
    """The function of a command."""
    function: Callable[..., None] = getattr(import_module(COMMANDS[command]), command.replace("-", "_"))
    return function


def _without_classes(function: Callable[..., None]) -> Callable[..., None]:
    """A command's function for its help, with text instead of modules of torch, whose import takes seconds."""
    if not any("nn.Module" in annotation for annotation in function.__annotations__.values()):
        return function  # not a copy: of the function itself, `auto_cli` also finds the options that it passes on
    annotations = {name: "str | None" if "Module]" in text else text for name, text in function.__annotations__.items()}
    copied = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    copied.__doc__, copied.__module__ = function.__doc__, __name__  # not the module that imports torch for its types
    copied.__annotations__ = annotations
    return copied


def _summary(command: str) -> Callable[[], None]:
    """An empty function with a command's docstring, read from its file. The list of commands then imports none of them."""
    source = (Path(__file__).parent / f"{COMMANDS[command].rpartition('.')[2]}.py").read_text(encoding="utf-8")
    name = command.replace("-", "_")
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name]

    def summary() -> None: ...

    summary.__doc__ = (ast.get_docstring(functions[0]) or "").partition("\n")[0]
    return summary
