"""What is public: the names in the `__all__` of each package, and of the module `loggers`. Pages and examples use no other."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import fg_lightning
from tests import ROOT

PACKAGES = [path.parent.relative_to(ROOT) for path in sorted((ROOT / "fg_lightning").rglob("__init__.py"))]
PUBLIC = [*(".".join(path.parts) for path in PACKAGES), "fg_lightning.loggers"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
INTERNAL = "findings.py"
"""A benchmark that applies the rules of findings to recorded maps, without a run around them."""
SCRIPTS = sorted(p for p in (*(ROOT / "examples").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")) if p.name != INTERNAL)
PRESETS = sorted((ROOT / "callbacks").glob("*.yaml"))
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def python_in(path: Path) -> list[ast.Module]:
    if path.suffix == ".py":
        return [ast.parse(path.read_text())]
    return [ast.parse(re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)) for indent, code in BLOCK.findall(path.read_text())]


def imported_names(path: Path) -> set[str]:
    """The dotted names that the code of a page or script imports from this package."""
    found = set()
    for node in (node for tree in python_in(path) for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fg_lightning":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "fg_lightning"}
    return found


def written_names(path: Path) -> set[str]:
    """The dotted names of this package anywhere in a text: in sentences, commands, configurations and the manual's reference."""
    return set(re.findall(r"(?<![\w./])fg_lightning(?:\.\w+)+(?![\w/(]*\.py)", path.read_text()))


def is_public(name: str) -> bool:
    """Whether a dotted name is a package, a name of its `__all__`, or an attribute of such a name."""
    home = max((home for home in PUBLIC if f"{name}.".startswith(f"{home}.")), key=len)
    member, *attributes = name.removeprefix(home).lstrip(".").split(".")
    if not member:
        return True
    module = import_module(home)
    if member not in getattr(module, "__all__", ()):
        return False
    found = getattr(module, member)
    for attribute in attributes:
        found = getattr(found, attribute)
    return True


@pytest.mark.parametrize("home", PUBLIC)
def test_all_names_of_a_package_are_there_in_order(home: str) -> None:
    module = import_module(home)
    names = getattr(module, "__all__", [])  # the command line has none
    assert all(getattr(module, name) is not None for name in names)
    assert sorted(names) == sorted(set(names))
    assert not [name for name in names if name.startswith("_")]


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda path: path.name)
def test_pages_and_examples_import_public_names(path: Path) -> None:
    assert not {name for name in imported_names(path) if not is_public(name)}


@pytest.mark.parametrize("path", [*PAGES, *PRESETS], ids=lambda path: path.name)
def test_pages_and_presets_speak_of_public_names(path: Path) -> None:
    assert not {name for name in written_names(path) if not is_public(name)}


def test_something_is_read() -> None:
    assert len([path for path in PAGES if imported_names(path)]) > 5
    assert "fg_lightning.roar.ROARExperiment" in written_names(ROOT / "docs/reference/api/roar.md")
    assert not is_public("fg_lightning.roar.experiment.ROARExperiment")


def test_the_top_has_what_its_packages_have() -> None:
    for name in fg_lightning.__all__:
        home = import_module(f"fg_lightning.{fg_lightning._HOMES[name]}")
        assert name in home.__all__
        assert getattr(fg_lightning, name) is getattr(home, name)
    assert set(fg_lightning.__all__) <= set(dir(fg_lightning))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fg_lightning.nothing  # noqa: B018


def test_the_version_stands_in_one_place() -> None:
    assert "version" not in re.findall(r"^(\w+) = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    holding = [path for path in (ROOT / "fg_lightning").rglob("*.py") if f'"{fg_lightning.__version__}"' in path.read_text()]
    assert [path.name for path in holding] == ["__init__.py"]
