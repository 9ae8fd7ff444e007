"""What a template lays around the contents of a sequence of roles: the next such conversation is known at once."""

from collections.abc import Sequence
from typing import NamedTuple, Self

from swiftplug.data.chat.marks import Piece
from swiftplug.data.chat.segments import Rendered, Segment


class _Bound(NamedTuple):
    """A position in any text of the layout: the length of some contents, plus a constant."""

    contents: int
    constant: int


class Layout(NamedTuple):
    """The text of a conversation with its contents taken out.

    Attributes:
        fixed: The texts between the contents: before the first, between each two, behind the last.
        bounds: The start and the end of each segment.
        model: The segments of the conversation that it was learned from.
        queries: For each segment the message whose content is its query, -1 for none.
    """

    fixed: list[str]
    bounds: list[tuple[_Bound, _Bound]]
    model: list[Segment]
    queries: list[int]

    @classmethod
    def of(cls, contents: Sequence[str], pieces: Sequence[Piece], rendered: Rendered) -> Self | None:
        """Learn the layout from a conversation whose contents all stand in its text, once each and in order.

        Args:
            contents: The content of each message.
            pieces: Where they stand.
            rendered: The conversation.

        Returns:
            The layout, or None where contents are written otherwise, or two of them are the same.
        """
        text = rendered.text
        if len(set(contents)) < len(contents) or [piece.field for piece in pieces] != list(range(len(contents))):
            return None
        if any(text[p.start : p.end] != content for p, content in zip(pieces, contents, strict=True)):
            return None
        edges = [0, *(edge for piece in pieces for edge in piece[:2]), len(text)]
        fixed = [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
        lengths = [0]
        for content in contents:
            lengths.append(lengths[-1] + len(content))

        def bound(position: int) -> _Bound:
            before = sum(piece.end <= position for piece in pieces)
            return _Bound(before, position - lengths[before])

        queries = {content: number for number, content in enumerate(contents)}
        return cls(
            fixed,
            [(bound(segment.start), bound(segment.end)) for segment in rendered.segments],
            rendered.segments,
            [queries.get(segment.query, -1) for segment in rendered.segments],
        )

    def fits(self, contents: Sequence[str], text: str) -> bool:
        """Whether a text is this layout around these contents."""
        pieces = [""] * (2 * len(contents) + 1)
        pieces[::2] = self.fixed
        pieces[1::2] = contents
        return "".join(pieces) == text

    def segments(self, contents: Sequence[str]) -> list[Segment]:
        """The segments of a text that fits."""
        lengths = [0]
        for content in contents:
            lengths.append(lengths[-1] + len(content))
        return [
            Segment(
                lengths[start.contents] + start.constant,
                lengths[end.contents] + end.constant,
                segment.type,
                segment.is_last_round,
                contents[query] if query >= 0 else "",
                segment.message_index,
            )
            for (start, end), segment, query in zip(self.bounds, self.model, self.queries, strict=True)
        ]
