"""python -m fg_lightning, for an environment whose command fg-lightning is not on the path."""

import os
import sys

# Python puts the current folder first, where a module could stand for one that the imports below need; `main` puts it last.
if not getattr(sys.flags, "safe_path", False) and sys.path and os.path.abspath(sys.path[0]) == os.getcwd():
    del sys.path[0]

from fg_lightning.cli.main import main

main()
