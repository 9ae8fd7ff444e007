"""From a conversation to its text and segments: exactly what the chat template writes, and what each stretch of it is.

A second rendering with marks shows where contents stand (`marks`), a few small ones what the template writes around
answers (`turns`, `answers`). Both are done once for a sequence of roles: for the next conversation of that sequence the
same pieces are laid around its contents, and if that gives the true text, its segments are known (`layouts`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swiftplug.data.chat.answers import Answer, AnswerFinder
from swiftplug.data.chat.layouts import Layout
from swiftplug.data.chat.marks import Field, Messages, Piece, locate, text_fields
from swiftplug.data.chat.segments import TEMPLATE_TEXT, Rendered, Segment
from swiftplug.data.chat.tools import Turns, with_text_arguments, write_turns
from swiftplug.data.chat.turns import TurnFormat, learn_turn_format
from swiftplug.data.read.conversation import Conversation, RowError
from swiftplug.plugin.loss_scale import ContextType
from swiftplug.plugin.tools_format import ToolsFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFUSED = "the chat template refuses it"

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
        self._turn_formats: dict[tuple[bool, bool], TurnFormat | None] = {}
        self._layouts: dict[tuple[str, ...], Layout] = {}

    def render(self, conversation: Conversation) -> Rendered:
        """The text of a conversation and its segments.

        Args:
            conversation: A row with messages.

        Returns:
            The text that `apply_chat_template` gives for the whole conversation, and segments that cover it.

        Raises:
            RowError: If the template raises, or if it cannot be told for certain where an answer stands.
        """
        return self._read(*self._write(conversation))

    def render_all(self, conversations: Sequence[Conversation], whole: bool) -> list[Rendered | RowError]:
        """Render many, which is quicker than one by one.

        Args:
            conversations: Rows with messages.
            whole: Whether each is one response, to train on all of it.

        Returns:
            As `render`; what cannot be rendered has its error in its place.
        """
        rendered: list[Rendered | RowError] = []
        for conversation, written in zip(conversations, self._write_all(conversations), strict=True):
            try:
                turns, text = written or self._write(conversation)
                rendered.append(_as_response(text) if whole else self._read(turns, text))
            except RowError as error:
                rendered.append(error)
        return rendered

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
        return self._apply(turns, turns.messages[:-1], True)

    def _read(self, turns: Turns, text: str) -> Rendered:
        """The segments of a text."""
        contents = _plain_contents(turns)
        layout = self._layouts.get(tuple(turns.roles)) if contents else None
        if layout and contents and layout.fits(contents, text):
            return Rendered(text, layout.segments(contents), [])
        try:
            return self._examine(turns, text)
        except RowError:
            again = self._apply(turns, turns.messages, False)
            if again == text:
                raise
            return self._examine(turns, again)  # the template writes a date, and the day is another one now

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
            return turns, self._apply(turns, turns.messages, False)
        except RowError:
            textual = with_text_arguments(turns)
            if textual is None:
                raise
            return textual, self._apply(textual, textual.messages, False)

    def _apply(self, turns: Turns, messages: Messages, generation_prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tools=turns.tools, add_generation_prompt=generation_prompt, tokenize=False
            )
        except Exception as error:  # a template is a program of its author's: it may raise anything
            raise RowError(REFUSED, " ".join(str(error).split()) or type(error).__name__) from error
        assert isinstance(text, str)
        return text

    def _examine(self, turns: Turns, text: str) -> Rendered:
        """Locate contents and answers by rendering again."""
        fields = text_fields(turns.messages)
        pieces = locate(turns.messages, fields, text, lambda marked: self._apply(turns, marked, False))
        answers = AnswerFinder(
            turns.messages,
            fields,
            pieces,
            text,
            lambda messages, prompt: self._apply(turns, messages, prompt),
            self._turn_format(turns),
        ).find()
        dropped = _dropped(turns, fields, pieces, answers, text)
        rendered = Rendered(text, _segments(turns, fields, pieces, answers, text), dropped)
        contents = _plain_contents(turns)
        if contents and not rendered.dropped:
            layout = Layout.of(contents, pieces, rendered)
            if layout:
                self._layouts[tuple(turns.roles)] = layout
        return rendered

    def _turn_format(self, turns: Turns) -> TurnFormat | None:
        system = turns.roles[0] == "system"
        parts = any(isinstance(message.get("content"), list) for message in turns.messages)
        if (system, parts) not in self._turn_formats:
            bare = turns._replace(tools=None)
            self._turn_formats[system, parts] = learn_turn_format(
                lambda messages, prompt: self._apply(bare, messages, prompt), system, parts
            )
        return self._turn_formats[system, parts]


def render(
    conversation: Conversation, tokenizer: "PreTrainedTokenizerBase", tools_format: ToolsFormat | None = None
) -> Rendered:
    """Render one conversation; see `ChatRenderer.render`."""
    return ChatRenderer(tokenizer, tools_format).render(conversation)


def _as_response(text: str) -> Rendered:
    """A text that is one response."""
    return Rendered(text, [Segment(0, len(text), ContextType.RESPONSE, True, "", TEMPLATE_TEXT)], [])


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


def _segments(
    turns: Turns, fields: Sequence[Field], pieces: Sequence[Piece], answers: Sequence[Answer], text: str
) -> list[Segment]:
    """Segments of answers and contents in the order of the text, and between them what the template writes."""
    last_user = max((index for index, role in enumerate(turns.roles) if role == "user"), default=0)
    queries = _queries(turns)

    def segment(start: int, end: int, kind: ContextType, message: int) -> Segment:
        return Segment(start, end, kind, message >= last_user, queries[message], turns.sources[message])

    known = []
    for message, start, end, suffix_end in answers:
        known.append(segment(start, end, ContextType.RESPONSE, message))
        known.append(segment(end, suffix_end, ContextType.SUFFIX, message))
    for piece in pieces:
        message = fields[piece.field].message
        kind = _TYPES.get(turns.roles[message])
        if kind and piece.start < piece.end:
            known.append(segment(piece.start, piece.end, kind, message))
    known.sort(key=lambda item: (item.start, item.end, item.message_index))
    covering: list[Segment] = []
    position = 0
    for item in known:
        if item.start < position:
            raise RowError("the template writes one message inside another")
        if position < item.start:
            covering.append(item._replace(start=position, end=item.start, type=ContextType.OTHER, message_index=-1))
        covering.append(item)
        position = item.end
    if position < len(text):
        covering.append(Segment(position, len(text), ContextType.OTHER, True, queries[-1], TEMPLATE_TEXT))
    return covering


def _queries(turns: Turns) -> list[str]:
    """For each message the content of the query that it is, or that precedes it."""
    queries, query = [], ""
    for message, role in zip(turns.messages, turns.roles, strict=True):
        content: Any = message.get("content", "")
        if role in ("user", "tool"):
            query = content if isinstance(content, str) else "".join(f.text for f in text_fields([message]))
        queries.append(query)
    return queries


def _dropped(
    turns: Turns, fields: Sequence[Field], pieces: Sequence[Piece], answers: Sequence[Answer], text: str
) -> list[int]:
    """The messages of which something that is not white space is missing in the text: a content, thinking, a call."""
    whole = {piece.field for piece in pieces if piece.whole}
    written = {answer.message: "".join(text[answer.start : answer.end].split()) for answer in answers}
    dropped = set()
    for k, field in enumerate(fields):
        core = "".join(field.text.split())
        if core and k not in whole and core not in written.get(field.message, ""):
            dropped.add(field.message)
    for index, message in enumerate(turns.messages):
        for call in message.get("tool_calls") or []:
            name = call.get("function", call).get("name", "")
            if name not in written.get(index, ""):
                dropped.add(index)
    return sorted({turns.sources[index] for index in dropped} - {-1})
