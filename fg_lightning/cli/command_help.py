"""What `fg-lightning COMMAND --help` prints: usage, the whole description, and options without internal classes."""

from __future__ import annotations

import re
import sys
import textwrap
from argparse import Action
from collections.abc import Callable
from inspect import getdoc
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from fg_lightning.cli.option_errors import shorten

LISTED = re.compile(r", known subclasses: ([^()]*)")
"""The classes that jsonargparse lists for an option: all that happen to be imported."""


class CommandHelp(DefaultHelpFormatter):
    """Keeps paragraphs, breaks no line at a hyphen, and lists no classes: a command takes the user's own."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = [textwrap.indent("\n".join(self._split_lines(part, width - len(indent))), indent) for part in text.split("\n\n")]
        return "\n\n".join(parts)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _expand_help(self, action: Action) -> str:
        text = re.sub(r"<class '(\w+)'>", r"\1", super()._expand_help(action))
        return LISTED.sub(lambda listed: self.list_classes(listed[1].split(", ")), text)

    def list_classes(self, paths: list[str]) -> str:
        """The end of an option's help.

        Args:
            paths: import paths of the classes that jsonargparse lists.
        """
        return ""


class TrainingHelp(CommandHelp):
    """Of fit, validate, test and predict: lists the classes of Lightning and the public ones of this package."""

    def list_classes(self, paths: list[str]) -> str:
        public = [path for path in paths if _is_public(path)]
        return f", known subclasses: {', '.join(public)}" if public else ""


def _is_public(path: str) -> bool:
    module, _, name = path.rpartition(".")
    return not path.startswith("fg_lightning.") or name in getattr(sys.modules.get(module), "__all__", ())


class CommandParser(ArgumentParser):
    """The parser of a command. `auto_cli` alone would describe it by the first line of its docstring."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": CommandHelp, **kwargs})

    def add_function_arguments(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
        """Adds the options of a command's function, and describes the command as its docstring does."""
        added: list[str] = super().add_function_arguments(function, *args, **kwargs)
        self.description = re.split(r"\n\n(?:Args|Raises):", getdoc(function) or "")[0]
        words = []
        for action in self._actions:
            if not action.option_strings:
                is_list = action.metavar == "[ITEM,...]"  # the command takes them as words
                action.metavar = action.dest if is_list else action.metavar
                words.append(f"{action.metavar or action.dest}{' ...' * is_list}")
        self.usage = " ".join([self.prog, "[options]", *words])
        return added

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the error as one sentence, and exits with status 2."""
        super().error(shorten(message, [action.dest for action in self._actions if not action.option_strings]), ex)
