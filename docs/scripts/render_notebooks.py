"""A hook of mkdocs: shows each notebook as a page, with the outputs that it holds. It runs no code."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

DOWNLOAD = '<a href="{name}" download>Download this page as a notebook</a>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page, and a file for each of its pictures, beside every notebook."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        notebook = nbformat.read(Path(config.docs_dir) / file.src_uri, as_version=4)
        stem = file.src_uri.removesuffix(".ipynb")
        pictures: dict[str, bytes] = {}
        text = "\n\n".join(part for cell in notebook.cells for part in show_cell(cell, Path(stem).name, pictures))
        title, _, rest = text.partition("\n")
        page = f"{title}\n\n{DOWNLOAD.format(name=Path(file.src_uri).name)}\n{rest}"
        files.append(File.generated(config, f"{stem}.md", content=page))
        for name, content in pictures.items():
            files.append(File.generated(config, str(Path(stem).parent / name), content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to a notebook lead to its page."""
    return re.sub(r"(\]\([^)\s]+)\.ipynb\)", r"\1.md)", markdown)


def show_cell(cell: Any, stem: str, pictures: dict[str, bytes]) -> list[str]:
    """The Markdown of a cell and of its outputs. Pictures are added to `pictures` by the names of their files."""
    if cell.cell_type == "markdown":
        return [cell.source]
    parts = [f"```python\n{cell.source}\n```"]
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            name = f"{stem}_{len(pictures)}.png"
            pictures[name] = base64.b64decode(data["image/png"])
            parts.append(f"![Output of the code above]({name})")
        else:
            text = output.get("text") or data.get("text/plain", "")
            parts.append(f"```text\n{text.rstrip()}\n```")
    return parts
