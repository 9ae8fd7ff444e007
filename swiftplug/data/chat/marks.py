"""Find where a template writes the texts of a conversation, by rendering it again with a mark at both ends of each.

A mark is a rare character that occurs nowhere in the conversation. A rendering with marks proves where texts
stand only if it is, without its marks, the true rendering: a template may strip a text, or take another branch because
of a mark. Then the marks move inwards (behind white space, behind tags), and at last one text is marked at a time.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple

from swiftplug.data.read.conversation import RowError

Messages = list[dict[str, Any]]
Render = Callable[[Messages], str]

NOT_LOCATED = "where the template writes a message cannot be told"
# CJK ideographs of extension B: printable, so that no `repr` escapes them, and without case or white space.
_RARE = range(0x20000, 0x2A6DE)
_REASONING = ("reasoning_content", "thinking", "reasoning")
_TAG = r"(?:<[^<>]*>|\[[^\[\]]*\])"
_LEADING_TAGS = re.compile(rf"(?:\s|{_TAG})*")
_TRAILING_TAG = re.compile(rf"{_TAG}\Z")


class Field(NamedTuple):
    """A text of a message.

    Attributes:
        message: The message's index.
        path: The keys and indices that lead to the text in the message.
        text: The text.
    """

    message: int
    path: tuple[str | int, ...]
    text: str

    @property
    def is_name(self) -> bool:
        """Whether it is the name of a call."""
        return self.path[0] == "tool_calls" and self.path[-1] == "name" and "arguments" not in self.path


class Piece(NamedTuple):
    """A text as it stands in the rendering.

    Attributes:
        start: Its first character. Where the template drops the start of the text (thinking, say), the same as `end`.
        end: Behind its last character.
        field: The index of the field.
        whole: Whether both ends of the text stand there.
    """

    start: int
    end: int
    field: int
    whole: bool


class Placement(Enum):
    """Where the marks of a text go."""

    EDGES = "at its ends"
    INSIDE_SPACE = "inside the white space at its ends"
    INSIDE_TAGS = "inside the tags and white space at its ends"

    def core(self, text: str) -> tuple[int, int]:
        """The range of a text that is marked; an empty range means that there is nothing to mark."""
        if self is Placement.EDGES:
            return 0, len(text)
        end = len(text.rstrip())
        start = len(text) - len(text.lstrip())
        if self is Placement.INSIDE_TAGS:
            leading = _LEADING_TAGS.match(text)
            start = leading.end() if leading else 0
            while text[:end].endswith((">", "]")) and (tag := _TRAILING_TAG.search(text, 0, end)):
                end = len(text[: tag.start()].rstrip())
        return start, max(start, end)


def text_fields(messages: Messages) -> list[Field]:
    """The texts of messages that a template may write: contents, reasoning, and the strings in calls' arguments.

    A call without such a string has its name.
    """
    fields = []
    for index, message in enumerate(messages):
        for key in _REASONING:
            if isinstance(message.get(key), str):
                fields.append(Field(index, (key,), message[key]))
                break
        content = message.get("content")
        if isinstance(content, str):
            fields.append(Field(index, ("content",), content))
        elif isinstance(content, list):
            for number, part in enumerate(content):
                if isinstance(part, str):
                    fields.append(Field(index, ("content", number), part))
                elif isinstance(part, dict) and isinstance(part.get("text"), str):
                    fields.append(Field(index, ("content", number, "text"), part["text"]))
        for number, call in enumerate(message.get("tool_calls") or []):
            where: tuple[str | int, ...] = ("tool_calls", number)
            function = call
            if isinstance(call.get("function"), dict):
                where, function = (*where, "function"), call["function"]
            strings = [found for found in _strings(function.get("arguments"), (*where, "arguments")) if found[1]]
            if not strings and isinstance(function.get("name"), str):
                strings = [((*where, "name"), function["name"])]
            fields.extend(Field(index, path, text) for path, text in strings)
    return fields


def locate(messages: Messages, fields: Sequence[Field], text: str, render: Render) -> list[Piece]:
    """Where each text of a conversation stands in its rendering.

    Args:
        messages: The conversation.
        fields: Its texts, as `text_fields` lists them.
        text: The true rendering.
        render: Renders messages with the same template and tools.

    Returns:
        Pieces in the order of the text. A field that the template leaves out has none, one that it writes twice has
        two.

    Raises:
        RowError: If no placement of marks proves where a text stands.
    """
    if not fields:
        return []
    everything = range(len(fields))
    for placement in Placement:
        pieces = _marked(messages, fields, dict.fromkeys(everything, placement), text, render)
        if pieces is not None:
            if placement is not Placement.EDGES:
                pieces = [piece for piece in pieces if not _has_soft_edges(fields[piece.field].text, placement)]
                found = {piece.field for piece in pieces}
                pieces += _each(messages, fields, [k for k in everything if k not in found], text, render)
            return sorted(pieces)
    return sorted(_each(messages, fields, everything, text, render))


def unused_characters(texts: Iterable[str], count: int) -> int:
    """The first of so many rare characters in a row of which the texts use none.

    Raises:
        RowError: If the texts leave no such row.
    """
    start = _RARE.start
    for used in sorted(code for code in map(ord, set().union(*texts)) if code in _RARE):
        if used - start >= count:
            break
        start = used + 1
    if start + count > _RARE.stop:
        raise RowError(NOT_LOCATED, "it uses too many rare characters")
    return start


def put_marks(messages: Messages, fields: Sequence[Field], placements: dict[int, Placement], first: int) -> Messages:
    """The conversation with a mark at each end of the fields: of field k, the characters `first + 2k` and the next."""
    marked = list(messages)
    for k, placement in placements.items():
        field = fields[k]
        start, end = placement.core(field.text)
        if start == end and placement is not Placement.EDGES:
            continue
        text = field.text
        value = text[:start] + chr(first + 2 * k) + text[start:end] + chr(first + 2 * k + 1) + text[end:]
        marked[field.message] = _replaced(marked[field.message], field.path, value)
    return marked


def _marked(
    messages: Messages, fields: Sequence[Field], placements: dict[int, Placement], text: str, render: Render
) -> list[Piece] | None:
    """The pieces that one rendering with marks proves, or None where it proves nothing."""
    first = unused_characters([text, *(field.text for field in fields)], 2 * len(fields))
    pattern = re.compile(f"[{chr(first)}-{chr(first + 2 * len(fields) - 1)}]")
    try:
        marked = render(put_marks(messages, fields, placements, first))
    except RowError:
        return None
    if pattern.sub("", marked) != text:
        return None
    found: dict[int, list[tuple[int, bool]]] = {}
    for number, match in enumerate(pattern.finditer(marked)):
        k, is_end = divmod(ord(match[0]) - first, 2)
        found.setdefault(k, []).append((match.start() - number, bool(is_end)))
    pieces = []
    for k, marks in found.items():
        ends = [is_end for _, is_end in marks]
        if ends == [True]:
            pieces.append(Piece(marks[0][0], marks[0][0], k, False))
        elif ends == [False, True] * (len(ends) // 2):
            pieces.extend(
                Piece(start, end, k, True) for (start, _), (end, _) in zip(marks[::2], marks[1::2], strict=True)
            )
        else:
            return None
    return pieces


def _each(messages: Messages, fields: Sequence[Field], wanted: Iterable[int], text: str, render: Render) -> list[Piece]:
    """Locate fields one by one, each with the first placement that proves something."""
    pieces: list[Piece] = []
    for k in wanted:
        for placement in Placement:
            start, end = placement.core(fields[k].text)
            if start == end and placement is not Placement.EDGES:
                continue
            found = _marked(messages, fields, {k: placement}, text, render)
            if found is not None:
                pieces.extend(_grown(piece, fields[k].text, placement, text) for piece in found)
                break
        else:
            if fields[k].text.strip():
                raise RowError(NOT_LOCATED, f"message {fields[k].message + 1}")
    return pieces


def _grown(piece: Piece, written: str, placement: Placement, text: str) -> Piece:
    """A piece marked inside its tags, with the tags."""
    if placement is not Placement.INSIDE_TAGS:
        return piece
    start, end = placement.core(written)
    outer_start, outer_end = Placement.INSIDE_SPACE.core(written)
    begin, finish = piece.start - (start - outer_start), piece.end + (outer_end - end)
    if not piece.whole or begin < 0 or text[begin:finish] != written[outer_start:outer_end]:
        raise RowError(NOT_LOCATED, "the template rewrites the tags at its ends")
    return piece._replace(start=begin, end=finish)


def _has_soft_edges(text: str, placement: Placement) -> bool:
    """Whether a text has ends outside of its marks, of which the marks do not tell whether they stand there."""
    return placement.core(text) != (0, len(text))


def _strings(value: Any, path: tuple[str | int, ...]) -> list[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        return [(path, value)]
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in _strings(item, (*path, key))]
    if isinstance(value, list):
        return [found for number, item in enumerate(value) for found in _strings(item, (*path, number))]
    return []


def _replaced(value: Any, path: tuple[str | int, ...], text: str) -> Any:
    """A copy of nested lists and dictionaries with another text at a path."""
    if not path:
        return text
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(copy[path[0]], path[1:], text)
    return copy
