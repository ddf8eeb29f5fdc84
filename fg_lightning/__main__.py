"""Makes `python -m fg_lightning` work, for environments in which the command `fg-lightning` is not on the path."""

import os
import sys

# Python searches the current folder first. A module in it could replace one that is imported below, so `main` adds it at the end.
if not getattr(sys.flags, "safe_path", False) and sys.path and os.path.abspath(sys.path[0]) == os.getcwd():
    del sys.path[0]

from fg_lightning.cli.main import main

main()
