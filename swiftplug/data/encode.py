"""From conversations to examples: token ids, labels and weights. What cannot be used is counted, never lost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from swiftplug.data.conversation import Conversation, Origin
from swiftplug.data.messages import RowError
from swiftplug.data.render import ChatRenderer
from swiftplug.data.segments import TEMPLATE_TEXT, Rendered, Segment
from swiftplug.data.tokenizer import check_offsets, untrimmed_offsets
from swiftplug.data.weights import lay_weights, token_weights
from swiftplug.errors import UserError
from swiftplug.plugin.loss_scale import ContextType, LossScale
from swiftplug.plugin.tools_format import ToolsFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
TOO_LONG = "longer than max_length"
UNTRAINED = "no token to train on"

TooLong = Literal["drop", "truncate", "split"]
Example = dict[str, Any]


class Drop(NamedTuple):
    """A row that was left out.

    Attributes:
        origin: Where it was read.
        reason: The reason, the same words for all rows of one sort.
        detail: What is particular about this row, or an empty text.
        length: Its tokens, where it was left out for being too long.
    """

    origin: Origin
    reason: str
    detail: str
    length: int | None = None


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
    cut: list[Origin]
    shortened: list[Origin]


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
    check_offsets(tokenizer)
    renderer = ChatRenderer(tokenizer, tools_format)
    batch = EncodedBatch([], [], [], [], [])
    rendered: list[tuple[int, Rendered]] = []
    for row, conversation in enumerate(conversations):
        try:
            rendered.append((row, _render(conversation, renderer, task)))
        except RowError as error:
            batch.drops.append(Drop(conversation.origin, error.reason, error.detail))
    if not rendered:
        return batch
    starts_of = _tokenize([(whole.text, conversations[row].text is not None) for row, whole in rendered], tokenizer)
    for (row, whole), (input_ids, starts) in zip(rendered, starts_of, strict=True):
        conversation = conversations[row]
        try:
            spans = lay_weights(whole, loss_scale, conversation.messages)
        except UserError as error:
            raise UserError(f"{conversation.origin}: {error}") from None
        example = _example(input_ids, token_weights(starts, spans))
        cut = _cut(example, max_length, too_long)
        kept = [part for part in cut if (part["labels"][1:] != IGNORED).any()]
        if not kept:
            reason = UNTRAINED if cut else TOO_LONG
            detail = f"{example['length']} tokens, max_length is {max_length}" if example["length"] > max_length else ""
            batch.drops.append(Drop(conversation.origin, reason, detail, None if cut else example["length"]))
            continue
        if example["length"] > max_length:
            batch.cut.append(conversation.origin)
        if whole.dropped:
            batch.shortened.append(conversation.origin)
        if generation:
            kept[0] |= _for_generation(conversation, renderer, tokenizer)
        batch.examples.extend(kept)
        batch.rows.extend([row] * len(kept))
    return batch


def _render(conversation: Conversation, renderer: ChatRenderer, task: str) -> Rendered:
    if conversation.text is None:
        return renderer.plain(conversation) if task == "pt" else renderer.render(conversation)
    length = len(conversation.text)
    response = Segment(0, length, ContextType.RESPONSE, True, "", TEMPLATE_TEXT)
    end_of_text = Segment(length, length + 1, ContextType.SUFFIX, True, "", TEMPLATE_TEXT)
    return Rendered(conversation.text, [response, end_of_text], [])


def _tokenize(
    texts: Sequence[tuple[str, bool]], tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]]:
    """The token ids of texts, and the position of each token's first character.

    Args:
        texts: Each with whether it is plain: it gets the tokenizer's special tokens, and the end-of-text token. The
            text of a chat template has all its special tokens in it.
        tokenizer: A fast tokenizer.
    """
    tokenized: dict[int, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}
    for plain in (False, True):
        places = [place for place, (_, is_plain) in enumerate(texts) if is_plain is plain]
        if not places:
            continue
        with untrimmed_offsets(tokenizer):
            encodings = tokenizer(
                [texts[place][0] for place in places],
                add_special_tokens=plain,
                return_attention_mask=False,
                return_token_type_ids=False,
            ).encodings
        assert encodings is not None  # it is a fast tokenizer
        for place, encoding in zip(places, encodings, strict=True):
            ids, starts = encoding.ids, [start for start, _ in encoding.offsets]
            if plain and tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
                ids.append(tokenizer.eos_token_id)
                starts.append(len(texts[place][0]))
            tokenized[place] = np.array(ids, dtype=np.int32), np.array(starts, dtype=np.int64)
    return [tokenized[place] for place in range(len(texts))]


def _example(input_ids: "np.ndarray[Any, Any]", weights: "np.ndarray[Any, Any]") -> Example:
    return {
        "input_ids": input_ids,
        "labels": np.where(weights == 0, np.int32(IGNORED), input_ids),
        "loss_scale": weights,
        "length": len(input_ids),
    }


def _cut(example: Example, max_length: int, too_long: TooLong) -> list[Example]:
    """The example as it is, or what `too_long` makes of it."""
    length = example["length"]
    if length <= max_length:
        return [example]
    if too_long == "drop":
        return []
    ends = range(0, length if too_long == "split" else 1, max_length)
    return [_part(example, start, min(start + max_length, length)) for start in ends]


def _part(example: Example, start: int, end: int) -> Example:
    cut = {name: values[start:end] for name, values in example.items() if name != "length"}
    return {**cut, "length": end - start}


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
