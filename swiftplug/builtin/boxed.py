r"""Finding the final answer in a text: its last `\boxed{...}`, or what is in its last `<answer>...</answer>`."""

import re
from typing import NamedTuple

# The start of a box, a line break, an escaped brace (a character of the answer), a brace. In `\\boxed{`, from a text
# that was escaped twice, the second backslash starts the box.
_TOKEN = re.compile(r"\\(?P<box>boxed|fbox)(?![a-zA-Z])\s*(?P<brace>\{)?|\\\\(?!boxed|fbox)|\\[{}]|[{}]")
# A box without braces, which is legal LaTeX: it begins with a number, a command, or one letter in a formula.
_BARE = re.compile(
    r"(?=[-+]?\.?\d|\\[a-zA-Z]|[a-zA-Z](?![a-zA-Z])[^$\n]{0,80}(?:\$|\\[)\]]))(?:(?!\\[)\]])(?:[^\s${}]|\{[^{}]*\}))+(?<![.,;:!?])"
)
_REST_OF_FORMULA = re.compile(r"[^$\n]*[^$\s.,;:!?](?=[\s.,;:!?]*\$)")
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
# Reasoning: up to a closing tag (the prompt may have opened it), or from an opening one, closed or cut off.
_REASONING = re.compile(r"\A(?:(?!<think>).)*</think>|<think>.*?(?:</think>|\Z)", re.DOTALL)


class Box(NamedTuple):
    r"""A `\boxed{...}` in a text: its content, and the position after it."""

    content: str
    end: int


def last_box(text: str) -> Box | None:
    r"""The last `\boxed{...}` whose braces are closed; it may contain others. None if there is none.

    Without braces (`\boxed 2`) it ends with the formula or, outside of one, at the next space. A `\fbox{...}` counts
    where there is no `\boxed{...}`, as in Hendrycks' evaluation of MATH (arXiv 2103.03874). One pass over the text,
    however many boxes are never closed.

    Example:
        >>> last_box(r"\boxed{1}, no: \boxed{\frac{1}{2}}.")
        Box(content='\\frac{1}{2}', end=34)
    """
    if "box" not in text:
        return None
    last = {"boxed": (-1, -1), "fbox": (-1, -1)}
    open_braces: list[tuple[str, int]] = []  # what each belongs to ("" for no box), and the start of its content
    for token in _TOKEN.finditer(text):
        if token[0] == "}":
            box, start = open_braces.pop() if open_braces else ("", -1)
            if box and start > last[box][0]:
                last[box] = start, token.start()
        elif token[0] == "{" or token["brace"]:
            open_braces.append((token["box"] or "", token.end()))
        elif token["box"] and (bare := _BARE.match(text, token.end())):
            last[token["box"]] = bare.span()
    for box, (start, end) in last.items():
        if start >= 0:
            line = text.rfind("\n", 0, start) + 1
            is_bare = text[start - 1] != "{"
            if is_bare and text.count("$", line, start) % 2 and (rest := _REST_OF_FORMULA.match(text, start)):
                return Box(rest[0], rest.end())
            return Box(text[start:end], end if is_bare else end + 1)
        if box == "boxed" and has_open_box(text):
            return None
    return None


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces are closed; None if there is none."""
    box = last_box(text)
    return box.content if box else None


def has_open_box(text: str) -> bool:
    r"""Whether a text without a box has one that is never closed: its end was cut off, or is missing."""
    return re.search(r"\\boxed\s*\{", text) is not None


def without_reasoning(text: str) -> str:
    """A text without its `<think>...</think>`."""
    return _REASONING.sub("", text) if "think>" in text else text


def answer_part(text: str) -> str:
    """What is in the last `<answer>...</answer>` behind the reasoning; without one, all that is not reasoning."""
    text = without_reasoning(text)
    *_, last = "", *_ANSWER.findall(text)
    return last or text
