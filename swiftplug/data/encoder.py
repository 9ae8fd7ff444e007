"""Raw rows in, a batch of examples and its counts out: the work that is done in parallel."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from swiftplug.data.encode import EncodedBatch, TooLong, encode_batch
from swiftplug.data.read.conversation import Conversation, RawRow, RowError
from swiftplug.data.read.report import SplitReport
from swiftplug.data.read.rows import to_conversation
from swiftplug.plugin.loss_scale import LossScale
from swiftplug.plugin.tools_format import ToolsFormat

CHARACTERS = 2_000_000  # tokenized at once; while it is, a character of text takes some hundred bytes
INTEGERS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    {"input_ids": INTEGERS, "labels": INTEGERS, "loss_scale": pa.list_(pa.float32()), "length": pa.int32()}
)
GENERATION = [pa.field("prompt_ids", INTEGERS), pa.field("reference", pa.string())]


class EncodedChunk(NamedTuple):
    """What became of some rows.

    Attributes:
        examples: Batches with the columns of `SCHEMA`, and to generate from also those of `GENERATION`.
        report: The counts.
    """

    examples: list[pa.RecordBatch]
    report: SplitReport


@dataclass(frozen=True)
class RowEncoder:
    """Makes examples of raw rows; the attributes are those of `encode_batch` and `to_conversation`."""

    tokenizer: PreTrainedTokenizerBase
    tools_format: ToolsFormat
    loss_scale: LossScale
    task: Literal["pt", "sft"]
    max_length: int
    too_long: TooLong
    columns: dict[str, str]
    generation: bool

    def __call__(self, rows: Sequence[RawRow]) -> EncodedChunk:
        """Encode some rows.

        Raises:
            UserError: The loss scale breaks its contract.
        """
        report = SplitReport(rows=len(rows))
        conversations: list[Conversation] = []
        for row, origin in rows:
            try:
                conversations.append(to_conversation(row, origin, self.task, self.columns))
            except RowError as error:
                report.drop(error.reason, _example(str(origin), error.detail))
        chunk = EncodedChunk([], report)
        for some in _batches(conversations):
            batch = encode_batch(
                some,
                self.tokenizer,
                self.tools_format,
                self.loss_scale,
                self.task,
                self.max_length,
                self.too_long,
                self.generation,
            )
            examples = self._table(batch.examples)
            report.add(self._counted(batch, examples))
            chunk.examples.append(examples)
        return chunk

    def _counted(self, batch: EncodedBatch, examples: pa.RecordBatch) -> SplitReport:
        report = SplitReport()
        for drop in batch.drops:
            report.drop(drop.reason, _example(str(drop.origin), drop.detail))
        report.kept = len(set(batch.rows))
        report.examples = len(batch.examples)
        report.truncated = len(batch.cut) if self.too_long == "truncate" else 0
        report.split = len(batch.cut) if self.too_long == "split" else 0
        report.shortened = len(batch.shortened)
        report.shortest_too_long = min((drop.length for drop in batch.drops if drop.length is not None), default=None)
        weights = examples["loss_scale"].values.to_numpy()
        first = np.zeros(len(weights), dtype=bool)
        first[examples["loss_scale"].offsets.to_numpy()[:-1]] = True
        report.tokens = len(weights)
        report.trained_tokens = int(np.count_nonzero((weights != 0) & ~first))  # nothing predicts a first token
        report.longest = max((example["length"] for example in batch.examples), default=0)
        report.weighted = bool(((weights != 0) & (weights != 1)).any())
        return report

    def _table(self, examples: list[dict[str, Any]]) -> pa.RecordBatch:
        schema = pa.schema([*SCHEMA, *GENERATION]) if self.generation else SCHEMA
        columns = [
            _lists([example[field.name] for example in examples], field.type)
            if pa.types.is_list(field.type)
            else pa.array([example[field.name] for example in examples], field.type)
            for field in schema
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)


def _batches(conversations: Sequence[Conversation]) -> Iterator[list[Conversation]]:
    """Batches that are not too long in characters, one row at least."""
    batch: list[Conversation] = []
    characters = 0
    for conversation in conversations:
        length = len(conversation.text or "") + sum(len(message["content"]) for message in conversation.messages)
        if batch and characters + length > CHARACTERS:
            yield batch
            batch, characters = [], 0
        batch.append(conversation)
        characters += length
    if batch:
        yield batch


def _lists(arrays: list[np.ndarray], kind: pa.ListType) -> pa.ListArray:
    """A column of lists, made at once of their arrays."""
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays], dtype=np.int64)])
    values = np.concatenate(arrays) if arrays else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind.value_type))


def _example(place: str, detail: str) -> str:
    return f"{place} ({detail})" if detail else place
