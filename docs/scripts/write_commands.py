"""Writes docs/reference/commands.md from the signatures and docstrings of the commands: python docs/scripts/write_commands.py"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from docstring_parser import parse

from fg_lightning.cli.main import COMMANDS, SHORT
from fg_lightning.planted import PlantedConfig
from fg_lightning.roar import ROARConfig
from fg_lightning.training import ImageClassifier, ImageFolderDataModule, TorchvisionDataModule

PAGE = Path(__file__).parents[1] / "reference" / "commands.md"

START = """# All commands and options

<!-- made by docs/scripts/write_commands.py -->

`fg-lightning COMMAND --help` prints the same, with types. Every command also takes `--config FILE`, a YAML file with its options;
options after it override it. Lists are written `'[a,b]'`, switches `true` or `false`.
"""

SETTINGS: dict[str, Callable[..., Any]] = {"roar": ROARConfig, "planted": PlantedConfig}
"""What takes the options that a command hands on."""

FIT = """`fit`, `validate`, `test` and `predict` are [Lightning's CLI](https://lightning.ai/docs/pytorch/stable/cli/lightning_cli.html).
Every argument of the Trainer is an option `--trainer.NAME`. The tables have the arguments of the package's own network and data.
See [train without writing code](../how-to/train_without_code.md).
"""


def write_page() -> str:
    """The text of the page."""
    parts = [START]
    for name, module in COMMANDS.items():
        if module == "fg_lightning.cli.fit":
            continue
        function = getattr(import_module(module), name.replace("-", "_"))
        described = parse(function.__doc__ or "")
        about = " ".join(part for part in (described.short_description, described.long_description) if part)
        parts.append(f"## {name}\n\n{_one_line(about)}\n\n{options_table(function, SETTINGS.get(name))}")
    parts.append(f"## fit, validate, test, predict\n\n{FIT}")
    for prefix, kind in (("model", ImageClassifier), ("data", TorchvisionDataModule), ("data", ImageFolderDataModule)):
        shared = kind.__mro__[1] if prefix == "data" else None  # the datamodules hand on what their base class takes
        parts.append(f"### {kind.__name__}\n\n{options_table(kind, shared, prefix=f'{prefix}.')}")
    return "\n".join(parts)


def options_table(function: Callable[..., Any], more: Callable[..., Any] | None = None, prefix: str = "") -> str:
    """A row for each option: its name, its default and what the docstring tells."""
    rows = []
    for source in (function, *([more] if more is not None else [])):
        texts = {item.arg_name: item.description or "" for item in parse(_docstring(source)).params}
        for parameter in inspect.signature(source).parameters.values():
            is_listed = any(row.startswith(f"| `--{prefix}{parameter.name}`") for row in rows)
            if parameter.kind is parameter.VAR_KEYWORD or is_listed or (source is more and parameter.name in ("data", "model")):
                continue
            name = parameter.name if _is_positional(function, parameter) else f"--{prefix}{parameter.name}"
            short = "".join(f", `{key}`" for key, long in SHORT.items() if long == f"--{parameter.name}" and not prefix)
            rows.append(f"| `{name}`{short} | {_default(source, parameter)} | {_cell(texts.get(parameter.name, ''))} |")
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows, ""]) if rows else ""


def _docstring(source: Callable[..., Any]) -> str:
    """Of a class whose arguments are described in its own docstring or in that of `__init__`."""
    return source.__doc__ or getattr(source.__init__, "__doc__", "") or ""


def _is_positional(function: Callable[..., Any], parameter: inspect.Parameter) -> bool:
    """Required arguments are written without a name on the command line."""
    return parameter.default is parameter.empty and not inspect.isclass(function)


def _default(source: Callable[..., Any], parameter: inspect.Parameter) -> str:
    value = parameter.default
    if is_dataclass(source) and value is not parameter.empty:
        (field,) = [field for field in fields(source) if field.name == parameter.name]
        value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is parameter.empty:
        return "required"
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        value = f"[{','.join(map(str, value))}]"
    text = {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


if __name__ == "__main__":
    PAGE.write_text(write_page())
