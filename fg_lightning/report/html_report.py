"""Writes the report of a folder: finds the run or the experiment, renders its page, and writes one HTML file."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Union

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from fg_lightning.atomic_files import sweep, write_atomically
from fg_lightning.errors import CannotRun, list_briefly
from fg_lightning.history.records import HISTORY
from fg_lightning.report.figures import Page
from fg_lightning.report.image_encoding import to_base64
from fg_lightning.report.planted_page import is_planted, planted_page
from fg_lightning.report.roar_page import experiment_page, is_experiment
from fg_lightning.report.run_page import run_page

MAX_DEPTH = 6
"""How many levels of folders below the given one are searched."""


def write_report(
    folder: Union[str, Path],
    output: Union[str, Path, None] = None,
    track: Callable[[str, Sequence[Any]], Iterable[Any]] = lambda what, items: items,
) -> Path:
    """Writes the report of a monitored run, of a ROAR experiment or of one with planted shortcuts. Unfinished ones work too.

    Args:
        folder: of the run, or above its only `fullgrad/`; or of the experiment.
        output: the file. Default: `report.html` in the folder of the run or experiment.
        track: shows progress. It gets a description and items, and passes the items on one by one.

    Returns:
        The file's absolute path.

    Raises:
        CannotRun: if the folder holds neither, there are no results yet, or the file cannot be written.
    """
    folder = locate_run(Path(folder))
    page = render(_make_page(folder, track))
    path = (folder / "report.html" if output is None else Path(output)).resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        write_atomically(path, page)
    except OSError as error:
        raise CannotRun(f"{path} cannot be written: {error.strerror}; name another file with --output") from error
    return path


def _make_page(folder: Path, track: Callable[[str, Sequence[Any]], Iterable[Any]]) -> Page:
    if _is_run(folder):
        return run_page(folder, track)
    return planted_page(folder) if is_planted(folder) else experiment_page(folder, track)


def locate_run(folder: Path) -> Path:
    """The absolute folder of a run or an experiment: the given one, or the only one below it.

    Raises:
        CannotRun: if there is none, or more than one.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise CannotRun(f"{folder} {what}; name the folder of a run that FullGradMonitor recorded, or of an experiment")
    candidates = [path for path in _list_folders(folder) if _is_run(path) or is_experiment(path)]
    if not candidates:
        raise CannotRun(
            f"{folder} holds neither a monitored run (a folder fullgrad/ with {HISTORY}) nor an experiment (experiment.json, "
            "cells/), and no folder below it does; name the one that FullGradMonitor, or fg-lightning roar or planted wrote to"
        )
    if len(candidates) > 1 and candidates[0] != folder:
        newest_first = sorted(candidates, key=lambda path: -path.stat().st_mtime)
        listed = list_briefly(newest_first)
        raise CannotRun(f"there are {len(candidates)} runs below {folder}, name one, the newest is first: {listed}")
    return candidates[0]


def _list_folders(top: Path) -> list[Path]:
    """The folder and those below it, the nearest first; links are not followed."""
    folders = []
    for path, names, _ in os.walk(top):
        folders.append(Path(path))
        if len(Path(path).relative_to(top).parts) == MAX_DEPTH:
            names.clear()
        names[:] = [name for name in names if not name.startswith(".")]
    return sorted(folders, key=lambda path: (len(path.parts), path))


def _is_run(folder: Path) -> bool:
    return (folder / HISTORY).is_file() or (folder / "probe.json").is_file()


def render(page: Page) -> str:
    """The HTML of a page. Everything from the user is escaped: words by Jinja, data by its `tojson`."""
    environment = Environment(
        loader=PackageLoader("fg_lightning.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    contents = {figure.name: figure.content for figure in page.figures}
    render_with = partial(
        environment.get_template(page.template).render,
        figures=page.figures,
        contents=contents,
        plotly=_compress_plotly(),
        **page.values,
    )
    return render_with(policy=_security_policy(render_with(policy="")))


def _security_policy(html: str) -> str:
    """The Content-Security-Policy of a page: its own scripts by their hashes, its styles and pictures, nothing from elsewhere."""
    scripts = [_script_hash(script) for script in re.findall(r"<script>(.*?)</script>", html, re.DOTALL)]
    allowed = {
        "default-src": ["'none'"],
        "script-src": [*scripts, _script_hash(get_plotlyjs())],
        "style-src": ["'unsafe-inline'"],  # plotly writes styles as it draws
        "img-src": ["data:", "blob:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    return "; ".join(" ".join([what, *sources]) for what, sources in allowed.items())


def _script_hash(script: str) -> str:
    return f"'sha256-{to_base64(hashlib.sha256(script.encode()).digest())}'"


@cache
def _compress_plotly() -> str:
    """plotly.js, gzipped, as base64: two fifths of its size. The browser unpacks it."""
    return to_base64(gzip.compress(get_plotlyjs().encode(), mtime=0))
