"""Find where a chat template writes the texts of a conversation, by rendering it again with markers.

A marker is a rare character that does not occur in the conversation. Each text gets one at both ends (here ◀ and ▶):

    messages     user: "◀Hi▶", assistant: "◀Hello▶"
    rendering    <|user|>◀Hi▶<|end|><|assistant|>◀Hello▶<|end|>

The result counts only if removing the markers gives the true rendering. It may not: a template may strip a text, or
take another branch because of a marker. Then the markers move inwards, past white space and then past tags, and finally
one text is marked at a time.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from swiftplug.data.read.conversation import RowError
from swiftplug.data.read.messages import Messages
from swiftplug.plugin.tokenizer import REASONING_KEYS

Path = tuple[str | int, ...]

NOT_LOCATED = "cannot locate a message in what the chat template writes"
# CJK ideographs of extension B: printable, so `repr` does not escape them, and neither cased nor white space.
_RARE = range(0x20000, 0x2A6DE)
_TAG = r"(?:<[^<>]*>|\[[^\[\]]*\])"
_LEADING_TAGS = re.compile(rf"(?:\s|{_TAG})*")
_TRAILING_TAG = re.compile(rf"{_TAG}\Z")


class Field(NamedTuple):
    """A text in a message; `path` is the keys and indices that lead to it."""

    number: int
    message: int
    path: Path
    text: str

    @property
    def is_call_name(self) -> bool:
        """Whether it is the name of a tool call."""
        return self.path[0] == "tool_calls" and self.path[-1] == "name" and "arguments" not in self.path


class Occurrence(NamedTuple):
    """A place of a field in the rendering.

    If the template omits the start of the text, such as thinking, the occurrence is empty and not whole.
    """

    start: int
    end: int
    field: Field
    is_whole: bool


def text_fields(messages: Messages) -> list[Field]:
    """The texts of messages that a template may write: contents, reasoning, and the strings in the arguments of calls.

    For a call without such strings, it is the call's name.
    """
    found: list[tuple[int, Path, str]] = []
    for index, message in enumerate(messages):
        reasoning = next((key for key in REASONING_KEYS if isinstance(message.get(key), str)), None)
        if reasoning:
            found.append((index, (reasoning,), message[reasoning]))
        for path, text in _strings(message.get("content"), ("content",)):
            if len(path) < 3 or path[-1] == "text":  # a content, or the text of one of its parts
                found.append((index, path, text))
        for number, call in enumerate(message.get("tool_calls") or []):
            function: Path = ("tool_calls", number, "function")
            arguments = _strings(call["function"]["arguments"], (*function, "arguments"))
            name = (index, (*function, "name"), call["function"]["name"])
            found += [(index, path, text) for path, text in arguments if text] or [name]
    return [Field(number, *field) for number, field in enumerate(found)]


def locate(messages: Messages, text: str, render: Callable[[Messages], str]) -> list[Occurrence]:
    """Locate each text of a conversation in its rendering.

    Args:
        messages: The conversation.
        text: The true rendering.
        render: Renders messages with the same template and tools.

    Returns:
        Occurrences in the order of the rendering: none for a field that the template omits, two if it is written twice.

    Raises:
        RowError: A text cannot be located with certainty.
    """
    fields = text_fields(messages)
    return _Locator(messages, fields, text, render).locate() if fields else []


# Returns the start and end of the part of a text that is put between markers.
Core = Callable[[str], tuple[int, int]]


def _whole(text: str) -> tuple[int, int]:
    return 0, len(text)


def _inside_space(text: str) -> tuple[int, int]:
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    return start, max(start, end)


def _inside_tags(text: str) -> tuple[int, int]:
    leading = _LEADING_TAGS.match(text)
    start, end = leading.end() if leading else 0, len(text.rstrip())
    while text[:end].endswith((">", "]")) and (tag := _TRAILING_TAG.search(text, 0, end)):
        end = len(text[: tag.start()].rstrip())
    return start, max(start, end)


_CORES: tuple[Core, ...] = (_whole, _inside_space, _inside_tags)


class _Locator:
    """Renders a conversation with markers until all its fields are located."""

    def __init__(
        self, messages: Messages, fields: Sequence[Field], text: str, render: Callable[[Messages], str]
    ) -> None:
        self._messages = messages
        self._fields = fields
        self._text = text
        self._render = render
        used = set(text).union(*(field.text for field in fields))
        self._markers = list(islice((letter for letter in map(chr, _RARE) if letter not in used), 2 * len(fields)))
        if len(self._markers) < 2 * len(fields):
            raise RowError(NOT_LOCATED, "it uses too many rare characters")
        self._any_marker = re.compile(f"[{''.join(self._markers)}]")

    def locate(self) -> list[Occurrence]:
        located: list[Occurrence] = []
        for core in _CORES:
            found = self._find(self._fields, core)
            if found is not None and core is _whole:
                return sorted(found)
            if found is not None:
                # This does not prove what is outside the markers, so texts with such ends are located one by one.
                located = [one for one in found if core(one.field.text) == _whole(one.field.text)]
                break
        known = {one.field for one in located}
        for field in self._fields:
            if field not in known:
                located += self._find_alone(field)
        return sorted(located)

    def _find(self, fields: Sequence[Field], core: Core) -> list[Occurrence] | None:
        """Locate fields by one rendering with markers; None if it proves nothing."""
        marked = list(self._messages)
        for field in fields:
            text, (start, end) = field.text, core(field.text)
            if start < end or core is _whole:
                opening, closing = self._markers[2 * field.number : 2 * field.number + 2]
                text = f"{text[:start]}{opening}{text[start:end]}{closing}{text[end:]}"
                marked[field.message] = _with_text(marked[field.message], field.path, text)
        try:
            rendering = self._render(marked)
        except RowError:
            return None
        if self._any_marker.sub("", rendering) != self._text:
            return None
        places: dict[int, list[tuple[int, int]]] = {}
        for markers_before, marker in enumerate(self._any_marker.finditer(rendering)):
            number, side = divmod(self._markers.index(marker[0]), 2)
            places.setdefault(number, []).append((marker.start() - markers_before, side))
        occurrences = []
        for number, of_field in places.items():
            positions, sides = zip(*of_field, strict=True)
            if sides == (1,):
                occurrences.append(Occurrence(positions[0], positions[0], self._fields[number], False))
            elif sides == (0, 1) * (len(sides) // 2):
                for start, end in zip(positions[::2], positions[1::2], strict=True):
                    occurrences.append(Occurrence(start, end, self._fields[number], True))
            else:
                return None
        return occurrences

    def _find_alone(self, field: Field) -> list[Occurrence]:
        """Locate one field, with the first kind of markers that proves something."""
        for core in _CORES:
            start, end = core(field.text)
            if start < end or core is _whole:
                found = self._find([field], core)
                if found is not None:
                    return [self._with_tags(one) for one in found] if core is _inside_tags else found
        if field.text.strip():
            raise RowError(NOT_LOCATED, f"message {field.message + 1}")
        return []

    def _with_tags(self, inner: Occurrence) -> Occurrence:
        """Extend an occurrence that was marked inside its tags to include the tags."""
        text = inner.field.text
        start, end = _inside_tags(text)
        outer_start, outer_end = _inside_space(text)
        whole = inner._replace(start=inner.start - (start - outer_start), end=inner.end + (outer_end - end))
        if not inner.is_whole or whole.start < 0 or self._text[whole.start : whole.end] != text[outer_start:outer_end]:
            raise RowError(NOT_LOCATED, "the template rewrites the tags at its ends")
        return whole


def _strings(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """The strings in nested lists and dictionaries, with the keys and indices that lead to each."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _strings(item, (*path, key))


def _with_text(value: Any, path: Path, text: str) -> Any:
    """A copy of nested lists and dictionaries with the text at a path replaced."""
    if not path:
        return text
    copy = value.copy()
    copy[path[0]] = _with_text(copy[path[0]], path[1:], text)
    return copy
