"""From conversations to weighed tokens: rendered, tokenized in one go, and each token given its weight."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from swiftplug.data.chat.render import ChatRenderer
from swiftplug.data.chat.segments import TEMPLATE_TEXT, Rendered, Segment
from swiftplug.data.read.conversation import Conversation, RowError, RowOrigin
from swiftplug.data.tokenizer import check_offsets, untrimmed_offsets
from swiftplug.data.weights import lay_weights, token_weights
from swiftplug.errors import UserError
from swiftplug.plugin.loss import IGNORED_LABEL
from swiftplug.plugin.loss_scale import ContextType, LossScale

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Drop(NamedTuple):
    """A row that was left out.

    Attributes:
        origin: Where it was read.
        reason: The reason, the same words for all rows of one sort.
        detail: What is particular about this row, or an empty text.
        length: Its tokens, where it was left out for being too long.
    """

    origin: RowOrigin
    reason: str
    detail: str
    length: int | None = None


class WeighedRow(NamedTuple):
    """A row as tokens, before its length is judged.

    Attributes:
        place: Which of the conversations it is.
        rendered: Its text and segments.
        input_ids: `(N,)` int32 token ids.
        starts: `(N,)` the position of each token's first character in the text.
        weights: `(N,)` float32 weights.
        labels: `(N,)` int32, the ids, and -100 where the weight is 0.
    """

    place: int
    rendered: Rendered
    input_ids: "np.ndarray[Any, Any]"
    starts: "np.ndarray[Any, Any]"
    weights: "np.ndarray[Any, Any]"
    labels: "np.ndarray[Any, Any]"


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
    for place, whole in enumerate(_render(conversations, renderer, task)):
        if isinstance(whole, RowError):
            drops.append(Drop(conversations[place].origin, whole.reason, whole.detail))
        else:
            rendered.append((place, whole))
    if not rendered:
        return [], drops
    tokens = _tokenize([(whole.text, conversations[place].text is not None) for place, whole in rendered], tokenizer)
    spans = []
    for place, whole in rendered:
        try:
            spans.append(lay_weights(whole, loss_scale, conversations[place].messages))
        except UserError as error:
            raise UserError(f"{conversations[place].origin}: {error}") from None
    weights = token_weights(tokens.starts, tokens.ends, spans)
    labels = np.where(weights == 0, np.int32(IGNORED_LABEL), tokens.input_ids)
    weighed = []
    begin = 0
    for (place, whole), end in zip(rendered, tokens.ends, strict=True):
        own = slice(begin, end)
        weighed.append(WeighedRow(place, whole, tokens.input_ids[own], tokens.starts[own], weights[own], labels[own]))
        begin = end
    return weighed, drops


def _render(conversations: Sequence[Conversation], renderer: ChatRenderer, task: str) -> Iterator[Rendered | RowError]:
    """The rendering of each row, or why there is none."""
    chats = [conversation for conversation in conversations if conversation.text is None]
    of_chats = iter(renderer.render_all(chats, whole=task == "pt"))
    for conversation in conversations:
        yield next(of_chats) if conversation.text is None else _plain_text(conversation.text)


def _plain_text(text: str) -> Rendered:
    """A text as one response, whose suffix is the end-of-text token."""
    length = len(text)
    response = Segment(0, length, ContextType.RESPONSE, True, "", TEMPLATE_TEXT)
    end_of_text = Segment(length, length + 1, ContextType.SUFFIX, True, "", TEMPLATE_TEXT)
    return Rendered(text, [response, end_of_text], [])


class _Tokens(NamedTuple):
    """The tokens of several texts, one after another.

    Attributes:
        input_ids: `(N,)` int32 token ids of all texts.
        starts: `(N,)` the position of each token's first character in its text.
        ends: Behind the last token of each text.
    """

    input_ids: "np.ndarray[Any, Any]"
    starts: "np.ndarray[Any, Any]"
    ends: list[int]


def _tokenize(texts: Sequence[tuple[str, bool]], tokenizer: "PreTrainedTokenizerBase") -> _Tokens:
    """Tokenize texts, all that are of one sort at once.

    Args:
        texts: Each with whether it is plain: it gets the tokenizer's special tokens, and the end-of-text token. The
            text of a chat template has all its special tokens in it.
        tokenizer: A fast tokenizer.
    """
    encodings: dict[int, Any] = {}
    for plain in (False, True):
        places = [place for place, (_, is_plain) in enumerate(texts) if is_plain is plain]
        if places:
            with untrimmed_offsets(tokenizer):
                encoded = tokenizer(
                    [texts[place][0] for place in places],
                    add_special_tokens=plain,
                    return_attention_mask=False,
                    return_token_type_ids=False,
                    verbose=False,  # rows longer than the model takes are dealt with once they are encoded
                )
            encodings |= zip(places, encoded.encodings or [], strict=True)
    input_ids: list[int] = []
    starts: list[int] = []
    ends = []
    for place, (text, plain) in enumerate(texts):
        input_ids += encodings[place].ids
        starts += [start for start, _ in encodings[place].offsets]
        if plain and tokenizer.eos_token_id is not None and encodings[place].ids[-1:] != [tokenizer.eos_token_id]:
            input_ids.append(tokenizer.eos_token_id)
            starts.append(len(text))
        ends.append(len(input_ids))
    return _Tokens(np.array(input_ids, dtype=np.int32), np.array(starts, dtype=np.int64), ends)
