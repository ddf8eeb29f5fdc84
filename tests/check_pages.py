"""Checks the words and the links of all pages: python -m tests.check_pages [FILE ...]

Words: phrases that readers stumble over, with what to write instead (CONTRIBUTING.md, "Words"). Markdown files and the docstrings,
comments and messages of the package are read. Links: a relative address must lead to a file, and its anchor to a heading there.
Code is left out of both. Prints a line for each fault. The exit status is 1 if there is one.
"""

from __future__ import annotations

import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests import ROOT

WORDS = {
    r"\bnothing but\b": "write 'only'",
    r"\bbut for\b": "write 'without' or 'except'",
    r"\bsomebody\b|\ba person\b": "write 'you' in pages, 'the user' in code",
    r"\bof yours\b": "write 'your'",
    r"\b(?:tells?|says?) so\b": "name the subject: 'a message tells you', 'it warns'",
    r"\bwhat (?:there is|is there)\b": "name the thing",
    r"\bwhat (?:is|was|can be|cannot be) \w+(?: \w+){0,2} (?:is|are|was|stays)\b": "name the thing that is the subject",
    r"\bwhatever (?:it|they) says?\b": "write what holds",
    r"\bas (?:it|they) comes? by\b": "say when it is read",
    r"\blook(?:s|ed)? (?:at )?on\b|\bstands? back\b": "write 'continues' or 'is disabled'",
    r"\b(?:a|an|each|every|first|last|one|this) look\b(?! at)": "write 'snapshot'",
    r"\bno text can\b|\bcannot look\b": "write 'cannot be given as text', 'cannot compute maps'",
    r"\banother (\w+) takes another\b": "write 'to change the ..., use a new ...'",
    r"\bdoes to an? training\b": "write 'affects training'",
    r"\bto be had\b|\bis had\b|\bhave to do with\b": "use the common verb",
}
"""Patterns, and what to do instead. Capitals do not count."""

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^\s*(```|~~~)")


def main(files: list[str]) -> int:
    faults = [fault for path in map(Path, files or list_files()) for fault in find_faults(path)]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


def list_files() -> list[str]:
    """The pages and the package's source files that git knows, or, outside of a repository, that are there."""
    patterns = ["*.md", "fg_lightning/*.py", "examples/*.py"]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = listed.stdout.split("\n")[:-1] if listed.returncode == 0 else []
    paths = [ROOT / name for name in names] or [path for pattern in patterns for path in ROOT.rglob(pattern.split("/")[-1])]
    return sorted(str(path) for path in paths if path.is_file())


def find_faults(path: Path) -> Iterator[str]:
    """A line for each phrase to avoid and each link that leads nowhere."""
    lines = prose(path)
    text = "\n".join(lines)
    for pattern, advice in WORDS.items():
        for match in re.finditer(pattern.replace(" ", r"\s+"), text, re.IGNORECASE):
            number = text.count("\n", 0, match.start()) + 1
            yield f"{_name(path)}:{number}: {' '.join(match[0].split())!r}: {advice}"
    if path.suffix == ".md":
        for number, line in enumerate(lines, 1):
            for match in LINK.finditer(line):
                if fault := _broken(path, match[1] or match[2]):
                    yield f"{_name(path)}:{number}: {fault}"


def prose(path: Path) -> list[str]:
    """The lines of a file, empty where they are code: in Markdown between fences and backticks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix != ".md":
        return lines
    is_code, kept = False, []
    for line in lines:
        is_fence = FENCE.match(line) is not None
        kept.append("" if is_code or is_fence else re.sub(r"`[^`]*`", "`code`", line))
        is_code = is_code != is_fence
    return kept


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a Markdown file: its headings, as the manual and code hosts name them, and ids that are written out."""
    found: dict[str, int] = {}
    text = path.read_text(encoding="utf-8")
    is_code, names = False, set(re.findall(r"""(?:\{#|\bid=["']?)([\w.-]+)""", text))
    for line in text.splitlines():
        is_code = is_code != bool(FENCE.match(line))
        if (heading := re.match(r"#{1,6}\s+(.*?)\s*#*$", line)) and not is_code:
            words = re.sub(r"\{[^}]*\}$", "", heading[1])
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", words).replace("`", "")
            plain = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
            slug = re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
            names.add(slug if slug not in found else f"{slug}_{found[slug]}")
            found[slug] = found.get(slug, 0) + 1
    return names


def _broken(page: Path, address: str) -> str | None:
    """What is wrong with an address on a page; None if nothing is, or it leads elsewhere."""
    if re.match(r"[a-z]+:|//", address):
        return None
    name, _, anchor = address.partition("#")
    target = page.parent / name if name else page
    if not target.exists():
        return f"the link leads to {address}, which does not exist"
    is_reference = "." in anchor  # mkdocstrings makes it from a Python name
    if anchor and target.suffix == ".md" and not is_reference and anchor not in anchors(target):
        return f"the link leads to {address}, but {name or 'this page'} has no such heading"
    return None


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
