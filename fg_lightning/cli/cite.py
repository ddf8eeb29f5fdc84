"""fg-lightning cite: BibTeX entries that the user may have to cite."""

from __future__ import annotations

import difflib
import re
from importlib.metadata import version
from pathlib import Path
from typing import Union

from fg_lightning.errors import CannotRun

BIBLIOGRAPHY = Path(__file__).parent / "references.bib"
"""Entries with blank lines between them. `cite` finds an entry by any of its `keywords`."""


def cite(names: Union[str, list[str]] = "all") -> None:
    """Print BibTeX of methods, tests, data sets and this package.

    For example: fg-lightning cite fullgrad roar FashionMNIST fg-lightning > references.bib

    Args:
        names: Names of methods, tests (roar, road, kar, pixel_perturbation, ...) or data sets, or fg-lightning, separated by spaces
            or commas. The word --names itself is optional. Default: all.

    Raises:
        CannotRun: if a name is unknown.
    """
    print("\n\n".join(find_references(names)))


def find_references(names: Union[str, list[str]]) -> list[str]:
    """The entries of some names, each once, in the bibliography's order.

    Args:
        names: names with commas between them, or a list. Capitals, hyphens and underscores do not count. "all": every entry.

    Raises:
        CannotRun: if a name is unknown.
    """
    entries = read_references()
    wanted = {_plain(name): name.strip() for name in (names.split(",") if isinstance(names, str) else names) if name.strip()}
    if wanted.keys() <= {"all"}:
        return list(entries)
    known = {_plain(keyword): keyword for keywords in entries.values() for keyword in keywords}
    for plain, name in wanted.items():
        if plain not in known:
            near = difflib.get_close_matches(plain, known, n=1)
            hint = f" (did you mean {known[near[0]]}?)" if near else ""
            raise CannotRun(f"no reference is known for {name!r}{hint}; known names are {', '.join(sorted(known.values()))}")
    return [entry for entry, keywords in entries.items() if wanted.keys() & {_plain(keyword) for keyword in keywords}]


def read_references() -> dict[str, list[str]]:
    """Every entry of the bibliography, and its keywords."""
    text = BIBLIOGRAPHY.read_text(encoding="utf-8").replace("@VERSION@", version("fg-lightning"))
    entries = [entry.strip() for entry in text.split("\n\n") if entry.lstrip().startswith("@")]
    return {entry: re.findall(r"[\w]+", re.findall(r"keywords = \{(.*)\}", entry)[0]) for entry in entries}


def list_names() -> list[str]:
    """Every name that `find_references` knows."""
    return sorted({keyword for keywords in read_references().values() for keyword in keywords})


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()
