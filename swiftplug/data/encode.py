"""From a raw row to training examples: raw row -> conversation -> rendered text -> tokens -> weights -> examples.

`RowEncoder.encode_rows` calls each step in order. Unusable rows are counted with a reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from swiftplug.config.schema import DataOptions
from swiftplug.data.chat.render import ChatRenderer
from swiftplug.data.chat.segments import Rendered, Segment
from swiftplug.data.read.conversation import Conversation, RawRow, RowError
from swiftplug.data.read.formats import to_conversation, to_pair
from swiftplug.data.read.report import SplitReport, UnreadKeys
from swiftplug.data.tokens import Tokens, check_offsets, tokenize
from swiftplug.data.weights import lay_weights, token_weights
from swiftplug.errors import UserError
from swiftplug.plugin import ContextType, LossScale, Rows, Task
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
SECOND = "second_"  # the columns of the second conversation of a row
SECOND_COLUMNS = {f"{SECOND}input_ids": INTEGERS, f"{SECOND}labels": INTEGERS}
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
        task: What the rows are for; of `Rows.TEXT` the whole text is one response.
        options: How rows are read and cut to `max_length`.
        generation: Whether to add `prompt_ids`, `opened` and `reference`, for metrics that generate.

    Raises:
        UserError: The tokenizer has no offsets.
    """

    tokenizer: PreTrainedTokenizerBase
    tools_format: ToolsFormat | None
    loss_scale: LossScale
    task: Task
    options: DataOptions
    generation: bool = False

    def __post_init__(self) -> None:
        check_offsets(self.tokenizer)
        self.renderer = ChatRenderer(self.tokenizer, self.tools_format)
        self.too_long = self.options.too_long or ("split" if self.task.rows is Rows.TEXT else "drop")
        further = SECOND_COLUMNS if self.task.rows is Rows.PAIRS else {}
        further |= GENERATION_COLUMNS if self.generation else {}
        self.schema = pa.schema([*SCHEMA, *pa.schema(further)])

    def encode_rows(self, rows: Sequence[RawRow]) -> EncodedRows:
        """Encode raw rows: their examples, with the columns of `schema`, and the counts."""
        report = SplitReport(rows=len(rows))
        read = []
        for row in rows:
            try:
                read.append(self.read(row, report.unread))
            except RowError as error:
                report.drop(row.origin, error)
        examples = pa.RecordBatch.from_pylist(self.encode(read, report), schema=self.schema)
        _count_tokens(examples, report)
        return examples, report

    def read(self, row: RawRow, unread: UnreadKeys) -> tuple[Conversation, ...]:
        """The conversations of a raw row; what nothing reads of it is counted. Raises a RowError if it has none."""
        if self.task.rows is Rows.PAIRS:
            conversations: tuple[Conversation, ...] = to_pair(row.row, row.origin, self.options.columns)
        else:
            conversations = (to_conversation(row.row, row.origin, self.task.rows, self.options.columns),)
        unread.count_row(conversations[0].columns)
        return conversations

    def encode(self, rows: Sequence[tuple[Conversation, ...]], report: SplitReport) -> list[Example]:
        """Encode the conversations of rows, and count in `report` which are left out, cut or shortened."""
        examples = []
        for batch in _batches(rows):
            weighed = iter(self.weigh([conversation for conversations in batch for conversation in conversations]))
            for conversations in batch:
                try:
                    examples += self._examples(conversations, _usable(islice(weighed, len(conversations))), report)
                except RowError as error:
                    report.drop(conversations[0].origin, error)
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
            rendered = self.renderer.render_all(conversations, whole=self.task.rows is Rows.TEXT)
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
        weights = token_weights(tokens.starts, spans)
        if self.task.weights == "binary" and (other := weights[(weights != 0) & (weights != 1)]).size:
            raise UserError(
                f"{conversation.origin}: loss_scale: found a token of weight {other[0]:g}; this task takes the weights "
                "0 and 1"
            )
        return WeighedRow(rendered, tokens.input_ids, tokens.starts, weights)

    def _examples(
        self, conversations: Sequence[Conversation], rows: Sequence[WeighedRow], report: SplitReport
    ) -> list[Example]:
        """The examples of a row; raises a RowError if there are none."""
        length, max_length = max(len(row.input_ids) for row in rows), self.options.max_length
        lengths = f"{length} tokens, max_length is {max_length}" if length > max_length else ""
        parts = self.cut(length)
        if not parts:
            report.shortest_too_long = min(length, report.shortest_too_long or length)
            raise RowError(TOO_LONG, lengths)
        examples = [
            {"length": min(part.stop, length) - part.start, **_columns(rows[0], part)}
            | {f"{SECOND}{name}": values for second in rows[1:] for name, values in _columns(second, part).items()}
            for part in parts
            # The first token of an example has nothing before it that could predict it.
            if all(row.weights[part][1:].any() for row in rows)
        ]
        if not examples:
            raise RowError(UNTRAINED, lengths)
        if self.generation:
            # The prompt and the reference are the whole row's, so a row that was split is generated from only once.
            for example in examples[1:]:
                example |= _NO_GENERATION
            examples[0] |= self._for_generation(conversations[0], rows[0].rendered)
        report.kept += 1
        report.shortened += any(row.rendered.shortened for row in rows)
        report.unread.count_rendered(rows[0].rendered.unread, conversations[0].messages)
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


def _columns(row: WeighedRow, part: slice) -> Example:
    """A part of a row as the columns of an example."""
    input_ids, weights = row.input_ids[part], row.weights[part]
    labels = np.where(weights == 0, np.int32(IGNORED_LABEL), input_ids)
    return {"input_ids": input_ids, "labels": labels, "loss_scale": weights}


def _usable(rows: Iterator[WeighedRow | RowError]) -> list[WeighedRow]:
    """The conversations of a row; raises the RowError of one that cannot be used."""
    usable = []
    for row in [*rows]:
        if isinstance(row, RowError):
            raise row
        usable.append(row)
    return usable


def _batches(rows: Sequence[tuple[Conversation, ...]]) -> Iterator[list[tuple[Conversation, ...]]]:
    """Batches of rows of about `BATCH_CHARACTERS` characters, all chats or all plain texts."""
    ends = accumulate(
        len(conversations[0].text or "")
        + sum(len(message["content"]) for conversation in conversations for message in conversation.messages)
        for conversations in rows
    )
    ending = zip(rows, ends, strict=True)
    for _, batch in groupby(ending, key=lambda row: (row[0][0].text is None, row[1] // BATCH_CHARACTERS)):
        yield [conversations for conversations, _ in batch]


def _count_tokens(examples: pa.RecordBatch, report: SplitReport) -> None:
    weights = examples["loss_scale"].flatten().to_numpy()
    lengths = examples["length"].to_numpy()
    report.examples = len(lengths)
    report.longest = int(lengths.max(initial=0))
    report.weighted = bool(((weights != 0) & (weights != 1)).any())
    for prefix in ("", SECOND) if f"{SECOND}labels" in examples.schema.names else ("",):
        labels = examples[f"{prefix}labels"]
        trained = labels.flatten().to_numpy() != IGNORED_LABEL
        report.tokens += len(trained)
        trained[labels.offsets.to_numpy()[:-1]] = False  # nothing predicts a first token
        report.trained_tokens += int(np.count_nonzero(trained))
