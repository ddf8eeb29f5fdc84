"""What there is to report on in a folder that a person names.

One HTML file: the template with everything in it that a browser needs.

A folder's report, written.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Union

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from fg_lightning.atomic_files import sweep, write_atomically
from fg_lightning.errors import CannotRun
from fg_lightning.history.history import HISTORY
from fg_lightning.report.figures import Figure
from fg_lightning.report.sprites import base64_of
from fg_lightning.roar.experiment_folder import NAME as EXPERIMENT
from fg_lightning.roar.results import COLUMNS

DEEPEST = 6
"""So many folders below the named one are looked into."""

TABLE = "results.csv"


@dataclass(frozen=True)
class Found:
    """
    Attributes:
        folder: that holds what was found; absolute.
        is_experiment: whether it is ROAR's, not a monitored run's.
    """

    folder: Path
    is_experiment: bool


def found(folder: Path) -> Found:
    """The run or the experiment in a folder, or the only one below it.

    Raises:
        CannotRun: if there is none, or more than one.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise CannotRun(f"{folder} {what}; name the folder of a run that FullGradMonitor watched, or of a ROAR experiment")
    below = [where for where in _folders(folder) if _is_run(where) or _is_experiment(where)]
    if not below:
        raise CannotRun(
            f"{folder} holds neither a monitored run (a folder fullgrad/ with {HISTORY}) nor a ROAR experiment (experiment.json, "
            "cells/), and no folder below it does; name the one that FullGradMonitor or fg-lightning roar wrote to"
        )
    if len(below) > 1 and below[0] != folder:
        newest_first = sorted(below, key=lambda where: -where.stat().st_mtime)
        raise CannotRun(f"there are {len(below)} runs below {folder}, name one, the newest is first: {_listed(newest_first)}")
    return Found(below[0], not _is_run(below[0]))


def _folders(top: Path) -> list[Path]:
    """The folder and those below it, the nearest first; links are not followed."""
    reached = []
    for where, names, _ in os.walk(top):
        reached.append(Path(where))
        if len(Path(where).relative_to(top).parts) == DEEPEST:
            names.clear()
        names[:] = [name for name in names if not name.startswith(".")]
    return sorted(reached, key=lambda where: (len(where.parts), where))


def _is_run(folder: Path) -> bool:
    return (folder / HISTORY).is_file() or (folder / "probe.json").is_file()


def _is_experiment(folder: Path) -> bool:
    return (folder / EXPERIMENT).is_file() or (folder / "cells").is_dir() or _first_line(folder / TABLE) == ",".join(COLUMNS)


def _first_line(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open(errors="replace") as file:
        return file.readline().rstrip("\n")


def _listed(folders: list[Path]) -> str:
    return ", ".join(map(str, folders[:8])) + (f" and {len(folders) - 8} more" if len(folders) > 8 else "")


def page(template: str, figures: Sequence[Figure], **values: Any) -> str:
    """A template's page. Whatever comes from a user is escaped: words by Jinja, data by its `tojson`.

    Args:
        template: a file in `templates/`.
        figures: its curves.
        values: what else the template asks for.
    """
    environment = Environment(
        loader=PackageLoader("fg_lightning.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    contents = {figure.name: figure.content for figure in figures}
    render = partial(
        environment.get_template(template).render, figures=figures, contents=contents, plotly=_packed_plotly(), **values
    )
    return render(policy=_policy(render(policy="")))


def _policy(html: str) -> str:
    """The Content-Security-Policy of a page: its own scripts by their hashes, its styles and pictures, nothing from elsewhere."""
    scripts = [_hash_of(script) for script in re.findall(r"<script>(.*?)</script>", html, re.DOTALL)]
    allowed = {
        "default-src": ["'none'"],
        "script-src": [*scripts, _hash_of(get_plotlyjs())],
        "style-src": ["'unsafe-inline'"],  # plotly writes styles as it draws
        "img-src": ["data:", "blob:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    return "; ".join(" ".join([what, *sources]) for what, sources in allowed.items())


def _hash_of(script: str) -> str:
    return f"'sha256-{base64_of(hashlib.sha256(script.encode()).digest())}'"


@cache
def _packed_plotly() -> str:
    """plotly.js, gzipped, as base64: two fifths of its size, which the browser unpacks."""
    return base64_of(gzip.compress(get_plotlyjs().encode(), mtime=0))


Track = Callable[[str, Sequence[Any]], Iterable[Any]]
"""Passes things on one by one and shows how far it is; given what is done to them."""


def write_report(folder: Union[str, Path], output: Union[str, Path, None] = None, track: Track = lambda what, items: items) -> Path:
    """Writes the report of a monitored run or of a ROAR experiment, as far as either has come.

    Args:
        folder: of the run, or above its only `fullgrad/`; or of the experiment.
        output: the file; by default `report.html` in the folder that holds what was found.
        track: told of what takes long.

    Returns:
        The file's absolute path.

    Raises:
        CannotRun: if there is neither in the folder, nothing has been found yet, or the file cannot be written.
    """
    pass

    source = found(Path(folder))
    page = _page(source, track)
    path = (source.folder / "report.html" if output is None else Path(output)).resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        write_atomically(path, page)
    except OSError as error:
        raise CannotRun(f"{path} cannot be written: {error.strerror}; name another file with --output") from error
    return path


def _page(source: Found, track: Track) -> str:
    if source.is_experiment:
        from fg_lightning.report.roar_page import roar_page

        return roar_page(source.folder, track)
    from fg_lightning.report.run_page import run_page

    return run_page(source.folder, track)
