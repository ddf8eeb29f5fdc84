"""fg-lightning watch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Union

from fg_lightning.errors import CannotRun


def watch(run_dir: Path, port: Union[int, None] = None, host: str = "127.0.0.1") -> None:
    """Serve the report of a run while it trains: new snapshots appear in the browser as they are written.

    It writes nothing to the folder. Press Ctrl-C to stop. For example: fg-lightning watch lightning_logs

    Args:
        run_dir: The folder of a run, or any folder above runs; it may still be empty.
        port: The port of the page. Default: 8642, or the next free one.
        host: The address to listen on. Default: this machine only.

    Raises:
        CannotRun: if the folder cannot hold a run, the port cannot be opened, or the server is not installed.
    """
    print("starting ...", flush=True)  # the imports take seconds
    try:
        from fg_lightning.report.live_server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise CannotRun(f"watch needs {error.name}, which is not installed: pip install 'fg-lightning[watch]'") from error

    def tell(address: str, notes: list[str]) -> None:
        print(f"watching  {run_dir.resolve()}")
        print(f"page      {address}")
        for note in notes:
            print(f"note      {note}")
        if "SSH_CONNECTION" in os.environ:
            port_number = address.rstrip("/").rpartition(":")[2]
            print(f"on your own machine, first run: ssh -N -L {port_number}:127.0.0.1:{port_number} THIS_MACHINE")
        print("Press Ctrl-C to stop.", flush=True)

    with suppress(KeyboardInterrupt):
        serve(run_dir, port, host, tell)
    print("stopped")
