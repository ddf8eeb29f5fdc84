"""python -m fg_lightning, where the command fg-lightning is not on the path."""

from fg_lightning.cli import main

main()
