"""Serves the pages of running trainings, by default to this machine only. It writes nothing."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fg_lightning.errors import CannotRun
from fg_lightning.report.figures import Page
from fg_lightning.report.html_report import render
from fg_lightning.report.live_runs import LiveRun, LiveRuns
from fg_lightning.report.roar_page import is_experiment

DEFAULT_PORT = 8642

NUM_PORTS = 30
"""Number of ports to try, from the default port."""

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def serve(folder: Path, port: int | None, host: str, tell: Callable[[str, list[str]], None]) -> None:
    """Serves the runs at and below a folder until the process is interrupted.

    Args:
        folder: folder of a run, or any folder above runs. It may be empty, or missing if its parent exists: the pages then wait.
        port: port to listen on; 0 for any free port. None: 8642, or the next free port.
        host: address to listen on.
        tell: function that gets the address of the page, and notes, when the port is open.

    Raises:
        CannotRun: if the folder cannot hold a run, or the port cannot be opened.
    """
    runs = LiveRuns(_check_folder(folder))
    with _open_port(port, host) as listening:
        number = listening.getsockname()[1]
        notes = []
        if port is None and number != DEFAULT_PORT:
            notes.append(f"port {DEFAULT_PORT} is in use, so {number} is used instead")
        if not is_loopback(host):
            notes.append("everyone who can reach this machine over the network can see the images; to prevent it: --host 127.0.0.1")
        if not runs.find():
            notes.append(f"there is no run in {runs.top} yet; the page shows it as soon as its first snapshot is written")
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        tell(f"http://{shown}:{number}/", notes)
        config = uvicorn.Config(
            make_app(runs, host), log_level="error", access_log=False, lifespan="off", timeout_graceful_shutdown=1
        )
        uvicorn.Server(config).run(sockets=[listening])


def _check_folder(folder: Path) -> Path:
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise CannotRun(f"{folder} is a file, not a folder; give the folder of a run, or one above runs")
    if not folder.parent.is_dir():
        raise CannotRun(f"neither {folder} nor the folder above it exists; give the folder of a run, or one above runs")
    if is_experiment(folder):
        raise CannotRun(f"{folder} is an experiment, but only monitored runs can be watched; use fg-lightning report")
    return folder


def _open_port(port: int | None, host: str) -> socket.socket:
    if port is not None and not 0 <= port <= 65535:
        raise CannotRun(f"--port must be between 0 (any free port) and 65535, not {port}")
    numbers = range(DEFAULT_PORT, DEFAULT_PORT + NUM_PORTS) if port is None else [port]
    for number in numbers:
        listening = _listen(number, host)
        if listening is not None:
            return listening
    if port is None:
        raise CannotRun(f"ports {numbers[0]} to {numbers[-1]} are all in use; choose another with --port")
    raise CannotRun(f"port {port} is in use; choose another with --port, or leave --port out to use the next free one")


def _listen(port: int, host: str) -> socket.socket | None:
    """An open socket. None if the port is in use."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=64)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        if error.errno == errno.EACCES:
            raise CannotRun(f"you have no permission to open port {port}; choose one above 1023 with --port") from error
        raise CannotRun(f"--host {host} is not an address of this machine; use 127.0.0.1, or 0.0.0.0 for all addresses") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine itself can reach a name or an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


class OwnNamesOnly:
    """Answers only requests for this machine's own names. This stops a foreign page whose name was pointed at this machine.

    Any port is allowed, so that forwarding works.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = Headers(scope=scope).get("host", "")
        if scope["type"] == "http" and not is_loopback(_host_name(name)):
            words = f"{name!r} is not this machine: open the page as http://localhost:PORT/, or start watch with --host"
            await PlainTextResponse(words, 400)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _host_name(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def make_app(runs: LiveRuns, host: str = "127.0.0.1") -> Starlette:
    """The web application that serves runs. All addresses in its pages are relative, so that it works behind a proxy.

    Args:
        runs: the runs.
        host: address that the server listens on. If only this machine can reach it, requests for other names are refused.
    """

    def named(request: Request) -> LiveRun | None:
        return runs.find().get(request.query_params.get("folder", "."))

    def index(request: Request) -> Response:
        names = list(runs.find())
        if len(names) == 1 and "all" not in request.query_params:
            return RedirectResponse(f"run?folder={quote(names[0])}", headers=HEADERS)
        return _waiting_page(runs)

    def run(request: Request) -> Response:
        live = named(request)
        if live is None:
            words = f"There is no run {request.query_params.get('folder', '.')!r} in {runs.top}. All runs: ./?all"
            return PlainTextResponse(words, 404, HEADERS)
        page = live.page()
        return _waiting_page(runs) if page is None else HTMLResponse(page, headers=HEADERS)

    def changes(request: Request) -> Response:
        live, asked = named(request), request.query_params
        start = asked.get("start", "0")
        if live is None or not start.isdecimal():
            return PlainTextResponse("There is no such run.", 404, HEADERS)
        news = live.changes(int(start), asked.get("signature", ""), asked.get("seen", ""))
        return JSONResponse({**news, "num_runs": len(runs.find())}, headers=HEADERS)

    def summaries(request: Request) -> Response:
        return JSONResponse(runs.summaries(), headers=HEADERS)

    def thumbnail(request: Request) -> Response:
        live = named(request)
        picture = None if live is None else live.thumbnail()
        if picture is None:
            return PlainTextResponse("There is no picture.", 404, HEADERS)
        return Response(picture, media_type="image/webp", headers=HEADERS)

    pages = {"": index, "run": run, "changes": changes, "runs": summaries, "thumbnail": thumbnail}
    own = [Middleware(OwnNamesOnly)] if is_loopback(host) else []
    return Starlette(
        routes=[Route(f"/{path}", page, methods=["GET"]) for path, page in pages.items()],
        middleware=[*own, Middleware(GZipMiddleware, minimum_size=1000)],
    )


def _waiting_page(runs: LiveRuns) -> Response:
    """The list of runs. It may be empty."""
    page = Page("runs.html.j2", [], {"title": str(runs.top), "facts": [], "notes": [], "live": {}})
    return HTMLResponse(render(page), headers=HEADERS)
