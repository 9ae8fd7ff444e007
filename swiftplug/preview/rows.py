"""The rows of a preview: the text and weight of each token, and the segments."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from swiftplug.data.encode import TOO_LONG, UNTRAINED, RowEncoder, WeighedRow
from swiftplug.data.read.conversation import Conversation, RowError
from swiftplug.data.read.report import TOOLS_HINT
from swiftplug.formatting import format_count, format_percent


@dataclass(frozen=True)
class PreviewSegment:
    """A segment of a row.

    Attributes:
        type: Its context type.
        text: The part of its text that is in the row.
        first_token: The first token that starts in it.
        end_token: One past the last token that starts in it.
        is_last_round: Whether it belongs to the last round.
        role: The role of its message; empty for text between messages.
    """

    type: str
    text: str
    first_token: int
    end_token: int
    is_last_round: bool
    role: str


@dataclass(frozen=True)
class PreviewRow:
    """A row as the model will see it, or the reason why it will not.

    Attributes:
        origin: Where it was read from.
        input_ids: Its token ids.
        tokens: The text of each token. Joined, they give the text, with the special tokens that a tokenizer adds to
            plain texts. If several tokens form one character, the first has it.
        weights: The weight of each token.
        segments: Its segments.
        dropped: Why the row is left out; None if it is used.
        note: How the row was changed, or an empty string.
    """

    origin: str
    input_ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    segments: list[PreviewSegment] = field(default_factory=list)
    dropped: str | None = None
    note: str = ""

    @property
    def counts(self) -> dict[float, int]:
        """The number of tokens of each weight, by ascending weight."""
        return dict(sorted(Counter(self.weights).items()))

    @property
    def trained(self) -> int:
        """The number of tokens with a weight other than 0."""
        return sum(weight != 0 for weight in self.weights)

    @property
    def summary(self) -> str:
        """Its number of tokens, of trained ones, and of each weight."""
        share = f" ({format_percent(self.trained / len(self.tokens))})" if self.tokens else ""
        counts = ", ".join(f"{count:,} of weight {weight:g}" for weight, count in self.counts.items())
        total = f"{format_count(len(self.tokens), 'token')}, {self.trained:,} trained{share}"
        return f"{total}: {counts}" if counts else total

    @property
    def token_types(self) -> list[str]:
        """The type of the segment in which each token starts."""
        types = ["other"] * len(self.tokens)
        for segment in self.segments:
            types[segment.first_token : segment.end_token] = [segment.type] * (segment.end_token - segment.first_token)
        return types


def preview_rows(conversation: Conversation, encoder: RowEncoder) -> list[PreviewRow]:
    """Preview one conversation: as one row, or several if it is split.

    Raises:
        RowError: The row cannot be rendered.
        UserError: The loss scale breaks its contract.
    """
    [row] = encoder.weigh([conversation])
    if isinstance(row, RowError):
        raise row
    length, max_length = len(row.input_ids), encoder.options.max_length
    lengths = f"{length} tokens, max_length is {max_length}"
    parts = encoder.cut(length)
    dropped = None if parts else f"{TOO_LONG}: {lengths}"
    notes = [f"label: {conversation.facts['label']}"] if "label" in conversation.facts else []
    if parts and length > max_length:
        notes.append(f"{encoder.too_long}: {lengths}")
    if row.rendered.shortened:
        messages = ", ".join(str(index + 1) for index in row.rendered.shortened)
        notes.append(f"the chat template leaves out part of message {messages}")
    if unread := row.rendered.unread:
        hint = f" ({TOOLS_HINT})" if {"tools", "tool_calls"} & {*unread} else ""
        notes.append(f"the chat template does not read {', '.join(f'`{name}`' for name in unread)}{hint}")
    tokens = _token_texts(row, encoder.tokenizer)
    weights = [float(f"{weight:.6g}") for weight in row.weights]
    return [
        PreviewRow(
            str(conversation.origin),
            row.input_ids[part].tolist(),
            tokens[part],
            weights[part],
            _segments(row, part),
            dropped if dropped or encoder.is_used(row.weights[part]) else UNTRAINED,
            "; ".join(notes),
        )
        for part in parts or [slice(0, length)]
    ]


def _token_texts(row: WeighedRow, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    text, starts = row.rendered.text, row.starts
    bounds = np.maximum.accumulate([*starts, len(text)])
    bounds[0] = 0  # text without a token is shown with the token before it
    texts = [text[start:end] for start, end in pairwise(np.minimum(bounds, len(text)))]
    special = set(tokenizer.all_special_ids)
    for place in range(len(texts) - 1, -1, -1):
        if int(row.input_ids[place]) in special:
            texts[place] = texts[place] or str(tokenizer.convert_ids_to_tokens(int(row.input_ids[place])))
        elif place + 1 < len(texts) and starts[place] == starts[place + 1]:
            texts[place], texts[place + 1] = texts[place + 1], ""
    return texts


def _segments(row: WeighedRow, part: slice) -> list[PreviewSegment]:
    """The segments of a row, cut to a part of its tokens."""
    text, length = row.rendered.text, len(row.input_ids)
    first = int(row.starts[part.start]) if part.start else 0
    last = int(row.starts[part.stop]) if part.stop < length else len(text) + 1
    segments = []
    for segment in row.rendered.segments:
        start, end = max(segment.start, first), min(segment.end, last)
        if start < end or (segment.start == segment.end and first <= start < last):
            begins = np.searchsorted(row.starts, [start, end], side="left") - part.start
            from_token, to_token = np.clip(begins, 0, part.stop - part.start).tolist()
            last_round, role = segment.is_last_round, segment.role
            kind = segment.type.value
            segments.append(PreviewSegment(kind, text[start:end], from_token, to_token, last_round, role))
    return segments
