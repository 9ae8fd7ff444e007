"""From a conversation to its text and segments: the exact output of the chat template, and the type of each part.

For the messages `Hi` and `Hello`, a template may write:

    <|user|>Hi<|end|><|assistant|>Hello<|end|>
    other   ^ other               ^    ^
            query                 |    suffix, the end-of-turn token
                                  response, from where the generation prompt ends

Templates are not parsed. The text is the tokenizer's output for the whole conversation. Rendering it again with markers
shows where the contents are (`markers`), and a few small conversations show what the template writes around answers
(`answers`). Both are done once per sequence of roles: later conversations with the same roles reuse the result
(`segments.Layout`). If an answer cannot be located with certainty, the row is refused.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from swiftplug.data.chat.answers import (
    Answer,
    AnswerFinder,
    TurnFormat,
    common_start,
    learn_turn_format,
    opens_thinking,
)
from swiftplug.data.chat.markers import Occurrence, locate, text_fields
from swiftplug.data.chat.segments import Layout, Rendered, Segment
from swiftplug.data.chat.tools import Turns, message_text, with_text_arguments, write_turns
from swiftplug.data.read.conversation import Conversation, RowError, RowOrigin, has_value
from swiftplug.data.read.messages import Messages
from swiftplug.plugin import ContextType
from swiftplug.plugin.tokenizer import with_reasoning_key
from swiftplug.plugin.tools_format import ToolsFormat

_EMPTY_THOUGHT = re.compile(r"<think>\s*</think>\s*")


class ChatRenderer:
    """Renders conversations with a tokenizer's chat template, and remembers what it learned about the template.

    Args:
        tokenizer: A tokenizer with a chat template.
        tools_format: Writes tools into the prompt; None leaves them to the chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools_format: ToolsFormat | None = None) -> None:
        self._tokenizer = tokenizer
        self._tools_format = tools_format
        self._turn_formats: dict[tuple[bool, bool, str], TurnFormat] = {}
        self._layouts: dict[tuple[str, ...], Layout] = {}

    def render(self, conversation: Conversation) -> Rendered:
        """Render a conversation with `apply_chat_template`, and cut the text into segments.

        Raises:
            RowError: The template raises, or an answer cannot be located with certainty.
        """
        return self._segmented(*self._write(conversation))

    def render_all(self, conversations: Sequence[Conversation], whole: bool) -> list[Rendered | RowError]:
        """Render a batch of conversations; one that cannot be rendered is replaced by its error.

        Args:
            conversations: Rows with messages.
            whole: Whether each text is one response, to train on all of it.
        """
        results: list[Rendered | RowError] = []
        for conversation, written in zip(conversations, self._write_all(conversations), strict=True):
            try:
                turns, text = written or self._write(conversation)
                if whole:
                    response = Segment(0, len(text), ContextType.RESPONSE, True)
                    results.append(Rendered(text, [response], [], self._unread(turns, text)))
                else:
                    results.append(self._segmented(turns, text))
            except RowError as error:
                results.append(error)
        return results

    def unread(self, conversation: Conversation) -> list[str]:
        """What the template does not read of a conversation: see `Rendered.unread`. Plain ones are not rendered."""
        plain = all(message.keys() == {"role", "content"} for message in conversation.messages)
        if plain and not conversation.tools and not conversation.chat_template_kwargs:
            return []
        try:
            return self._unread(*self._write(conversation))
        except RowError:
            return []

    def prompt_of_last(self, conversation: Conversation) -> tuple[str, str] | None:
        """The `prompt` of the last answer; None if the last message is not an answer."""
        turns, _ = self._write(conversation)
        if len(turns.messages) < 2 or turns.roles[-1] != "assistant":
            return None
        return self.prompt(turns._replace(messages=turns.messages[:-1], roles=turns.roles[:-1]))

    def prompt_of(self, conversation: Conversation) -> str:
        """The text of a conversation that ends in a question, with its generation prompt."""
        return self.prompt(self._write(conversation)[0])[0]

    def prompt(self, turns: Turns) -> tuple[str, str]:
        """The text of a prompt with its generation prompt, and the end of it that belongs to the answer.

        Raises:
            RowError: The template refuses it.
        """
        turns = turns._replace(messages=with_reasoning_key(turns.messages, self._tokenizer))
        text = self._apply(turns, turns.messages, generation_prompt=True)
        turn = self._turn_format(turns)
        if turn.generation_prompt and text.endswith(turn.generation_prompt):
            return text, turn.opened
        # This conversation has another generation prompt; some templates look for `/no_think` in it.
        unprompted = self._apply(turns, turns.messages)
        opened = text[len(common_start(unprompted, text)) :].removeprefix(turn.header)
        return text, opened if turn.header and opens_thinking(opened) else ""

    def reply(self, turns: Turns, answered: int, end_of_turn: str) -> str:
        """What the template writes behind an answer's end of turn for what replies to it, with the generation prompt.

        Args:
            turns: A conversation that ends in the reply.
            answered: The number of its messages up to the answer.
            end_of_turn: See `end_of_turn`.

        Raises:
            RowError: The template refuses it, or writes the conversation up to there differently without the reply.
        """
        turns = turns._replace(messages=with_reasoning_key(turns.messages, self._tokenizer))
        before = self._apply(turns, turns.messages[:answered])
        after = self._apply(turns, turns.messages, generation_prompt=True)
        if end_of_turn and end_of_turn in before:  # some templates end a whole conversation with another token
            before = before[: before.rindex(end_of_turn) + len(end_of_turn)]
        # Some write an empty thought before the last answer alone.
        thoughts = [*_EMPTY_THOUGHT.finditer(before)]
        for begins in (before, *(before[: each.start()] + before[each.end() :] for each in thoughts[-1:])):
            if after.startswith(begins):
                return after[len(begins) :]
        at = len(common_start(before, after))
        raise RowError(
            "the chat template writes an answer otherwise once the conversation goes on; name another one with "
            "data.template",
            f"{before[at : at + 20]!r} becomes {after[at : at + 20]!r}",
        )

    def end_of_turn(self) -> str:
        """The text with which the template ends the last answer of a conversation; empty if there is none."""
        texts = [("system", "system"), ("user", "question"), ("assistant", "answer")]
        plain: Messages = [{"role": role, "content": text} for role, text in texts]
        in_parts: Messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts]
        for messages in (plain[1:], in_parts[1:], plain, in_parts):
            with suppress(RowError):
                rendered = self.render(Conversation(messages, RowOrigin("", 0)))
                ends = [each for each in rendered.segments if each.type is ContextType.SUFFIX]
                return rendered.text[ends[-1].start : ends[-1].end] if ends else ""
        return ""

    def _write_all(self, conversations: Sequence[Conversation]) -> list[tuple[Turns, str]] | list[None]:
        """The turns of conversations and their texts; None for all if they must be rendered one by one."""
        with suppress(RowError):  # it does not tell which row; that one raises it again when it is rendered alone
            all_turns = [self._turns(conversation) for conversation in conversations]
            if conversations and not any(turns.tools or turns.chat_template_kwargs for turns in all_turns):
                texts = self._call_template([turns.messages for turns in all_turns])
                return list(zip(all_turns, texts, strict=True))
        return [None] * len(conversations)

    def _write(self, conversation: Conversation) -> tuple[Turns, str]:
        """The turns of a conversation and their text."""
        turns = self._turns(conversation)
        try:
            return turns, self._apply(turns, turns.messages)
        except RowError:
            textual = with_text_arguments(turns)
            if textual is None:
                raise
            return textual, self._apply(textual, textual.messages)

    def _turns(self, conversation: Conversation) -> Turns:
        turns = write_turns(conversation, self._tools_format)
        return turns._replace(messages=with_reasoning_key(turns.messages, self._tokenizer))

    def _apply(self, turns: Turns, messages: Messages, generation_prompt: bool = False) -> str:
        """The text of messages, with the tools and the template's variables of `turns`."""
        text = self._call_template(
            messages, tools=turns.tools, add_generation_prompt=generation_prompt, **turns.chat_template_kwargs
        )
        assert isinstance(text, str)
        return text

    def _call_template(self, messages: Messages | list[Messages], **variables: Any) -> Any:
        """The text of one conversation, or the texts of several."""
        try:
            return self._tokenizer.apply_chat_template(messages, tokenize=False, **variables)
        except Exception as error:  # a template is a program and may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RowError("the chat template refuses it", reason) from error

    def _segmented(self, turns: Turns, text: str) -> Rendered:
        """A text with its segments: from the layout of these roles if it fits, else by rendering again."""
        contents = _plain_contents(turns)
        key = _layout_key(turns)
        if contents and key in self._layouts:
            rendered = self._layouts[key].apply(contents, text)
            if rendered:
                return rendered
        try:
            return self._examine(turns, text, contents)
        except RowError:
            again = self._apply(turns, turns.messages)
            if again == text:
                raise
            return self._examine(turns, again, contents)  # the template writes the date, and the day has changed

    def _examine(self, turns: Turns, text: str, contents: list[str] | None) -> Rendered:
        """A text with its segments, found by rendering again; remembers the layout of these roles."""
        apply = partial(self._apply, turns)
        occurrences = locate(turns.messages, text, apply)
        answers = AnswerFinder(turns.messages, text, occurrences, apply, self._turn_format(turns)).find()
        shortened = _shortened(turns, occurrences, answers, text)
        segments = _segments(turns, occurrences, answers, text)
        rendered = Rendered(text, segments, shortened, self._unread(turns, text))
        if contents and not shortened and not rendered.unread:
            layout = Layout.learn(rendered, contents, occurrences)
            if layout:
                self._layouts[_layout_key(turns)] = layout
        return rendered

    def _unread(self, turns: Turns, text: str) -> list[str]:
        """What the template does not read: the text is the same without it. See `Rendered.unread`."""
        messages, variables = turns.messages, turns.chat_template_kwargs
        keys = {key for message in messages for key in message if has_value(message[key])} - {"role", "content"}
        unread = [key for key in sorted(keys) if self._try_apply(turns, _without_key(messages, key)) == text]
        if turns.tools and self._try_apply(turns._replace(tools=None), messages) == text:
            unread.append("tools")
        bare = turns._replace(chat_template_kwargs={})
        if variables and all(
            self._try_apply(bare, messages, prompt) == self._try_apply(turns, messages, prompt)
            for prompt in (False, True)  # some variables only change the generation prompt
        ):
            unread.append("chat_template_kwargs")
        return unread

    def _try_apply(self, turns: Turns, messages: Messages, generation_prompt: bool = False) -> str | None:
        try:
            return self._apply(turns, messages, generation_prompt)
        except RowError:
            return None

    def _turn_format(self, turns: Turns) -> TurnFormat:
        has_system = turns.roles[0] == "system"
        in_parts = any(isinstance(message.get("content"), list) for message in turns.messages)
        key = has_system, in_parts, _layout_key(turns)[0]
        if key not in self._turn_formats:
            apply = partial(self._apply, turns._replace(tools=None))
            self._turn_formats[key] = learn_turn_format(apply, has_system, in_parts)
        return self._turn_formats[key]


def _layout_key(turns: Turns) -> tuple[str, ...]:
    """The variables of the template, and the roles: what a layout depends on besides contents."""
    return (
        json.dumps(turns.chat_template_kwargs, sort_keys=True, default=str) if turns.chat_template_kwargs else "",
        *turns.roles,
    )


def _without_key(messages: Messages, key: str) -> Messages:
    return [{name: value for name, value in message.items() if name != key} for message in messages]


def _plain_contents(turns: Turns) -> list[str] | None:
    """The contents of messages; None if any has other keys, or white space at an end of its content."""
    if turns.tools:
        return None
    contents = []
    for message in turns.messages:
        content = message.get("content")
        if len(message) != 2 or not isinstance(content, str) or not content or content.strip() != content:
            return None
        contents.append(content)
    return contents


def _segments(turns: Turns, occurrences: Sequence[Occurrence], answers: Sequence[Answer], text: str) -> list[Segment]:
    """The segments of answers and contents in the order of the text, and of the template's text between them."""
    last_user = max((index for index, role in enumerate(turns.roles) if role == "user"), default=0)
    queries, query = [], ""
    for message, role in zip(turns.messages, turns.roles, strict=True):
        query = message_text(message) if role in ("user", "tool") else query
        queries.append(query)

    def segment(start: int, end: int, kind: ContextType, index: int) -> Segment:
        return Segment(start, end, kind, index >= last_user, queries[index], turns.sources[index], turns.roles[index])

    located = []
    for index, start, end, suffix_end in answers:
        located.append(segment(start, end, ContextType.RESPONSE, index))
        located.append(segment(end, suffix_end, ContextType.SUFFIX, index))
    for start, end, field, _ in occurrences:
        if turns.roles[field.message] != "assistant" and start < end:
            located.append(segment(start, end, ContextType.OTHER, field.message))
    located.sort(key=lambda item: (item.start, item.end, item.message_index))
    covering: list[Segment] = []
    position = 0
    for item in located:
        if item.start < position:
            raise RowError("the template writes one message inside another")
        if position < item.start:
            covering.append(Segment(position, item.start, ContextType.OTHER, item.is_last_round, item.query))
        covering.append(item)
        position = item.end
    if position < len(text):
        covering.append(Segment(position, len(text), ContextType.OTHER, True, queries[-1]))
    return covering


def _shortened(turns: Turns, occurrences: Sequence[Occurrence], answers: Sequence[Answer], text: str) -> list[int]:
    """Indices of messages of which some text other than white space is missing: content, thinking or a call."""
    whole = {occurrence.field for occurrence in occurrences if occurrence.is_whole}
    written = {answer.message: "".join(text[answer.start : answer.end].split()) for answer in answers}
    shortened = set()
    for field in text_fields(turns.messages):
        letters = "".join(field.text.split())
        if letters and field not in whole and letters not in written.get(field.message, ""):
            shortened.add(field.message)
    for index, message in enumerate(turns.messages):
        for call in message.get("tool_calls", []):
            if call["function"]["name"] not in written.get(index, ""):
                shortened.add(index)
    return sorted({turns.sources[index] for index in shortened} - {-1})
