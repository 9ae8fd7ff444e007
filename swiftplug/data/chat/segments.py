"""A rendered conversation: its text, cut into segments that each have one context type."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Self

from swiftplug.data.chat.markers import Occurrence
from swiftplug.plugin import ContextType

TEMPLATE_TEXT = -1


class Segment(NamedTuple):
    """A stretch of the text.

    Attributes:
        start: Its first character.
        end: One past its last character. An empty answer is an empty segment.
        type: Its context type.
        is_last_round: Whether it belongs to the last round, which begins at the last message of the user.
        query: The content of the current question: the last user message or tool result up to this segment.
        message_index: Index of its message in the row; `TEMPLATE_TEXT` for text between messages.
        role: The role of its message in the row; empty for text between messages.
    """

    start: int
    end: int
    type: ContextType
    is_last_round: bool
    query: str = ""
    message_index: int = TEMPLATE_TEXT
    role: str = ""


class Rendered(NamedTuple):
    """A conversation as the chat template renders it.

    Attributes:
        text: Exactly the output of `tokenizer.apply_chat_template(..., tokenize=False)`.
        segments: Segments that cover the text, in order.
        shortened: Indices of messages that the template omits in whole or in part, such as earlier thinking.
        unread: What the template does not read of the row: keys of messages, `tools`, `chat_template_kwargs`.
    """

    text: str
    segments: list[Segment]
    shortened: list[int]
    unread: Sequence[str] = ()

    @property
    def last_answer(self) -> str:
        """The text of the last answer, without its end of turn; empty if there is none."""
        answers = [each for each in self.segments if each.type is ContextType.RESPONSE]
        return self.text[answers[-1].start : answers[-1].end] if answers else ""


class Layout:
    """A rendering without the message contents.

    It gives later conversations with the same roles their segments without a new search.

    Args:
        rendered: The rendering.
        contents: The content of each message.
        occurrences: The places of all contents, each once and in order.
    """

    def __init__(self, rendered: Rendered, contents: Sequence[str], occurrences: Sequence[Occurrence]) -> None:
        edges = [0, *(edge for occurrence in occurrences for edge in occurrence[:2]), len(rendered.text)]
        self._between = [rendered.text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
        lengths = _lengths(contents)

        def without_contents(position: int) -> tuple[int, int]:
            """The number of contents that end before a position, and the position minus their lengths."""
            count = sum(occurrence.end <= position for occurrence in occurrences)
            return count, position - lengths[count]

        queries = {content: number for number, content in enumerate(contents)}
        self._segments = [
            (segment, without_contents(segment.start), without_contents(segment.end), queries.get(segment.query))
            for segment in rendered.segments
        ]

    @classmethod
    def learn(cls, rendered: Rendered, contents: Sequence[str], occurrences: Sequence[Occurrence]) -> Self | None:
        """The layout of a rendering; None if the template changes or reorders contents, or two of them are equal."""
        written = [(one.field.message, rendered.text[one.start : one.end]) for one in occurrences]
        if len(set(contents)) < len(contents) or written != list(enumerate(contents)):
            return None
        return cls(rendered, contents, occurrences)

    def apply(self, contents: Sequence[str], text: str) -> Rendered | None:
        """The segments of a text that consists of this layout and these contents; None for any other text."""
        pieces = [""] * (2 * len(contents) + 1)
        pieces[::2] = self._between
        pieces[1::2] = contents
        if "".join(pieces) != text:
            return None
        lengths = _lengths(contents)
        segments = [
            Segment(
                lengths[contents_before_start] + start,
                lengths[contents_before_end] + end,
                segment.type,
                segment.is_last_round,
                "" if query is None else contents[query],
                segment.message_index,
                segment.role,
            )
            for segment, (contents_before_start, start), (contents_before_end, end), query in self._segments
        ]
        return Rendered(text, segments, [])


def _lengths(contents: Sequence[str]) -> list[int]:
    """The length of the first 0, 1, 2... contents."""
    return list(accumulate(map(len, contents), initial=0))
