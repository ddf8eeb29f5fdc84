"""The package's tests; what several of them share is in `tests.helpers`."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The repository's folder."""
