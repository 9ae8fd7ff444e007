"""From a raw row to training examples: raw row -> conversation -> rendered text -> tokens -> weights -> examples.

`RowEncoder.encode_rows` calls each step in order. Unusable rows are counted with a reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from swiftplug.config.schema import DataOptions
from swiftplug.data.chat.render import ChatRenderer
from swiftplug.data.chat.segments import Rendered, Segment
from swiftplug.data.read.conversation import Conversation, RawRow, RowError
from swiftplug.data.read.formats import to_conversation
from swiftplug.data.read.report import SplitReport, UnreadKeys
from swiftplug.data.tokens import Tokens, check_offsets, tokenize
from swiftplug.data.weights import lay_weights, token_weights
from swiftplug.errors import UserError
from swiftplug.plugin import ContextType, LossScale
from swiftplug.plugin.loss import IGNORED_LABEL
from swiftplug.plugin.tools_format import ToolsFormat

TOO_LONG = "longer than max_length"
UNTRAINED = "no token to train on"

# How much text is tokenized at once. A character takes some hundred bytes while it is, so this bounds the memory.
BATCH_CHARACTERS = 2_000_000

INTEGERS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    {"input_ids": INTEGERS, "labels": INTEGERS, "loss_scale": pa.list_(pa.float32()), "length": pa.int32()}
)
GENERATION_COLUMNS = {"prompt_ids": INTEGERS, "opened": pa.string(), "reference": pa.string()}
_NO_GENERATION = {"prompt_ids": [], "opened": "", "reference": ""}

Example = dict[str, Any]
EncodedRows = tuple[pa.RecordBatch, SplitReport]  # the examples made from some rows, and the counts


class WeighedRow(NamedTuple):
    """A row as tokens, before `max_length` is applied.

    Attributes:
        rendered: The row's text and segments.
        input_ids: `(N,)` int32 token ids.
        starts: `(N,)` int64, the position of each token's first character in the text.
        weights: `(N,)` float32 weights.
    """

    rendered: Rendered
    input_ids: np.ndarray
    starts: np.ndarray
    weights: np.ndarray


@dataclass
class RowEncoder:
    """Makes training examples from rows.

    Attributes:
        tokenizer: A fast tokenizer with a chat template.
        tools_format: Writes tools into the prompt; None leaves them to the chat template.
        loss_scale: Assigns weights to text.
        task: `sft` trains answers, `pt` trains everything: the whole text is one response.
        options: How rows are read and cut to `max_length`.
        generation: Whether to add `prompt_ids`, `opened` and `reference`, for metrics that generate.

    Raises:
        UserError: The tokenizer has no offsets.
    """

    tokenizer: PreTrainedTokenizerBase
    tools_format: ToolsFormat | None
    loss_scale: LossScale
    task: Literal["pt", "sft"]
    options: DataOptions
    generation: bool = False

    def __post_init__(self) -> None:
        check_offsets(self.tokenizer)
        self.renderer = ChatRenderer(self.tokenizer, self.tools_format)
        self.too_long = self.options.too_long or ("split" if self.task == "pt" else "drop")
        self.schema = pa.schema([*SCHEMA, *pa.schema(GENERATION_COLUMNS)]) if self.generation else SCHEMA

    def encode_rows(self, rows: Sequence[RawRow]) -> EncodedRows:
        """Encode raw rows: their examples, with the columns of `schema`, and the counts."""
        report = SplitReport(rows=len(rows))
        conversations = []
        for row in rows:
            try:
                conversations.append(self.read(row, report.unread))
            except RowError as error:
                report.drop(row.origin, error)
        examples = pa.RecordBatch.from_pylist(self.encode(conversations, report), schema=self.schema)
        _count_tokens(examples, report)
        return examples, report

    def read(self, row: RawRow, unread: UnreadKeys) -> Conversation:
        """The conversation of a raw row; what nothing reads of it is counted. Raises a RowError if it has none."""
        conversation = to_conversation(row.row, row.origin, self.task, self.options.columns)
        unread.count_row(conversation.columns)
        return conversation

    def encode(self, conversations: Sequence[Conversation], report: SplitReport) -> list[Example]:
        """Encode conversations, and count in `report` which are left out, cut or shortened."""
        examples = []
        for batch in _batches(conversations):
            for conversation, row in zip(batch, self.weigh(batch), strict=True):
                try:
                    if isinstance(row, RowError):
                        raise row
                    examples += self._examples(conversation, row, report)
                except RowError as error:
                    report.drop(conversation.origin, error)
        return examples

    def weigh(self, conversations: Sequence[Conversation]) -> list[WeighedRow | RowError]:
        """Render, tokenize and weigh conversations; a row that cannot be rendered is replaced by its error.

        Args:
            conversations: All chats or all plain texts.

        Raises:
            UserError: The loss scale breaks its contract; the message names the row.
        """
        texts = [conversation.text for conversation in conversations if conversation.text is not None]
        rendered: list[Rendered | RowError] = [_render_text(text) for text in texts]
        if not texts:
            rendered = self.renderer.render_all(conversations, whole=self.task == "pt")
        written = [each.text for each in rendered if not isinstance(each, RowError)]
        tokens = iter(tokenize(self.tokenizer, written, plain=bool(texts)))
        return [
            each if isinstance(each, RowError) else self._weigh(conversation, each, next(tokens))
            for conversation, each in zip(conversations, rendered, strict=True)
        ]

    def cut(self, length: int) -> list[slice]:
        """The parts that become the examples of a row of `length` tokens: all of it, or what `too_long` asks for."""
        size = self.options.max_length
        if length <= size:
            return [slice(0, length)]
        if self.too_long == "drop":
            return []
        starts = range(0, length if self.too_long == "split" else 1, size)
        return [slice(start, min(start + size, length)) for start in starts]

    def _weigh(self, conversation: Conversation, rendered: Rendered, tokens: Tokens) -> WeighedRow:
        try:
            spans = lay_weights(rendered, self.loss_scale, conversation.messages)
        except UserError as error:
            raise UserError(f"{conversation.origin}: {error}") from None
        return WeighedRow(rendered, tokens.input_ids, tokens.starts, token_weights(tokens.starts, spans))

    def _examples(self, conversation: Conversation, row: WeighedRow, report: SplitReport) -> list[Example]:
        """The examples of a row; raises a RowError if there are none."""
        length, max_length = len(row.input_ids), self.options.max_length
        lengths = f"{length} tokens, max_length is {max_length}" if length > max_length else ""
        parts = self.cut(length)
        if not parts:
            report.shortest_too_long = min(length, report.shortest_too_long or length)
            raise RowError(TOO_LONG, lengths)
        labels = np.where(row.weights == 0, np.int32(IGNORED_LABEL), row.input_ids)
        columns = {"input_ids": row.input_ids, "labels": labels, "loss_scale": row.weights}
        examples: list[Example] = [
            {name: values[part] for name, values in columns.items()} | {"length": part.stop - part.start}
            for part in parts
            # The first token of an example has nothing before it that could predict it.
            if row.weights[part][1:].any()
        ]
        if not examples:
            raise RowError(UNTRAINED, lengths)
        if self.generation:
            # The prompt and the reference are the whole row's, so a row that was split is generated from only once.
            for example in examples[1:]:
                example |= _NO_GENERATION
            examples[0] |= self._for_generation(conversation, row.rendered)
        report.kept += 1
        report.shortened += bool(row.rendered.shortened)
        report.unread.count_rendered(row.rendered.unread, conversation.messages)
        report.truncated += self.too_long == "truncate" and length > max_length
        report.split += self.too_long == "split" and length > max_length
        return examples

    def _for_generation(self, conversation: Conversation, rendered: Rendered) -> Example:
        """What a metric that generates needs; nothing if the row does not end in an answer.

        The reference is what training writes: calls, reasoning and special tokens too, without the end of the turn.
        """
        prompt = self.renderer.prompt_of_last(conversation) if conversation.messages else None
        last = len(conversation.messages) - 1
        for segment in reversed(rendered.segments):
            if prompt is not None and segment.type is ContextType.RESPONSE and segment.message_index == last:
                ids = self.tokenizer(prompt[0], add_special_tokens=False)["input_ids"]
                return {"prompt_ids": ids, "opened": prompt[1], "reference": rendered.text[segment.start : segment.end]}
        return _NO_GENERATION


def _render_text(text: str) -> Rendered:
    """A plain text as one response. Its suffix is the end-of-text token, which stands after the last character."""
    length = len(text)
    response = Segment(0, length, ContextType.RESPONSE, True)
    return Rendered(text, [response, Segment(length, length + 1, ContextType.SUFFIX, True)], [])


def _batches(conversations: Sequence[Conversation]) -> Iterator[list[Conversation]]:
    """Batches of about `BATCH_CHARACTERS` characters, all chats or all plain texts."""
    ends = accumulate(
        len(conversation.text or "") + sum(len(message["content"]) for message in conversation.messages)
        for conversation in conversations
    )
    rows = zip(conversations, ends, strict=True)
    for _, batch in groupby(rows, key=lambda row: (row[0].text is None, row[1] // BATCH_CHARACTERS)):
        yield [conversation for conversation, _ in batch]


def _count_tokens(examples: pa.RecordBatch, report: SplitReport) -> None:
    weights = examples["loss_scale"].flatten().to_numpy()
    lengths = examples["length"].to_numpy()
    predicted = np.ones(len(weights), dtype=bool)
    predicted[np.cumsum(lengths) - lengths] = False  # nothing predicts a first token
    report.examples = len(lengths)
    report.tokens = len(weights)
    report.trained_tokens = int(np.count_nonzero((weights != 0) & predicted))
    report.longest = int(lengths.max(initial=0))
    report.weighted = bool(((weights != 0) & (weights != 1)).any())
