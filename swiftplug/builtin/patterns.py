"""Choosing parts of a model by regular expressions over their names."""

import re
from collections.abc import Collection, Iterable

from swiftplug.plugin import UserError, nearest


def matching_names(names: Collection[str], patterns: Iterable[str], *, plugin: str, noun: str) -> set[str]:
    """The names in which any of the patterns is found.

    Args:
        names: Dotted names of parameters.
        patterns: Regular expressions; each must match a name.
        plugin: The kind and name of the plugin, for messages.
        noun: What the names belong to, for messages.

    Raises:
        UserError: A pattern is malformed or matches nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        try:
            matches = {name for name in names if re.search(pattern, name)}
        except re.error as error:
            raise UserError(f"{plugin}: {pattern!r} is not a regular expression: {error}") from error
        if not matches:
            parts = {part for name in names for part in name.split(".") if not part.isdigit()}
            raise UserError(f"{plugin}: no {noun} matches {pattern!r}{nearest(pattern, parts)}")
        found |= matches
    return found
