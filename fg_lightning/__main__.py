"""python -m fg_lightning, for environments in which the command fg-lightning is not on the path."""

import os
import sys

# Python puts the current folder first. A module in it could replace one that the imports below need, so `main` puts it last.
if not getattr(sys.flags, "safe_path", False) and sys.path and os.path.abspath(sys.path[0]) == os.getcwd():
    del sys.path[0]

from fg_lightning.cli.main import main

main()
