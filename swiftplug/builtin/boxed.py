r"""Finding the final answer in a text: its last `\boxed{...}`."""

import re
from typing import NamedTuple

# The start of a box, a line break, an escaped brace (a character of the answer), a brace. In `\\boxed{`, from a text
# that was escaped twice, the second backslash starts the box.
_TOKEN = re.compile(r"\\boxed\{|\\\\(?!boxed\{)|\\[{}]|[{}]")


class Box(NamedTuple):
    r"""A `\boxed{...}` in a text: its content, and the position after it."""

    content: str
    end: int


def last_box(text: str) -> Box | None:
    r"""The last `\boxed{...}` whose braces are closed; it may contain others. None if there is none.

    One pass over the text, however many boxes are never closed.

    Example:
        >>> last_box(r"\boxed{1}, no: \boxed{\frac{1}{2}}.")
        Box(content='\\frac{1}{2}', end=34)
    """
    last_start, last_end = -1, -1
    open_braces: list[int] = []  # start of the content of each box; -1 for a brace that opens no box
    for token in _TOKEN.finditer(text):
        if token[0] == "}":
            start = open_braces.pop() if open_braces else -1
            if start > last_start:
                last_start, last_end = start, token.start()
        elif token[0] == "{":
            open_braces.append(-1)
        elif token[0] == r"\boxed{":
            open_braces.append(token.end())
    return None if last_start < 0 else Box(text[last_start:last_end], last_end + 1)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces are closed; None if there is none."""
    box = last_box(text)
    return box.content if box else None
