"""Links from pages to the manual."""

from __future__ import annotations

from functools import cache
from importlib.metadata import metadata


def manual_link(page: str) -> str:
    """The address of a page of the manual, such as `explanation/numbers.html#drift`. Empty if the manual's address is unknown."""
    return manual_address() and f"{manual_address()}/{page}"


@cache
def manual_address() -> str:
    """The manual's address in the package's metadata. Empty if there is none."""
    for url in metadata("fg-lightning").get_all("Project-URL") or []:
        name, _, address = url.partition(",")
        if name.strip().lower() == "documentation":
            return address.strip().rstrip("/")
    return ""
