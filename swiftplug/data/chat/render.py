"""From a conversation to its text and segments: exactly what the chat template writes, and what each stretch of it is.

For the messages `Hi` and `Hello` a template may write:

    <|user|>Hi<|end|><|assistant|>Hello<|end|>
    other   ^ other               ^    ^
            query                 |    suffix, the end-of-turn token
                                  response, from where the generation prompt ends

No template is parsed. The text is what the tokenizer gives for the whole conversation. Rendering again with markers
shows where contents stand (`markers`), and a few small conversations show what the template writes around answers
(`answers`). Both are done once for a sequence of roles: the next such conversation is compared with what the template
wrote around the contents of the first (`segments.Layout`). What cannot be located is refused, never guessed.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from swiftplug.data.chat.answers import Answer, AnswerFinder, TurnFormat, learn_turn_format
from swiftplug.data.chat.markers import Messages, Occurrence, locate, text_fields
from swiftplug.data.chat.segments import TEMPLATE_TEXT, Layout, Rendered, Segment
from swiftplug.data.chat.tools import Turns, message_text, with_text_arguments, write_turns
from swiftplug.data.read.conversation import Conversation, RowError
from swiftplug.plugin import ContextType
from swiftplug.plugin.tools_format import ToolsFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TYPES = {
    "system": ContextType.SYSTEM,
    "developer": ContextType.SYSTEM,
    "user": ContextType.QUERY,
    "tool": ContextType.QUERY,
}


class ChatRenderer:
    """Renders conversations with one tokenizer's chat template, and remembers what it learned of the template.

    Args:
        tokenizer: A tokenizer with a chat template.
        tools_format: Writes tools into the prompt; None leaves them to the chat template.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", tools_format: ToolsFormat | None = None) -> None:
        self._tokenizer = tokenizer
        self._tools_format = tools_format
        self._turn_formats: dict[tuple[bool, bool], TurnFormat] = {}
        self._layouts: dict[tuple[str, ...], Layout] = {}

    def render(self, conversation: Conversation) -> Rendered:
        """The text that `apply_chat_template` gives for the whole conversation, and segments that cover it.

        Raises:
            RowError: If the template raises, or if an answer cannot be located for certain.
        """
        return self._segmented(*self._write(conversation))

    def render_all(self, conversations: Sequence[Conversation], whole: bool) -> list[Rendered | RowError]:
        """Render many, which is quicker than one by one.

        Args:
            conversations: Rows with messages.
            whole: Whether each is one response, to train on all of it.

        Returns:
            As `render`; what cannot be rendered has its error in its place.
        """
        results: list[Rendered | RowError] = []
        for conversation, written in zip(conversations, self._write_all(conversations), strict=True):
            try:
                turns, text = written or self._write(conversation)
                if whole:
                    response = Segment(0, len(text), ContextType.RESPONSE, True, "", TEMPLATE_TEXT)
                    results.append(Rendered(text, [response], []))
                else:
                    results.append(self._segmented(turns, text))
            except RowError as error:
                results.append(error)
        return results

    def prompt(self, conversation: Conversation) -> str | None:
        """What a model is given to write the last answer: all that precedes it, with the generation prompt.

        Returns:
            The text, or None where the conversation does not end in an answer.

        Raises:
            RowError: If the template raises.
        """
        turns, _ = self._write(conversation)
        if len(turns.messages) < 2 or turns.roles[-1] != "assistant":
            return None
        return self._apply(turns.tools, turns.messages[:-1], generation_prompt=True)

    def _write_all(self, conversations: Sequence[Conversation]) -> list[tuple[Turns, str]] | list[None]:
        """The turns of conversations and their texts; None for all where they must be rendered one by one."""
        try:
            all_turns = [write_turns(conversation, self._tools_format) for conversation in conversations]
            if conversations and not any(turns.tools for turns in all_turns):
                texts = self._tokenizer.apply_chat_template([turns.messages for turns in all_turns], tokenize=False)
                return list(zip(all_turns, texts, strict=True))
        except Exception:  # whatever it is, the row that raised it raises it again, alone
            pass
        return [None] * len(conversations)

    def _write(self, conversation: Conversation) -> tuple[Turns, str]:
        """The turns of a conversation and their text."""
        turns = write_turns(conversation, self._tools_format)
        try:
            return turns, self._apply(turns.tools, turns.messages)
        except RowError:
            textual = with_text_arguments(turns)
            if textual is None:
                raise
            return textual, self._apply(textual.tools, textual.messages)

    def _apply(self, tools: list[Any] | None, messages: Messages, generation_prompt: bool = False) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=generation_prompt, tokenize=False
            )
        except Exception as error:  # a template is a program of its author's: it may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RowError("the chat template refuses it", reason) from error
        assert isinstance(text, str)
        return text

    def _segmented(self, turns: Turns, text: str) -> Rendered:
        """A text with its segments: by the layout of these roles where it fits, else by rendering again."""
        contents = _plain_contents(turns)
        roles = tuple(turns.roles)
        if contents and roles in self._layouts:
            rendered = self._layouts[roles].apply(contents, text)
            if rendered:
                return rendered
        try:
            return self._examine(turns, text, contents)
        except RowError:
            again = self._apply(turns.tools, turns.messages)
            if again == text:
                raise
            return self._examine(turns, again, contents)  # the template writes a date, and the day is another one now

    def _examine(self, turns: Turns, text: str, contents: list[str] | None) -> Rendered:
        """A text with its segments, found by rendering again; learns the layout of contents."""
        apply = partial(self._apply, turns.tools)
        occurrences = locate(turns.messages, text, apply)
        answers = AnswerFinder(turns.messages, text, occurrences, apply, self._turn_format(turns)).find()
        dropped = _dropped(turns, occurrences, answers, text)
        rendered = Rendered(text, _segments(turns, occurrences, answers, text), dropped)
        if contents and not dropped:
            layout = Layout.learn(rendered, contents, occurrences)
            if layout:
                self._layouts[tuple(turns.roles)] = layout
        return rendered

    def _turn_format(self, turns: Turns) -> TurnFormat:
        has_system = turns.roles[0] == "system"
        in_parts = any(isinstance(message.get("content"), list) for message in turns.messages)
        if (has_system, in_parts) not in self._turn_formats:
            learned = learn_turn_format(partial(self._apply, None), has_system, in_parts)
            self._turn_formats[has_system, in_parts] = learned
        return self._turn_formats[has_system, in_parts]


def _plain_contents(turns: Turns) -> list[str] | None:
    """The contents of messages that are nothing but contents without edges to strip, else None."""
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
    """Segments of answers and contents in the order of the text, and between them what the template writes."""
    last_user = max((index for index, role in enumerate(turns.roles) if role == "user"), default=0)
    queries, query = [], ""
    for message, role in zip(turns.messages, turns.roles, strict=True):
        query = message_text(message) if role in ("user", "tool") else query
        queries.append(query)

    def segment(start: int, end: int, kind: ContextType, index: int) -> Segment:
        return Segment(start, end, kind, index >= last_user, queries[index], turns.sources[index])

    located = []
    for index, start, end, suffix_end in answers:
        located.append(segment(start, end, ContextType.RESPONSE, index))
        located.append(segment(end, suffix_end, ContextType.SUFFIX, index))
    for start, end, field, _ in occurrences:
        kind = _TYPES.get(turns.roles[field.message])
        if kind and start < end:
            located.append(segment(start, end, kind, field.message))
    located.sort(key=lambda item: (item.start, item.end, item.message_index))
    covering: list[Segment] = []
    position = 0
    for item in located:
        if item.start < position:
            raise RowError("the template writes one message inside another")
        if position < item.start:
            between = item._replace(start=position, end=item.start, type=ContextType.OTHER, message_index=TEMPLATE_TEXT)
            covering.append(between)
        covering.append(item)
        position = item.end
    if position < len(text):
        covering.append(Segment(position, len(text), ContextType.OTHER, True, queries[-1], TEMPLATE_TEXT))
    return covering


def _dropped(turns: Turns, occurrences: Sequence[Occurrence], answers: Sequence[Answer], text: str) -> list[int]:
    """The messages of which something that is not white space is missing in the text: a content, thinking, a call."""
    whole = {occurrence.field for occurrence in occurrences if occurrence.is_whole}
    written = {answer.message: "".join(text[answer.start : answer.end].split()) for answer in answers}
    dropped = set()
    for field in text_fields(turns.messages):
        letters = "".join(field.text.split())
        if letters and field not in whole and letters not in written.get(field.message, ""):
            dropped.add(field.message)
    for index, message in enumerate(turns.messages):
        for call in message.get("tool_calls", []):
            if call["function"]["name"] not in written.get(index, ""):
                dropped.add(index)
    return sorted({turns.sources[index] for index in dropped} - {-1})
