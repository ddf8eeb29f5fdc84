"""One sentence for what jsonargparse reports of an option in up to ten lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

IGNORED = r"Does not validate against|Expected a path but|Expected a <class 'NoneType'>"
"""Beginnings of reasons that tell the user nothing: another type was meant."""

REASONS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"Problem with given class_path '.*?': (.*)", r"\1"),
    (r'Parser key "(\w+)": (.*)', lambda found: f"{found[1]}: {_reword(found[2])}"),
    (r"Type .* expects a function or a callable class: (.*)", r"\1"),
    (
        r"(Option '\w+' is not accepted).* Got value: Namespace\(class_path='lightning\.\w+', .*",
        r"\1 without a class; give the class",
    ),
    (r"(Option '\w+' is not accepted).* Got value: Namespace\(class_path='([\w.]+)', .*", r"\1 by \2"),
    (r"Unexpected import object .*", "it is neither a class nor a function"),
    (r"Expected a dot import path string: .*", "expected an import path such as my_package.Name"),
    (r"Not of type \w+: .* does not conform to restriction (.*)", lambda found: f"expected a number {found[1].replace('v', '')}"),
    (r"Not of type \w+: (invalid literal for int|could not convert string to float).*", "expected a number"),
    (r"(.*?)\.? Got value: .*", r"\1"),
    (r"Expected a <class 'bool'>", "expected true or false"),
    (r"Expected a <class 'int'>", "expected a whole number"),
    (r"Expected a <class 'float'>", "expected a number"),
    (r"Expected a <class '(?:tuple|list|collections\.abc\.Sequence)'>", "expected a list such as [a,b]"),
    (r"Expected a <class '(?:dict|collections\.abc\.Mapping)'>", 'expected a mapping such as {"name": value}'),
    (r"Expected a typing\.Literal\[(.*)\]", lambda found: f"expected {found[1].replace(chr(39), '').replace(', ', ' or ')}"),
)
"""Patterns of whole reasons, and what they become, one after the other."""


def shorten(message: str, words: Collection[str] = ()) -> str:
    """An error as "--option value: reason, or reason". A message of another form is returned as it is.

    Args:
        message: of jsonargparse.
        words: names of the arguments that are written without an option. Default: none.
    """
    found = re.match(r'Parser key "([\w.]+)":', message)
    if found is None:
        return message
    body, _, given = message[found.end() :].partition("Given value: ")
    value = re.match(r"\S+", given) or re.search(r"(?<=Got value: )\S+|(?<=Int: )-?\d\S*|(?<=Float: )-?\d\S*", body)
    listed = re.split(r"\n\s*- ", body.partition("Given value type:")[0])
    reasons = [" ".join(reason.split()) for reason in listed[1:] or listed]
    told = [_reword(reason) for reason in reasons if not re.match(IGNORED, reason)]
    name = found[1] if found[1] in words else f"--{found[1]}"
    name += f" {value[0]}" if value and not re.match("Namespace|NestedArg", value[0]) else ""
    return f"{name}: {', or '.join(dict.fromkeys(told))}".replace(", or expected ", ", or ") if told else message


def _reword(reason: str) -> str:
    for pattern, words in REASONS:
        reason = re.sub(rf"^(?:{pattern})$", words, reason)
    return reason
