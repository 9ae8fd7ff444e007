"""Locate each answer in a rendering: its start, its end, and the end of its end-of-turn token.

An answer starts where the generation prompt ends, as in generation; a thinking tag that the generation prompt opens
still belongs to the answer. It ends with the end-of-turn token: what the template writes after an answer, before
anything that depends on what follows.

What a template writes around answers is learned from one small conversation (`TurnFormat`). Where an answer is written
differently, the conversation is cut off before or after that answer and rendered again.
"""

import re
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from typing import NamedTuple, Protocol

from swiftplug.data.chat.markers import Field, Occurrence, locate, text_fields
from swiftplug.data.read.conversation import RowError
from swiftplug.data.read.messages import Messages
from swiftplug.data.read.report import TOOLS_HINT

ANSWER_NOT_LOCATED = "cannot locate an answer in what the chat template writes"
LEFT_OUT = "the chat template leaves out all of an answer"

_QUESTION, _ANSWER = "zqjxquestion", "zqjxanswer"
_SPECIAL_TOKEN = re.compile(r"<[^<>\s]+>")
_THINKING_TAG = re.compile(r"<[^<>\s]*think[^<>\s]*>", re.IGNORECASE)
_TEXT_START = Occurrence(0, 0, Field(-1, -1, (), ""), True)


class Apply(Protocol):
    """Renders messages with a chat template."""

    def __call__(self, messages: Messages, generation_prompt: bool = False) -> str: ...


class Answer(NamedTuple):
    """The place of an answer in the rendering: its text, and from `end` to `suffix_end` the end-of-turn token."""

    message: int
    start: int
    end: int
    suffix_end: int


class TurnFormat(NamedTuple):
    """What a template writes around a plain answer; empty strings if that is unknown.

    Attributes:
        prompt: The text between the user's text and the answer, as far as a generation prompt gives it.
        header: The part of `prompt` that opens the answer's turn; empty if the template has no generation prompt.
        generation_prompt: The text that `add_generation_prompt` adds, including any thinking tag.
        opened: The end of `generation_prompt` that belongs to the answer, such as `<think>`: training has it there too.
        closing: The text that closes the turn when another follows, without trailing white space.
    """

    prompt: str = ""
    header: str = ""
    generation_prompt: str = ""
    opened: str = ""
    closing: str = ""


def learn_turn_format(apply: Apply, has_system: bool, in_parts: bool) -> TurnFormat:
    """Render a question and an answer, with and without a generation prompt, and compare.

    Args:
        apply: Renders messages.
        has_system: Whether to begin with a system message, for templates that require one.
        in_parts: Whether contents are lists of parts, for templates that require those.
    """

    def message(role: str, text: str) -> Messages:
        return [{"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}]

    asked = (message("system", "zqjxsystem") if has_system else []) + message("user", _QUESTION)
    answered = asked + message("assistant", _ANSWER)
    try:
        after_question, prompted = (apply(asked, prompt).rpartition(_QUESTION) for prompt in (False, True))
        after_answer, reprompted = (apply(answered, prompt).rpartition(_ANSWER) for prompt in (False, True))
    except RowError:
        return TurnFormat()
    between = after_answer[0].rpartition(_QUESTION)
    if not (after_question[1] and prompted[1] and after_answer[1] and reprompted[1] and between[1]):
        return TurnFormat()
    closes_question = common_start(after_question[2], prompted[2])
    generation_prompt = prompted[2][len(closes_question) :]
    prompt = _without_thinking(common_start(prompted[2], between[2]))
    closing = reprompted[2]
    if generation_prompt and closing.endswith(generation_prompt):
        closing = closing[: -len(generation_prompt)]
    else:
        closing = common_start(after_answer[2], closing)
    header = prompt[len(closes_question) :]
    opened = generation_prompt.removeprefix(header) if header else ""
    if opened and not opens_thinking(opened):
        # What is no thinking tag belongs to the answer if the template writes it there for an answer that has it.
        try:
            written = apply(asked + message("assistant", opened + _ANSWER))
        except RowError:
            written = ""
        opened = opened if written.startswith("".join(prompted) + _ANSWER) else ""
    return TurnFormat(prompt, header, generation_prompt, opened, closing.rstrip())


class AnswerFinder:
    """Finds the answers of one conversation.

    Args:
        messages: The conversation.
        text: Its rendering.
        occurrences: The places of its texts, in the order of the rendering.
        apply: Renders messages with the same template and tools.
        turn: The text around a plain answer.
    """

    def __init__(
        self, messages: Messages, text: str, occurrences: Sequence[Occurrence], apply: Apply, turn: TurnFormat
    ) -> None:
        self._messages = messages
        self._text = text
        self._occurrences = self._within_turns(occurrences)
        self._apply = apply
        self._turn = turn

    def find(self) -> list[Answer]:
        """The answers in order, without those that the template omits along with their turn.

        Raises:
            RowError: An answer cannot be located with certainty.
        """
        answers: list[Answer] = []
        for index, message in enumerate(self._messages):
            if message["role"] == "assistant":
                answer = self._find(index, answers[-1].suffix_end if answers else 0)
                if answer is not None:
                    answers.append(answer)
        return answers

    def _find(self, index: int, previous_end: int) -> Answer | None:
        own = [occurrence for occurrence in self._occurrences if occurrence.field.message == index]
        if own:
            place = self._occurrences.index(own[0])
            before, following = self._occurrences[:place], self._occurrences[place + len(own) :]
            if self._occurrences[place : place + len(own)] != own or len({one.field for one in own}) != len(own):
                raise RowError(ANSWER_NOT_LOCATED, f"the template scatters message {index + 1}")
        elif not any(field.text.strip() for field in text_fields([self._messages[index]])):
            # The answer is empty, or only has calls without text.
            before = [occurrence for occurrence in self._occurrences if occurrence.field.message < index]
            following = [occurrence for occurrence in self._occurrences if occurrence.field.message > index]
        elif self._is_left_out(index):
            return None
        else:
            hint = f": {TOOLS_HINT}" if self._messages[index].get("tool_calls") else ""
            raise RowError(LEFT_OUT, f"message {index + 1}{hint}")
        last = max([_TEXT_START, *before], key=lambda occurrence: occurrence.end)
        next_start = following[0].start if following else len(self._text)
        gap_start = max(previous_end, last.end)
        gap_end = own[0].start if own else next_start
        if gap_start > gap_end:
            raise RowError(ANSWER_NOT_LOCATED, f"the template reorders around message {index + 1}")
        header = self._header_length(index, self._text[gap_start:gap_end], last, own)
        if header is not None:
            return self._close(index, gap_start + header, own[-1] if own else last, next_start)
        if not own and self._is_left_out(index):
            return None
        raise RowError(ANSWER_NOT_LOCATED, f"message {index + 1}")

    def _header_length(self, index: int, gap: str, last: Occurrence, own: Sequence[Occurrence]) -> int | None:
        """The length of the part of `gap` that precedes the answer; None if unknown.

        Args:
            index: The answer's message.
            gap: The text between the last text before the answer and the answer's own first text.
            last: The last text before the answer.
            own: The answer's own texts; none if it is empty.
        """
        prompt, header, _, _, closing = self._turn
        if own and header and gap.startswith(prompt) and index and self._messages[index - 1]["role"] == "user":
            return len(prompt)
        starts_whole = not own or own[0].is_whole
        if header and starts_whole and gap.count(header) == 1:
            return gap.index(header) + len(header)
        if own and starts_whole and closing and not header:
            return len(gap.rstrip(" "))
        written = self._written_after(last, index, generation_prompt=True)
        return len(written) if written is not None and gap.startswith(written) else None

    def _close(self, index: int, start: int, last: Occurrence, next_start: int) -> Answer:
        """The answer that starts at `start`, with the end-of-turn token that closes it.

        Args:
            index: The answer's message.
            start: The start of the answer.
            last: Its last text, or the last text before it.
            next_start: The start of the conversation's next text.
        """
        closing = self._turn.closing
        end = max(start, last.end)
        tail = self._text[end:next_start]
        is_last = next_start == len(self._text)
        if self._ends_with(index, last):
            if closing and (tail.startswith(closing) or tail.count(closing) == 1):
                end += tail.index(closing)
                return Answer(index, start, end, end + len(closing))
            if is_last and not closing:
                return Answer(index, start, end, end + len(tail.rstrip()))
        written = self._written_after(last, index + 1)
        written_end = last.end + len(written or "")
        if written is not None and self._text[last.end : next_start].startswith(written) and written_end >= end:
            tail = self._text[end:written_end]
        elif is_last:
            tail = tail.rstrip()
        else:
            raise RowError(ANSWER_NOT_LOCATED, f"message {index + 1}")
        return Answer(index, start, end + _end_of_turn(tail, closing), end + len(tail))

    def _ends_with(self, index: int, last: Occurrence) -> bool:
        """Whether a message ends with its last located text, and not for example with a call with only numbers."""
        calls = self._messages[index].get("tool_calls")
        return not calls or (last.field.message == index and last.field.path[:2] == ("tool_calls", len(calls) - 1))

    def _written_after(self, last: Occurrence, length: int, generation_prompt: bool = False) -> str | None:
        """The text after the last text of the first messages, as written when an answer follows; None if unknown.

        Args:
            last: The text that is expected to be the last one.
            length: The number of messages.
            generation_prompt: Whether to include the generation prompt, up to a thinking tag.
        """
        messages = self._messages[:length]
        apply = partial(self._apply, generation_prompt=True)
        try:
            text = apply(messages)
            occurrences = self._within_turns(locate(messages, text, apply))
        except RowError:
            return None
        found = max([_TEXT_START, *occurrences], key=lambda occurrence: occurrence.end)
        if found.field != last.field:
            return None
        tail = text[found.end :]
        prompt = self._turn.generation_prompt
        if prompt and tail.endswith(prompt):
            tail = tail[: -len(prompt)] + (self._turn.header if generation_prompt else "")
        return _without_thinking(tail) if generation_prompt else tail.rstrip()

    def _is_left_out(self, index: int) -> bool:
        """Whether the rendering is the same without the message."""
        try:
            return self._apply(self._messages[:index] + self._messages[index + 1 :]) == self._text
        except RowError:
            return False

    def _within_turns(self, occurrences: Sequence[Occurrence]) -> list[Occurrence]:
        """The occurrences without those that may be outside their message's turn.

        An empty content of a message with calls may be written after their results, and a template may write the name
        of a call again with its result.
        """
        kept: list[Occurrence] = []
        for occurrence in occurrences:
            field = occurrence.field
            is_repeated_name = field.is_call_name and any(other.field == field for other in kept)
            if not is_repeated_name and (field.text or not self._messages[field.message].get("tool_calls")):
                kept.append(occurrence)
        return kept


def common_start(one: str, other: str) -> str:
    """The common start of two texts; it does not end inside a special token (`<|im_end|>`) of either."""
    length = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
    for text in (one, other):
        for token in _SPECIAL_TOKEN.finditer(text):
            if token.start() < length < token.end():
                length = token.start()
    return one[:length]


def opens_thinking(text: str) -> bool:
    """Whether a text begins with a thinking tag."""
    return _THINKING_TAG.match(text) is not None


def _without_thinking(prompt: str) -> str:
    """A prompt up to its thinking tag, if it has one."""
    tag = _THINKING_TAG.search(prompt)
    return prompt[: tag.start()] if tag else prompt


def _end_of_turn(tail: str, closing: str) -> int:
    """The start of the end-of-turn token in `tail`, the text after an answer's last text; its length if there is none.

    Args:
        tail: The text, up to and including the end-of-turn token.
        closing: The text that closes a plain answer's turn, or an empty string.
    """
    if not closing:
        return len(tail)
    if tail.endswith(closing):
        return len(tail) - len(closing)
    tokens = list(_SPECIAL_TOKEN.finditer(tail))
    return tokens[-1].start() if tokens and tokens[-1].end() == len(tail) else len(tail)
