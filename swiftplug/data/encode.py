"""From a raw row to training examples: raw row -> conversation -> rendered text -> tokens -> weights -> examples.

`RowEncoder.encode_rows` calls each step in order. Unusable rows are counted with a reason.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from swiftplug.data.read.report import SplitReport, UnreadKeys
from swiftplug.data.read.tasks import SAME_ANSWERS, to_conversations, with_answer_of
from swiftplug.data.tokens import Tokens, check_offsets, tokenize
from swiftplug.data.weights import lay_weights, not_binary, scale_name, token_weights
from swiftplug.errors import UserError
from swiftplug.plugin import ContextType, LossScale, Rows, Task
from swiftplug.plugin.loss import IGNORED_LABEL
from swiftplug.plugin.tools_format import ToolsFormat

TOO_LONG = "longer than max_length"
UNTRAINED = "no token to train on"
ALONE = RowError("no other answer to compare with", "no other row that is read together with it can be used")

# How much text is tokenized at once. A character takes some hundred bytes while it is, so this bounds the memory.
BATCH_CHARACTERS = 2_000_000

INTEGERS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    {"input_ids": INTEGERS, "labels": INTEGERS, "loss_scale": pa.list_(pa.float32()), "length": pa.int32()}
)
SPLITTABLE = (Rows.TEXT, Rows.ANSWERS)  # the rows that may become several examples

SECOND = "second_"  # the columns of the second conversation of a row
_SECOND_COLUMNS = {f"{SECOND}input_ids": INTEGERS, f"{SECOND}labels": INTEGERS}
TASK_COLUMNS = {
    Rows.PAIRS: {**_SECOND_COLUMNS, "margin": pa.float32()},
    Rows.LABELLED: {"label": pa.string(), "origin": pa.string()},
    Rows.RATED: {**_SECOND_COLUMNS, "rating": pa.bool_()},
}
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
        labels: `(N,)` what the model is to give where the weight is not 0; None: the token itself.
    """

    rendered: Rendered
    input_ids: np.ndarray
    starts: np.ndarray
    weights: np.ndarray
    labels: np.ndarray | None = None


class ReadRow(NamedTuple):
    """A row, before it is cut into the examples that are stored.

    Attributes:
        conversations: What was read of it.
        examples: The conversations of each of its examples, as tokens or as the error that it is left out for.
    """

    conversations: tuple[Conversation, ...]
    examples: list[list[WeighedRow | RowError]]


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
        if self.options.too_long == "split" and self.task.rows not in SPLITTABLE:
            raise UserError(
                f"data.too_long: {type(self.task).__name__} takes each row whole; expected drop or truncate"
            )
        self.renderer = ChatRenderer(self.tokenizer, self.tools_format)
        self.rated = self.task.rows is Rows.RATED
        self.too_long = self.options.too_long or ("split" if self.task.rows is Rows.TEXT else "drop")
        further = TASK_COLUMNS.get(self.task.rows, {}) | (GENERATION_COLUMNS if self.generation else {})
        self.schema = pa.schema([*SCHEMA, *pa.schema(further)])

    def encode_rows(self, rows: Sequence[RawRow]) -> EncodedRows:
        """Encode raw rows: their examples, with the columns of `schema`, and the counts."""
        report = SplitReport(rows=len(rows))
        read = []
        with without_collection():
            for row in rows:
                with report.dropping(row.origin):
                    read.append(self.read(row, report.unread))
            examples = _columnar(self.encode(read, report), self.schema)
        _count_tokens(examples, self.task, report)
        return examples, report

    def read(self, row: RawRow, unread: UnreadKeys) -> tuple[Conversation, ...]:
        """The conversations of a raw row; what nothing reads of it is counted. Raises a RowError if it has none."""
        conversations = to_conversations(row.row, row.origin, self.task.rows, self.options.columns)
        if self.task.rows is not Rows.PROMPTS:  # scorers get all columns
            unread.count_row(conversations[0].columns)
        return conversations

    def encode(
        self, rows: Sequence[tuple[Conversation, ...]], report: SplitReport, *, alone: bool = False
    ) -> list[Example]:
        """Encode the conversations of rows, and count in `report` which are left out, cut or shortened.

        A row is used with all its conversations or left out. Unless answers are read `alone`, the second conversation
        of a rated answer has the answer before it, that is the answer of the usable row before, among the rows of this
        call. (Before the first comes the last; the rejected answers of pairs come after all others; answers to the same
        prompt are passed over if there are others.) `prepare_data` calls it with about 256 rows, in the dataset's
        order, so that it depends on nothing but the dataset and the options that make its rows usable.
        """
        examples = []
        with_others = self.rated and not alone
        for row in self._with_other_answers(rows, report) if with_others else self._weighed(rows):
            with report.dropping(row.conversations[0].origin):
                examples += self._examples(row, report)
        return examples

    def weigh(self, conversations: Sequence[Conversation]) -> list[WeighedRow | RowError]:
        """Render, tokenize and weigh conversations; a row that cannot be rendered is replaced by its error.

        Args:
            conversations: All chats or all plain texts.

        Raises:
            UserError: The loss scale breaks its contract; the message names the row.
        """
        if self.task.rows is Rows.PROMPTS:
            return [self._weigh_prompt(conversation) for conversation in conversations]
        if self.task.rows is Rows.STEPS:
            return [self._weigh_steps(conversation) for conversation in conversations]
        texts = [conversation.text for conversation in conversations if conversation.text is not None]
        rendered: list[Rendered | RowError] = [_render_text(text) for text in texts]
        if not texts:
            rendered = self.renderer.render_all(conversations, whole=self.task.rows in (Rows.TEXT, Rows.LABELLED))
        written = [each.text for each in rendered if not isinstance(each, RowError)]
        ends = self.task.rows is not Rows.LABELLED  # a classifier reads a text, and does not learn where it ends
        tokens = iter(tokenize(self.tokenizer, written, plain=bool(texts), ends=ends))
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

    def is_used(self, weights: np.ndarray) -> bool:
        """Whether an example with these weights can be used: it has a token to train on, if the task trains tokens."""
        is_read_whole = self.task.rows in (Rows.LABELLED, Rows.PROMPTS) or self.task.head == "sequence"
        # The first token of an example has nothing before it that could predict it.
        return is_read_whole or bool(weights[1:].any())

    def parts(self, example: Sequence[WeighedRow], report: SplitReport) -> list[slice]:
        """The parts of an example that are examples of their own; raises a RowError if there are none."""
        length, max_length = max(len(row.input_ids) for row in example), self.options.max_length
        lengths = f"{length} tokens, max_length is {max_length}" if length > max_length else ""
        parts = self.cut(length)
        if not parts:
            report.shortest_too_long = min(length, report.shortest_too_long or length)
            raise RowError(TOO_LONG, lengths)
        parts = [part for part in parts if all(self.is_used(row.weights[part]) for row in example)]
        if not parts:
            raise RowError(UNTRAINED, lengths)
        first, *seconds = (row.input_ids[parts[0]] for row in example)
        if self.task.rows is Rows.PAIRS and any(np.array_equal(first, second) for second in seconds):
            raise RowError(SAME_ANSWERS, lengths)
        return parts

    def _weigh(self, conversation: Conversation, rendered: Rendered, tokens: Tokens) -> WeighedRow:
        if self.task.rows is Rows.LABELLED:
            weights = np.zeros(len(tokens.input_ids), np.float32)
            return WeighedRow(rendered, tokens.input_ids, tokens.starts, weights)
        try:
            spans = lay_weights(rendered, self.loss_scale, conversation.messages)
            weights = token_weights(tokens.starts, spans)
            if self.task.weights == "binary" and (found := np.flatnonzero((weights != 0) & (weights != 1))).size:
                own = any("loss_scale" in message for message in conversation.messages)
                given = f"{scale_name(self.loss_scale)}{' and a `loss_scale` of the row' if own else ''}"
                span = next(span for span in spans if span.end > tokens.starts[found[0]])
                raise not_binary(span, rendered.text, given, self.task)
        except UserError as error:
            raise UserError(f"{conversation.origin}: {error}") from None
        return WeighedRow(rendered, tokens.input_ids, tokens.starts, weights)

    def _weigh_prompt(self, conversation: Conversation) -> WeighedRow | RowError:
        """A prompt with its generation prompt, of which nothing trains."""
        try:
            text = self.renderer.prompt_of(conversation)
        except RowError as error:
            return error
        [tokens] = tokenize(self.tokenizer, [text], plain=False)
        rendered = Rendered(
            text, [Segment(0, len(text), ContextType.OTHER, True)], [], self.renderer.unread(conversation)
        )
        return WeighedRow(rendered, tokens.input_ids, tokens.starts, np.zeros(len(tokens.input_ids), np.float32))

    def _weigh_steps(self, conversation: Conversation) -> WeighedRow | RowError:
        """A prompt and its steps, each with the separator behind it, whose last token has the label of the step.

        Each of these texts is tokenized alone, as a scorer does, who must know where a step ends.
        """
        separator, labels = self.task.step_separator, []
        try:
            texts = [self.renderer.prompt_of(conversation)]
        except RowError as error:
            return error
        for number, (text, _) in enumerate(conversation.facts["steps"], 1):
            if separator in text:
                return RowError("a step contains the separator of steps", f"step {number} has {separator!r}")
            texts += [text, separator]
        tokens = tokenize(self.tokenizer, texts, plain=False)
        segments, start = [], 0
        for place, text in enumerate(texts):
            kind = ContextType.OTHER if place == 0 else ContextType.RESPONSE if place % 2 else ContextType.SUFFIX
            segments.append(Segment(start, start + len(text), kind, True, role="assistant" if place else ""))
            labels.append(np.full(len(tokens[place].input_ids), IGNORED_LABEL, np.int32))
            start += len(text)
        for (_, is_right), each in zip(conversation.facts["steps"], labels[2::2], strict=True):
            if not each.size:
                raise UserError(
                    f"task.step_separator: the tokenizer makes no token of {separator!r}, so there is none to put a "
                    "step's label at"
                )
            each[-1] = is_right
        starts = [each.starts + segment.start for each, segment in zip(tokens, segments, strict=True)]
        targets = np.concatenate(labels)
        return WeighedRow(
            Rendered("".join(texts), segments, [], self.renderer.unread(conversation)),
            np.concatenate([each.input_ids for each in tokens]),
            np.concatenate(starts),
            (targets != IGNORED_LABEL).astype(np.float32),
            targets,
        )

    def _weighed(self, rows: Sequence[tuple[Conversation, ...]]) -> Iterator[ReadRow]:
        for batch in _batches(rows):
            weighed = iter(self.weigh([conversation for conversations in batch for conversation in conversations]))
            for conversations in batch:
                own = [*islice(weighed, len(conversations))]
                yield ReadRow(conversations, [[each] for each in own] if self.rated else [own])

    def _with_other_answers(self, rows: Sequence[tuple[Conversation, ...]], report: SplitReport) -> Iterator[ReadRow]:
        """The usable ones of rated rows, with the second conversation of each example.

        It is cut to `max_length` whatever `too_long` says, for the length of another row's answer leaves no row out.
        """
        usable = []
        for row in self._weighed(rows):
            with report.dropping(row.conversations[0].origin):
                for example in row.examples:
                    self.parts(without_errors(example), report)
                usable.append(row)
        rated = [row.conversations[place] for place in (0, 1) for row in usable if place < len(row.conversations)]
        mixed = [with_answer_of(each, _other(rated, place)) for place, each in enumerate(rated)] if rated[1:] else []
        seconds = dict(zip(map(id, rated), self.weigh(mixed) or [ALONE], strict=False))
        for row in usable:
            for conversation, example in zip(row.conversations, row.examples, strict=True):
                example.append(_first_tokens(seconds[id(conversation)], self.options.max_length))
            yield row

    def _examples(self, row: ReadRow, report: SplitReport) -> list[Example]:
        """The examples of a row; raises a RowError if it cannot be used."""
        weighed = [without_errors(example) for example in row.examples]
        examples = []
        for conversation, (first, *seconds) in zip(row.conversations, weighed, strict=False):
            for part in self.parts([first, *seconds], report):
                columns = _columns(first, part) | conversation.facts
                for second in seconds:
                    columns |= {f"{SECOND}{name}": values for name, values in _columns(second, part).items()}
                    columns["length"] = max(columns["length"], columns[f"{SECOND}length"])
                examples.append(columns)
        conversation, *others = row.conversations
        if self.generation:
            # The prompt and the reference are the whole row's, so a row that was split is generated from only once.
            for example in examples[1:]:
                example |= _NO_GENERATION
            examples[0] |= self._for_generation(conversation, weighed[0][0].rendered)
        report.kept += 1
        too_long = any(len(each.input_ids) > self.options.max_length for example in weighed for each in example)
        report.shortened += any(each.rendered.shortened for example in weighed for each in example)
        unread = dict.fromkeys(key for example in weighed for each in example for key in each.rendered.unread)
        answers = [message for each in others for message in each.messages[each.answer_start :]]
        report.unread.count_rendered(unread, conversation.messages + answers)
        report.truncated += self.too_long == "truncate" and too_long
        report.split += self.too_long == "split" and too_long
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


@contextmanager
def without_collection() -> Iterator[None]:
    """No garbage collection, which would search through the many small objects of a chunk, none of them in a cycle."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _render_text(text: str) -> Rendered:
    """A plain text as one response. Its suffix is the end-of-text token, which stands after the last character."""
    length = len(text)
    response = Segment(0, length, ContextType.RESPONSE, True)
    return Rendered(text, [response, Segment(length, length + 1, ContextType.SUFFIX, True)], [])


def _columns(row: WeighedRow, part: slice) -> Example:
    """A part of a row as the columns of an example."""
    input_ids, weights = row.input_ids[part], row.weights[part]
    labels = np.where(weights == 0, np.int32(IGNORED_LABEL), input_ids if row.labels is None else row.labels[part])
    return {"input_ids": input_ids, "labels": labels, "loss_scale": weights, "length": len(input_ids)}


def without_errors(example: Sequence[WeighedRow | RowError]) -> list[WeighedRow]:
    """The conversations of an example; raises the RowError of one that cannot be used."""
    weighed = []
    for row in example:
        if isinstance(row, RowError):
            raise row
        weighed.append(row)
    return weighed


def _first_tokens(row: WeighedRow | RowError, length: int) -> WeighedRow | RowError:
    if isinstance(row, RowError):
        return row
    return WeighedRow(row.rendered, row.input_ids[:length], row.starts[:length], row.weights[:length])


def _other(rated: Sequence[Conversation], place: int) -> Conversation:
    """The conversation whose answer is given to a prompt that is not its own; see `RowEncoder.encode`."""

    def prompt(conversation: Conversation) -> list[dict[str, Any]]:
        return conversation.messages[: conversation.answer_start]

    before, own = [*rated[place + 1 :], *rated[:place]][::-1], prompt(rated[place])
    return next((each for each in before if prompt(each) != own), before[0])


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


def _columnar(examples: Sequence[Example], schema: pa.Schema) -> pa.RecordBatch:
    """Examples as columns; lists are joined by NumPy, as Arrow's `from_pylist` would convert each number by itself."""
    columns = []
    for field in schema:
        values = [example[field.name] for example in examples]
        if pa.types.is_list(field.type):
            offsets = np.fromiter(accumulate(map(len, values), initial=0), np.int32, len(values) + 1)
            joined = pa.array(np.concatenate([np.empty(0, bool), *values]), field.type.value_type)
            columns.append(pa.ListArray.from_arrays(pa.array(offsets), joined))
        else:
            columns.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _count_tokens(examples: pa.RecordBatch, task: Task, report: SplitReport) -> None:
    weights = examples["loss_scale"].flatten().to_numpy()
    lengths = examples["length"].to_numpy()
    report.examples = len(lengths)
    report.longest = int(lengths.max(initial=0))
    if task.rows is Rows.RATED:
        report.good = examples["rating"].true_count
        report.bad = len(lengths) - report.good
    report.weighted = bool(((weights != 0) & (weights != 1)).any())
    for prefix in ("", SECOND) if task.rows is Rows.PAIRS else ("",):
        labels = examples[f"{prefix}labels"]
        trained = labels.flatten().to_numpy() != IGNORED_LABEL
        report.tokens += len(trained)
        if task.head == "language":  # other heads learn what a row or a step is labelled with
            trained[labels.offsets.to_numpy()[:-1]] = False  # nothing predicts a first token
            report.trained_tokens += int(np.count_nonzero(trained))
