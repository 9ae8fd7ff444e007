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


class WeighedRow(NamedTuple):
    """A row as tokens, before its length is judged.

    Attributes:
        place: Which of the conversations it is.
        rendered: Its text and segments.
        input_ids: `(N,)` int32 token ids.
        starts: `(N,)` the position of each token's first character in the text.
        weights: `(N,)` float32 weights.
    """

    place: int
    rendered: Rendered
    input_ids: "np.ndarray[Any, Any]"
    starts: "np.ndarray[Any, Any]"
    weights: "np.ndarray[Any, Any]"


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
        kept = [example for example in examples if (example["labels"][1:] != IGNORED).any()]
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


def weigh_rows(
    conversations: Sequence[Conversation],
    renderer: ChatRenderer,
    tokenizer: "PreTrainedTokenizerBase",
    loss_scale: LossScale,
    task: str,
) -> tuple[list[WeighedRow], list[Drop]]:
    """Render, tokenize and weigh rows, whatever their length.

    Args:
        conversations: The rows.
        renderer: Renders with the tokenizer's chat template.
        tokenizer: A fast tokenizer.
        loss_scale: Weighs the text.
        task: `sft` or `pt`.

    Returns:
        The rows that could be rendered, and those that could not.

    Raises:
        UserError: If the tokenizer has no offsets, or the loss scale breaks its contract (with the row's place).
    """
    check_offsets(tokenizer)
    drops: list[Drop] = []
    rendered: list[tuple[int, Rendered]] = []
    for index, conversation in enumerate(conversations):
        try:
            rendered.append((index, _render(conversation, renderer, task)))
        except RowError as error:
            drops.append(Drop(conversation.origin, error.reason, error.detail))
    tokenized = _tokenize([(whole.text, conversations[index].text is not None) for index, whole in rendered], tokenizer)
    weighed = []
    for (index, whole), (input_ids, starts) in zip(rendered, tokenized, strict=True):
        conversation = conversations[index]
        try:
            spans = lay_weights(whole, loss_scale, conversation.messages)
        except UserError as error:
            raise UserError(f"{conversation.origin}: {error}") from None
        weighed.append(WeighedRow(index, whole, input_ids, starts, token_weights(starts, spans)))
    return weighed, drops


def cut_tokens(length: int, max_length: int, too_long: TooLong) -> list[slice]:
    """The examples that a row of so many tokens is made into: itself, or what `too_long` makes of it."""
    if length <= max_length:
        return [slice(0, length)]
    if too_long == "drop":
        return []
    ends = range(0, length if too_long == "split" else 1, max_length)
    return [slice(start, min(start + max_length, length)) for start in ends]


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


def _example(row: WeighedRow, part: slice) -> Example:
    input_ids, weights = row.input_ids[part], row.weights[part]
    labels = np.where(weights == 0, np.int32(IGNORED), input_ids)
    return {"input_ids": input_ids, "labels": labels, "loss_scale": weights, "length": len(input_ids)}


def _drop(origin: Origin, length: int, max_length: int, fits: bool) -> Drop:
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
