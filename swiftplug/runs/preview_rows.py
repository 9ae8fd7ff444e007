"""The rows of a preview: the text and weight of each token, and the segments."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from swiftplug.data.encode import UNTRAINED, RowEncoder, WeighedRow, without_errors
from swiftplug.data.read.conversation import Conversation, RowError
from swiftplug.data.read.report import TOOLS_HINT, SplitReport
from swiftplug.formatting import format_count, format_percent
from swiftplug.plugin import Rows


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
        answer: What a task of preferences takes its answer for: `chosen`, `rejected`, `good` or `bad`; else empty.
        rejected: The rejected conversation of a pair, of which this is the chosen one.
    """

    origin: str
    input_ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    segments: list[PreviewSegment] = field(default_factory=list)
    dropped: str | None = None
    note: str = ""
    answer: str = ""
    rejected: "PreviewRow | None" = None

    @property
    def conversations(self) -> "list[PreviewRow]":
        """Itself, and the rejected conversation of a pair."""
        return [self] if self.rejected is None else [self, self.rejected]

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


def preview_rows(conversations: Sequence[Conversation], encoder: RowEncoder) -> list[PreviewRow]:
    """Preview a row, given its conversations: as one row, or several if it is split or a pair that is taken apart.

    Raises:
        RowError: The row cannot be rendered.
        UserError: The loss scale breaks its contract.
    """
    weighed = without_errors(encoder.weigh(conversations))
    texts = [_token_texts(row, encoder.tokenizer) for row in weighed]
    read = [*zip(conversations, weighed, texts, strict=True)]
    examples = [read] if encoder.task.rows is Rows.PAIRS else [[each] for each in read]
    dropped = None
    try:
        for example in examples:
            encoder.parts([row for _, row, _ in example], SplitReport())
    except RowError as error:
        dropped = str(error)
    shown = []
    for example in examples:
        length = max(len(row.input_ids) for _, row, _ in example)
        for part in encoder.cut(length) or [slice(0, length)]:
            first, *others = (_preview_part(*each, part, dropped, encoder) for each in example)
            if others:
                margin = conversations[0].facts["margin"]
                note = "; ".join(filter(None, (f"margin {margin:g}" if margin else "", first.note)))
                first = replace(first, note=note, answer="chosen", rejected=replace(others[0], answer="rejected"))
            shown.append(first)
    return shown


def _preview_part(
    conversation: Conversation,
    row: WeighedRow,
    tokens: list[str],
    part: slice,
    dropped: str | None,
    encoder: RowEncoder,
) -> PreviewRow:
    length, max_length = len(row.input_ids), encoder.options.max_length
    part = slice(part.start, min(part.stop, length))
    notes = [f"label: {conversation.facts['label']}"] if "label" in conversation.facts else []
    if steps := conversation.facts.get("steps"):
        notes.append(f"steps: {', '.join('right' if is_right else 'wrong' for _, is_right in steps)}")
    if length > max_length and encoder.too_long != "drop":
        notes.append(f"{encoder.too_long}: {length} tokens, max_length is {max_length}")
    if row.rendered.shortened:
        messages = ", ".join(str(index + 1) for index in row.rendered.shortened)
        notes.append(f"the chat template leaves out part of message {messages}")
    if unread := row.rendered.unread:
        hint = f" ({TOOLS_HINT})" if {"tools", "tool_calls"} & {*unread} else ""
        notes.append(f"the chat template does not read {', '.join(f'`{name}`' for name in unread)}{hint}")
    return PreviewRow(
        str(conversation.origin),
        row.input_ids[part].tolist(),
        tokens[part],
        [float(f"{weight:.6g}") for weight in row.weights[part]],
        _segments(row, part),
        dropped or (None if encoder.is_used(row.weights[part]) else UNTRAINED),
        "; ".join(notes),
        {None: "", True: "good", False: "bad"}[conversation.facts.get("rating")],
    )


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
