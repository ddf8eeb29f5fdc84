"""Checks types and shapes of every call into the package at run time, in the tests alone."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for every other type checker
