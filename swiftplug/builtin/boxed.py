r"""The LaTeX box that a final answer stands in: `\boxed{...}`."""

import re
from typing import NamedTuple

# The start of a box, a line break, an escaped brace (a character of the answer), a brace. In `\\boxed{`, as a text
# that was escaped twice has it, the second backslash starts the box.
_TOKEN = re.compile(r"\\boxed\{|\\\\(?!boxed\{)|\\[{}]|[{}]")


class Box(NamedTuple):
    r"""A `\boxed{...}` in a text.

    Attributes:
        content: What it holds.
        end: Where the text goes on behind it.
    """

    content: str
    end: int


def last_box(text: str) -> Box | None:
    r"""The last `\boxed{...}` whose braces close, which may hold others; None where there is none.

    One pass over the text, however many boxes never close.

    Example:
        >>> last_box(r"\boxed{1}, no: \boxed{\frac{1}{2}}.")
        Box(content='\\frac{1}{2}', end=34)
    """
    last_start, last_end = -1, -1
    open_braces: list[int] = []  # for each where the content of its box starts; -1 for a brace that is no box
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
    r"""The content of the last `\boxed{...}` whose braces close; None where there is none.

    Example:
        >>> last_boxed(r"\boxed{1}, no: \boxed{\frac{1}{2}}")
        '\\frac{1}{2}'
    """
    box = last_box(text)
    return box.content if box else None
