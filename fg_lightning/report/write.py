"""A folder's report, written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from fg_lightning.atomic import sweep, write_atomically
from fg_lightning.errors import CannotRun

if TYPE_CHECKING:
    from fg_lightning.report.found import Found

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
    from fg_lightning.report.found import found  # the command line reads options that take no Lightning

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
