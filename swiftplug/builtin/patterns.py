"""Regular expressions given as options, compiled and matched with the names of a model's parts."""

import re
from collections.abc import Callable, Iterable

from swiftplug.plugin import UserError, nearest


def compile_pattern(pattern: str, where: str, flags: int = 0) -> re.Pattern[str]:
    """Compile a regular expression; a malformed one is a UserError that begins with `where`."""
    try:
        return re.compile(pattern, flags)
    except re.error as error:
        raise UserError(f"{where} {pattern!r} is not a regular expression: {error}") from error


def matching_names(
    names: Iterable[str],
    patterns: Iterable[str],
    *,
    where: str,
    noun: str,
    match: Callable[[re.Pattern[str], str], object] = re.Pattern.search,
) -> set[str]:
    """The names that any of the patterns matches.

    Args:
        names: Dotted names of a model's parameters or modules.
        patterns: Regular expressions; each must match a name.
        where: The option or plugin, for messages.
        noun: What the names belong to, for messages.
        match: `re.Pattern.search` matches anywhere in a name, `re.Pattern.fullmatch` only the whole name.

    Raises:
        UserError: A pattern is malformed or matches nothing.
    """
    names = set(names)
    found: set[str] = set()
    for pattern in patterns:
        regex = compile_pattern(pattern, f"{where}:")
        matches = {name for name in names if match(regex, name)}
        if not matches:
            parts = {part for name in names for part in name.split(".") if not part.isdigit()}
            raise UserError(f"{where}: no {noun} matches {pattern!r}{nearest(pattern, parts)}")
        found |= matches
    return found
