"""fg-lightning completion: a script with which a shell completes the commands and their options."""

from __future__ import annotations

from argparse import Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterator, Mapping
from typing import Literal

from jsonargparse import auto_cli, capture_parser

from fg_lightning.errors import CannotRun


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a shell script that completes the commands of fg-lightning and their options.

    Write it to a file once, so that completion does not wait for torch. For bash:
    ~/.local/share/bash-completion/completions/fg-lightning.

    Args:
        shell: The shell.

    Raises:
        CannotRun: if shtab is not installed.
    """
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise CannotRun("completion needs shtab, which is not installed: pip install 'fg-lightning[completion]'") from error
    print(shtab.complete(_plain_parser(), shell))


def _plain_parser() -> ArgumentParser:
    """The command line as a parser of argparse. It leaves out the types of jsonargparse's actions, which a shell does not need."""
    from fg_lightning.cli.cite import list_names
    from fg_lightning.cli.fit import DESCRIPTIONS
    from fg_lightning.cli.lightning_cli import training_parser
    from fg_lightning.cli.main import COMMANDS, find_function

    functions = {name: find_function(name) for name in COMMANDS if name not in DESCRIPTIONS}
    own = capture_parser(auto_cli, functions, args=[], prog="fg-lightning")
    plain = ArgumentParser("fg-lightning")
    commands = plain.add_subparsers()
    for name, parser in {**_commands_of(own), **_commands_of(training_parser(DESCRIPTIONS))}.items():
        described = (parser.description or "").split("\n")[0].partition(". ")[0]  # without the example
        command = commands.add_parser(name, help=described.replace("%", "%%"), add_help=False)
        for action in parser._actions:
            _copy(action, command)
        if name == "cite":
            command.add_argument("names", nargs="*", choices=list_names())
        if name not in functions:
            for option in _class_options():
                command.add_argument(option)
    return plain


def _commands_of(parser: ArgumentParser) -> Mapping[str, ArgumentParser]:
    (commands,) = (action for action in parser._actions if isinstance(action, _SubParsersAction))
    return commands.choices


def _copy(action: Action, command: ArgumentParser) -> None:
    import shtab

    metavar = action.metavar if isinstance(action.metavar, str) else ""
    choices = metavar[1:-1].split(",") if metavar.startswith("{") else None
    names = [name for name in action.option_strings if not name.endswith("+")]
    copied = command.add_argument(*(names or [action.dest]), choices=choices, nargs=None if names else "*")
    if choices is None:
        copied.complete = shtab.FILE  # type: ignore[attr-defined]


def _class_options() -> Iterator[str]:
    """The options of this package's classes for --model and --data."""
    from fg_lightning.cli.fit_options import CLASSES, option_names

    for part, kinds in CLASSES.items():
        yield from dict.fromkeys(f"--{part}.{name}" for kind in kinds for name in option_names(kind))
