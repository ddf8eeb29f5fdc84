"""Private names of torch stand in one file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import fg_lightning
from fg_lightning.fullgrad import torch_internals

PACKAGE = Path(fg_lightning.__file__).parent
OF_TORCH = {name for kind in (torch, torch.Tensor, nn.Module, torch.autograd.Function) for name in dir(kind)}
OF_TORCH |= {*vars(nn.Module()), "_saved_self", "_schema", "_orig_mod", "_forward_module", "_cache_enabled"}
OF_TORCH.remove("_softmax")
"""Names of tensors, modules, functions and of torch itself, and some of other objects; without that of an operation."""


def private_names(path: Path) -> Iterator[str]:
    """Names that a file imports, reads or writes as text and that are torch's own."""
    tree = ast.parse(path.read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (name for name in names if is_private(name))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
            names = [node.attr]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        yield from (name for name in names if is_private(name) and name in OF_TORCH and name not in own)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def test_private_names_of_torch_stand_in_one_file() -> None:
    found = {path: set(private_names(path)) for path in PACKAGE.rglob("*.py")}
    assert {"_C", "_base", "_is_view", "_version", "_pop_mode_temporarily"} <= found.pop(Path(torch_internals.__file__))
    assert {path.name: names for path, names in found.items() if names} == {}
