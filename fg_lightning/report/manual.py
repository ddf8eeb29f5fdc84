"""Links from pages to the manual."""

from __future__ import annotations

from functools import cache
from importlib.metadata import metadata


def manual_link(page: str) -> str:
    """The address of a page, such as `explanation/numbers.html#drift`; empty if it is not known where the manual is."""
    return manual_address() and f"{manual_address()}/{page}"


@cache
def manual_address() -> str:
    """Where the manual is, as the package's metadata names it; empty if it does not."""
    for url in metadata("fg-lightning").get_all("Project-URL") or []:
        name, _, address = url.partition(",")
        if name.strip().lower() == "documentation":
            return address.strip().rstrip("/")
    return ""
