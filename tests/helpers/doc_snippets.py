"""The fenced code of the pages that users read, and the commands in it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from tests import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Command(NamedTuple):
    """A shell command of a page: its words, without the variables set before it."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in FENCE.findall(page.read_text()) if kind == language]


def commands() -> list[Command]:
    """Of all pages, each once; job scripts of a cluster, which begin with #!, are left out."""
    found = {}
    for page in PAGES:
        for block in blocks(page, "sh"):
            if block.startswith("#!"):
                continue
            for line in block.replace("\\\n", " ").splitlines():
                words = tuple(word for word in shlex.split(line, comments=True) if word != "...")
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words = words[1:]
                if words:
                    found[Command(str(page.relative_to(ROOT)), words)] = None
    return list(found)
