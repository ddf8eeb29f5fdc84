"""Reads running trainings for `fg-lightning watch`. A run is read again if its files change, and only new snapshots are sent."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, from_numpy

from fg_lightning.errors import CannotRun
from fg_lightning.history import read_run
from fg_lightning.history.records import HISTORY
from fg_lightning.report.html_report import render
from fg_lightning.report.image_encoding import Encoding
from fg_lightning.report.run_content import RunContent
from fg_lightning.report.run_folders import find_runs
from fg_lightning.report.run_page import content_figures, describe_state, make_page, name_run
from fg_lightning.visualization.saliency_overlay import overlays_rgb

WATCHED = (HISTORY, "findings.csv", "film_strip.png", "probe.json", f"*/{HISTORY}")
"""Files that change with the run. `history.csv` is the last file of a snapshot that is written."""

NUM_EXPECTED = 100
"""Expected number of snapshots of a run. Their maps fit the budget of a page."""

SEARCH_SECONDS, SEARCH_SHARE = 3.0, 0.05
"""Shortest time in seconds between two searches for runs, and largest share of the time that searching may take."""

COPY_SECONDS = 2.0
"""A snapshot that is later than the film strip by more is of a run that was resumed; by less, the folder may have been copied."""

THUMBNAIL = 72
"""Longer side of an image in the list of runs, in pixels."""


class LiveRun:
    """A run that is served.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = Lock()
        self._seen = ""
        self._content: RunContent | None = None
        self._encoding: Encoding | None = None
        self._sprites: dict[tuple[str, int], str] = {}

    def look(self) -> str:
        """A digest of the files' times and sizes. It reads no file."""
        files = sorted(path for pattern in WATCHED for path in self.folder.glob(pattern))
        stats = [(str(path), stat.st_mtime_ns, stat.st_size) for path in files if (stat := _stat(path)) is not None]
        return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]

    def read(self) -> tuple[str, RunContent | None]:
        """The digest of the files before reading, and their content. The content is None if there is no snapshot."""
        with self._lock:
            seen = self.look()
            if seen != self._seen:
                self._content = self._read()
                self._seen = seen
            return self._seen, self._content

    def _read(self) -> RunContent | None:
        try:
            run = read_run(self.folder)
        except (CannotRun, OSError):
            return None
        before, count = self._content, 0 if self._content is None else len(self._content.snapshots)
        content = RunContent(run, self._encoding, self._sprites, num_sharing=NUM_EXPECTED)
        if before is not None and before.signature(count) != content.signature(count):  # another run, or fewer snapshots
            self._sprites = {}
            content = RunContent(read_run(self.folder), None, self._sprites, num_sharing=NUM_EXPECTED)
        self._encoding = content.encoding
        return content

    def page(self) -> str | None:
        """The page that follows the run. None if there is no snapshot."""
        seen, content = self.read()
        if content is None:
            return None
        page = make_page(content, live={"seen": seen, "signature": content.signature(len(content.snapshots)), **self._signs()})
        return render(page)

    def changes(self, start: int, signature: str, seen: str) -> dict[str, Any]:
        """The changes since a page was made or updated.

        Args:
            start: number of snapshots that the page has.
            signature: signature of these, see `RunContent.signature`.
            seen: digest of the files when the page was updated.

        Returns:
            `reload` if the page no longer fits. Otherwise the new snapshots, and all else that may have changed.
        """
        now, content = self.read()
        if now == seen:
            return {"seen": now, **self._signs()}
        if content is None or start > len(content.snapshots) or content.signature(start) != signature:
            return {"reload": True}
        return {
            "seen": now,
            "signature": content.signature(len(content.snapshots)),
            "entries": content.entries(start),
            "sprites": content.sprites(start),
            "terms": content.layer_terms(start),
            "figures": [
                {"name": f.name, "title": f.title, "meaning": f.meaning, "link": f.link, "height": f.height, "is_wide": f.is_wide}
                | {"summary": f.summary, "content": f.content}
                for f in content_figures(content)
            ],
            "state": describe_state(content, is_live=True),
            **self._signs(),
        }

    def _signs(self) -> dict[str, Any]:
        """Seconds since the last snapshot, and whether training has ended."""
        stat, strip = _stat(self.folder / HISTORY), _stat(self.folder / "film_strip.png")
        age = None if stat is None else max(0.0, time.time() - stat.st_mtime)
        goes_on = strip is not None and stat is not None and stat.st_mtime - strip.st_mtime > COPY_SECONDS
        return {"age": age, "has_ended": strip is not None and not goes_on}

    def summary(self) -> dict[str, Any]:
        """A row in the list of runs."""
        seen, content = self.read()
        row: dict[str, Any] = {"seen": seen, "snapshots": 0, **self._signs()}
        if content is not None:
            last, findings = content.snapshots[-1], describe_state(content)["findings"]
            row |= {
                "snapshots": len(content.snapshots),
                "last": content.axis.moment(last),
                "completeness_error": last.numbers.get("fullgrad/completeness_error"),
                "findings": None if findings is None else [finding["message"] for finding in findings],
                "module": str(content.run.about.get("module", "")),
            }
        return row

    def thumbnail(self, num_images: int = 4) -> bytes | None:
        """The first images at the last snapshot, side by side, as WebP. None if there are none."""
        _, content = self.read()
        planes = None if content is None else content.methods[0].planes(content.indices[-1])
        if content is None or planes is None:
            return None
        known = [i for i, picture in enumerate(content.run.pictures) if picture is not None][:num_images]
        pictures = [np.asarray(content.run.pictures[i]) for i in known]
        if not pictures:
            return None
        maps: Tensor = from_numpy(planes[known])[:, None]
        tiles = [Image.fromarray(tile) for tile in overlays_rgb(pictures, maps, is_signed=content.methods[0].is_signed)]
        scale = THUMBNAIL / max(tiles[0].size)
        size = max(1, round(tiles[0].width * scale)), max(1, round(tiles[0].height * scale))
        canvas = Image.new("RGB", (len(tiles) * size[0], size[1]))
        for i, tile in enumerate(tiles):
            canvas.paste(tile.resize(size), (i * size[0], 0))
        buffer = io.BytesIO()
        canvas.save(buffer, "WEBP", quality=80)
        return buffer.getvalue()


class LiveRuns:
    """The runs at and below a folder. The folder is searched again every few seconds.

    Args:
        top: the folder. It may not exist yet.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self._lock = Lock()
        self._runs: dict[str, LiveRun] = {}
        self._next_search = 0.0

    def find(self) -> dict[str, LiveRun]:
        """The runs by their paths below the folder, the newest first."""
        with self._lock:
            start = time.monotonic()
            if start >= self._next_search:
                folders = sorted(find_runs(self.top), key=_time_of_birth, reverse=True)
                names = [folder.relative_to(self.top).as_posix() for folder in folders]
                self._runs = {name: self._runs.get(name) or LiveRun(folder) for name, folder in zip(names, folders, strict=True)}
                now = time.monotonic()
                self._next_search = now + max(SEARCH_SECONDS, (now - start) / SEARCH_SHARE)
            return dict(self._runs)

    def summaries(self) -> list[dict[str, Any]]:
        """A row for each run."""
        return [{"folder": name, "name": self._title(name), **run.summary()} for name, run in self.find().items()]

    def _title(self, name: str) -> str:
        """The name of a run in the list: its path, without `fullgrad` at the end."""
        return name.removesuffix("/fullgrad") if name not in (".", "fullgrad") else name_run(self.top / name)


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except OSError:
        return None


def _time_of_birth(folder: Path) -> float:
    """The time when a run began: that of the file that is written first and not changed later."""
    stat = _stat(folder / "probe.json") or _stat(folder)
    return 0.0 if stat is None else stat.st_mtime
