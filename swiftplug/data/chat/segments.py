"""A rendered conversation: its text, cut into segments that each have one context type."""

from typing import NamedTuple

from swiftplug.plugin.loss_scale import ContextType

TEMPLATE_TEXT = -1


class Segment(NamedTuple):
    """A stretch of the text.

    Attributes:
        start: Its first character.
        end: Behind its last character. An empty answer is an empty segment.
        type: What it is.
        is_last_round: Whether it belongs to the last round, which begins at the last message of the user.
        query: The content of the user's message or tool result that the segment is, or that the answer follows.
        message_index: The message it comes from; `TEMPLATE_TEXT` for what the template writes between messages.
    """

    start: int
    end: int
    type: ContextType
    is_last_round: bool
    query: str
    message_index: int


class Rendered(NamedTuple):
    """What the chat template made of a conversation.

    Attributes:
        text: Exactly the text of `tokenizer.apply_chat_template(..., tokenize=False)`.
        segments: Segments that cover the text, in order.
        dropped: The messages (by index) that the template leaves out in whole or in part, such as earlier thinking.
    """

    text: str
    segments: list[Segment]
    dropped: list[int]
