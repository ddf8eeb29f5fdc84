"""The command line: fg-lightning."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import auto_cli


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command of `fg-lightning`.

    Args:
        args: what stands behind the program's name; by default what the process was started with.
    """
    from fg_lightning.demo.run import demo

    auto_cli({"demo": demo}, args=None if args is None else list(args), prog="fg-lightning")
