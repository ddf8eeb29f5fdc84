"""Imports run one way: between packages along their layers, and within a package without a circle."""

from __future__ import annotations

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from tests import ROOT

PACKAGE = ROOT / "fg_lightning"
LAYERS = (
    "errors atomic_files sample_seeds checkpoints fullgrad attribution removal metrics demo visualization history loggers "
    "recording roar planted report callbacks explain training cli __main__"
).split()
"""A module imports from its own layer and those before it."""

WITHOUT_LIGHTNING = "errors atomic_files sample_seeds fullgrad attribution removal metrics visualization history recording".split()


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name):
    """Everything that a module imports anywhere: also in functions and for type checking alone."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {member if member in MODULES else node.module for member in members}


GRAPH = {name: {other for other in imports_of(name) if other.startswith("fg_lightning")} for name in MODULES}
del GRAPH["fg_lightning"]  # its names are loaded when they are used


def layer(name):
    return name.split(".")[1] if "." in name else "fg_lightning"


def external_imports(layers):
    """The packages that are imported from elsewhere, with who imports them."""
    found = {(name, other.split(".")[0]) for name in GRAPH if layer(name) in layers for other in imports_of(name)}
    return {(name, other) for name, other in found if other not in (*sys.stdlib_module_names, "fg_lightning")}


def test_every_module_has_a_layer():
    assert {layer(name) for name in GRAPH} == set(LAYERS)


def test_imports_run_along_the_layers():
    order = {name: i for i, name in enumerate(LAYERS)}
    climbing = {
        f"{name} imports {other}" for name in GRAPH for other in GRAPH[name] if order.get(layer(other), 99) > order[layer(name)]
    }
    assert not climbing, "\n".join(sorted(climbing))


def test_no_module_imports_itself_by_way_of_others():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_mathematics_imports_torch_and_captums_base_class_alone():
    assert not {name for name in GRAPH if layer(name) == "fullgrad" and {layer(other) for other in GRAPH[name]} - {"fullgrad"}}
    foreign = external_imports(["fullgrad"])
    assert {other for _, other in foreign} == {"torch", "jaxtyping", "captum", "numpy"}  # numpy: targets, and its random state
    assert {name for name, other in foreign if other == "captum"} == {"fg_lightning.fullgrad.saliency"}


def test_what_lies_below_the_callbacks_knows_no_lightning():
    lightning = {"lightning", "pytorch_lightning", "lightning_fabric"}  # lightning_utilities maps over collections, and knows none
    assert not {(name, other) for name, other in external_imports(WITHOUT_LIGHTNING) if other in lightning}


def test_the_order_that_contributors_read_is_this_one():
    (stated,) = re.findall(r"Imports run one way: ([^.]+)\.", (ROOT / "CONTRIBUTING.md").read_text())
    assert re.findall(r"`(\w+)`", stated) == [name for name in LAYERS if (PACKAGE / name).is_dir()]
