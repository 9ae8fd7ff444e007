"""From conversations to examples of the right length. What cannot be used is counted, never lost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from swiftplug.data.chat.render import ChatRenderer
from swiftplug.data.read.conversation import Conversation, RowOrigin
from swiftplug.data.weigh import Drop, WeighedRow, weigh_rows
from swiftplug.plugin.loss import IGNORED_LABEL
from swiftplug.plugin.loss_scale import LossScale
from swiftplug.plugin.tools_format import ToolsFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_LONG = "longer than max_length"
UNTRAINED = "no token to train on"

TooLong = Literal["drop", "truncate", "split"]
Example = dict[str, Any]


class EncodedBatch(NamedTuple):
    """Examples and what was left out.

    Attributes:
        examples: `input_ids` and `labels` (int32 arrays, -100 where the weight is 0), `loss_scale` (float32 array),
            `length`; for evaluation also `prompt_ids` (int32 array) and `reference`.
        rows: For each example the index of the conversation it was made of.
        drops: The rows that were left out.
        cut: The origins of the rows that were truncated or split.
        shortened: The origins of the rows from which the chat template dropped something, earlier thinking say.
    """

    examples: list[Example]
    rows: list[int]
    drops: list[Drop]
    cut: list[RowOrigin]
    shortened: list[RowOrigin]


def encode_batch(
    conversations: Sequence[Conversation],
    tokenizer: "PreTrainedTokenizerBase",
    tools_format: ToolsFormat | None,
    loss_scale: LossScale,
    task: str,
    max_length: int,
    too_long: TooLong,
    generation: bool = False,
) -> EncodedBatch:
    """Encode rows.

    Args:
        conversations: The rows.
        tokenizer: A fast tokenizer with a chat template.
        tools_format: Writes tools into the prompt; None leaves them to the chat template.
        loss_scale: Weighs the text.
        task: `sft` trains answers, `pt` trains everything: the whole text is one response.
        max_length: The most tokens an example may have.
        too_long: What becomes of a longer row.
        generation: Whether to add `prompt_ids` and `reference`, for metrics that generate.

    Returns:
        The examples, and what was left out.

    Raises:
        UserError: If the tokenizer has no offsets, or the loss scale breaks its contract (with the row's place).
    """
    renderer = ChatRenderer(tokenizer, tools_format)
    weighed, drops = weigh_rows(conversations, renderer, tokenizer, loss_scale, task)
    batch = EncodedBatch([], [], drops, [], [])
    for row in weighed:
        conversation = conversations[row.place]
        origin, length = conversation.origin, len(row.input_ids)
        examples = [_example(row, part) for part in cut_tokens(length, max_length, too_long)]
        kept = [example for example in examples if (example["labels"][1:] != IGNORED_LABEL).any()]
        if not kept:
            batch.drops.append(_drop(origin, length, max_length, bool(examples)))
            continue
        if length > max_length:
            batch.cut.append(origin)
        if row.rendered.dropped:
            batch.shortened.append(origin)
        if generation:
            kept[0] |= _for_generation(conversation, renderer, tokenizer)
        batch.examples.extend(kept)
        batch.rows.extend([row.place] * len(kept))
    return batch


def cut_tokens(length: int, max_length: int, too_long: TooLong) -> list[slice]:
    """The examples that a row of so many tokens is made into: itself, or what `too_long` makes of it."""
    if length <= max_length:
        return [slice(0, length)]
    if too_long == "drop":
        return []
    ends = range(0, length if too_long == "split" else 1, max_length)
    return [slice(start, min(start + max_length, length)) for start in ends]


def _example(row: WeighedRow, part: slice) -> Example:
    input_ids = row.input_ids[part]
    return {
        "input_ids": input_ids,
        "labels": row.labels[part],
        "loss_scale": row.weights[part],
        "length": len(input_ids),
    }


def _drop(origin: RowOrigin, length: int, max_length: int, fits: bool) -> Drop:
    detail = f"{length} tokens, max_length is {max_length}" if length > max_length else ""
    return Drop(origin, UNTRAINED, detail) if fits else Drop(origin, TOO_LONG, detail, length)


def _for_generation(
    conversation: Conversation, renderer: ChatRenderer, tokenizer: "PreTrainedTokenizerBase"
) -> Example:
    """What a metric that generates needs of a row; empty where the row does not end in an answer."""
    prompt = renderer.prompt(conversation) if conversation.messages else None
    if prompt is None:
        return {"prompt_ids": np.zeros(0, dtype=np.int32), "reference": ""}
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    content = conversation.messages[-1].get("content") or ""
    return {"prompt_ids": np.array(ids, dtype=np.int32), "reference": content}
