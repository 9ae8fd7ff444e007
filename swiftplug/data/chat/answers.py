"""The bounds of each answer in a rendering: where it starts, where its end-of-turn token starts, where that ends."""

from collections.abc import Sequence
from typing import NamedTuple

from swiftplug.data.chat.marks import Field, Messages, Piece, locate, text_fields
from swiftplug.data.chat.turns import Apply, TurnFormat, end_of_turn, without_thinking
from swiftplug.data.read.conversation import RowError

ANSWER_NOT_LOCATED = "where an answer stands in the rendering cannot be told"
LEFT_OUT = "the chat template leaves out all of an answer"


class Answer(NamedTuple):
    """An answer's turn in the rendering.

    Attributes:
        message: The message's index.
        start: Its first character.
        end: Behind its last character, where its suffix starts.
        suffix_end: Behind the end-of-turn token.
    """

    message: int
    start: int
    end: int
    suffix_end: int


class _Tail(NamedTuple):
    """What stands behind the last text of a conversation that was cut off.

    Attributes:
        field: The index of that text's field, None where there is no text.
        text: What the template writes behind it.
    """

    field: int | None
    text: str


class AnswerFinder:
    """Finds the answers of one conversation.

    Args:
        messages: The conversation.
        fields: Its texts.
        pieces: Where they stand, in the order of the text.
        text: The rendering.
        apply: Renders messages with the same template and tools.
        turn: What the template writes around a plain answer, if that could be learned.
    """

    def __init__(
        self,
        messages: Messages,
        fields: Sequence[Field],
        pieces: Sequence[Piece],
        text: str,
        apply: Apply,
        turn: TurnFormat | None,
    ) -> None:
        self._messages = messages
        self._fields = fields
        self._pieces = _telling(pieces, fields, messages)
        self._text = text
        self._apply = apply
        self._turn = turn or TurnFormat("", "", "", "")

    def find(self) -> list[Answer]:
        """The answers in order; one that the template leaves out is left out.

        Raises:
            RowError: If one cannot be located for certain.
        """
        answers: list[Answer] = []
        for index, message in enumerate(self._messages):
            if message["role"] == "assistant":
                after = answers[-1].suffix_end if answers else 0
                answer = self._find(index, after)
                if answer is not None:
                    answers.append(answer)
        return answers

    def _find(self, index: int, after: int) -> Answer | None:
        own = [place for place, piece in enumerate(self._pieces) if self._fields[piece.field].message == index]
        if not own:
            if not any(field.message == index and field.text.strip() for field in self._fields):
                return self._find_empty(index, after)
            if self._writes_nothing(index):
                return None
            raise RowError(LEFT_OUT, f"message {index + 1}")
        if own != list(range(own[0], own[-1] + 1)) or len({self._pieces[place].field for place in own}) != len(own):
            raise RowError(ANSWER_NOT_LOCATED, f"the template scatters message {index + 1}")
        gap_start = max(after, self._pieces[own[0] - 1].end if own[0] else 0)
        start = self._start(index, gap_start, own[0])
        tail_end = self._pieces[own[-1] + 1].start if own[-1] + 1 < len(self._pieces) else len(self._text)
        return self._closed(index, start, self._pieces[own[-1]], tail_end)

    def _find_empty(self, index: int, after: int) -> Answer | None:
        """An answer without a located text: nothing was answered, or only calls that hold no text."""
        before = [p for p in self._pieces if self._fields[p.field].message < index]
        behind = [p for p in self._pieces if self._fields[p.field].message > index]
        last = max(before, key=lambda piece: piece.end, default=None)
        gap_start = max(after, last.end if last else 0)
        gap_end = min([len(self._text), *(piece.start for piece in behind)])
        header = self._turn.header
        if gap_start > gap_end:
            raise RowError(ANSWER_NOT_LOCATED, f"the template reorders around message {index + 1}")
        gap = self._text[gap_start:gap_end]
        if header and gap.count(header) == 1:
            start = gap_start + gap.index(header) + len(header)
        else:
            tail = self._cut(index, True)
            if tail is None or tail.field != (last.field if last else None) or not gap.startswith(tail.text):
                if self._writes_nothing(index):
                    return None
                raise RowError(ANSWER_NOT_LOCATED, f"message {index + 1}")
            start = gap_start + len(tail.text)
        return self._closed(index, start, last, gap_end)

    def _start(self, index: int, gap_start: int, place: int) -> int:
        """Where an answer starts: behind the generation prompt, if the template has one."""
        first = self._pieces[place]
        gap = self._text[gap_start : first.start]
        prompt, header, _, closing = self._turn
        if header and gap.startswith(prompt) and self._follows_user(index):
            return gap_start + len(prompt)
        if header and first.whole and gap.count(header) == 1:
            return gap_start + gap.index(header) + len(header)
        if closing and not header and first.whole:
            return first.start - (len(gap) - len(gap.rstrip(" ")))
        tail = self._cut(index, True)
        if tail and tail.field == (self._pieces[place - 1].field if place else None) and gap.startswith(tail.text):
            return gap_start + len(tail.text)
        raise RowError(ANSWER_NOT_LOCATED, f"message {index + 1}")

    def _closed(self, index: int, start: int, last: Piece | None, tail_end: int) -> Answer:
        """The answer, once it is known what its turn is closed with.

        Args:
            index: Its message.
            start: Where it starts.
            last: Its last text, or the last text before it.
            tail_end: Where the next text of the conversation starts.
        """
        closing = self._turn.closing
        behind = max(start, last.end if last else 0)
        tail = self._text[behind:tail_end]
        if closing and self._ends_in(index, last) and (tail.startswith(closing) or tail.count(closing) == 1):
            end = behind + tail.index(closing)
            return Answer(index, start, end, end + len(closing))
        at_end = tail_end == len(self._text)
        if at_end and not closing and self._ends_in(index, last):
            return Answer(index, start, behind, behind + len(tail.rstrip()))
        written = self._cut(index + 1, False)
        if written and written.field == (last.field if last else None):
            origin = last.end if last else 0
            if self._text[origin:tail_end].startswith(written.text) and origin + len(written.text) >= behind:
                tail = self._text[behind : origin + len(written.text)]
                return Answer(index, start, behind + end_of_turn(tail, closing), behind + len(tail))
        if at_end:
            tail = tail.rstrip()
            return Answer(index, start, behind + end_of_turn(tail, closing), behind + len(tail))
        raise RowError(ANSWER_NOT_LOCATED, f"message {index + 1}")

    def _ends_in(self, index: int, last: Piece | None) -> bool:
        """Whether nothing of a message but its closing stands behind a text: no call, say, of numbers alone."""
        calls = self._messages[index].get("tool_calls")
        return not calls or (last is not None and self._is_in(last, index, len(calls) - 1))

    def _is_in(self, piece: Piece, index: int, call: int) -> bool:
        field = self._fields[piece.field]
        return field.message == index and field.path[:2] == ("tool_calls", call)

    def _follows_user(self, index: int) -> bool:
        return index > 0 and self._messages[index - 1]["role"] == "user"

    def _cut(self, length: int, prompt: bool) -> _Tail | None:
        """What the template writes behind the last text of the first messages, when nothing but an answer may follow.

        Args:
            length: The number of messages.
            prompt: Whether the generation prompt (up to a thinking tag) is part of it, or is cut off.

        Returns:
            The tail, or None where it cannot be told.
        """
        messages = self._messages[:length]
        try:
            text = self._apply(messages, True)
            fields = text_fields(messages)
            pieces = locate(messages, fields, text, lambda marked: self._apply(marked, True))
        except RowError:
            return None
        pieces = _telling(pieces, fields, messages)
        last = max(pieces, key=lambda piece: piece.end, default=None)
        tail = text[last.end :] if last else text
        generation_prompt = self._turn.generation_prompt
        if generation_prompt and tail.endswith(generation_prompt):
            tail = tail[: -len(generation_prompt)] + (self._turn.header if prompt else "")
        return _Tail(last.field if last else None, without_thinking(tail) if prompt else tail.rstrip())

    def _writes_nothing(self, index: int) -> bool:
        """Whether the template renders the conversation alike without the message."""
        try:
            return self._apply(self._messages[:index] + self._messages[index + 1 :], False) == self._text
        except RowError:
            return False


def _telling(pieces: Sequence[Piece], fields: Sequence[Field], messages: Messages) -> list[Piece]:
    """The pieces without those that say nothing of where a turn is.

    An empty content beside calls may stand away from them, behind the results; and a template may write the name of a
    call again where it writes the result.
    """
    telling = []
    named = set()
    for piece in pieces:
        field = fields[piece.field]
        if not field.text and messages[field.message].get("tool_calls"):
            continue
        if field.is_name:
            if piece.field in named:
                continue
            named.add(piece.field)
        telling.append(piece)
    return telling
