"""From text to tokens, with the place in the text at which each token starts."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

from swiftplug.errors import UserError


class Tokens(NamedTuple):
    """The tokens of several texts, one after another.

    Attributes:
        input_ids: `(N,)` int32 token ids of all texts.
        starts: `(N,)` int64, the position of each token's first character in its text.
        ends: Behind the last token of each text.
    """

    input_ids: np.ndarray
    starts: np.ndarray
    ends: list[int]


def check_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that does not know which characters a token stands for."""
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__} has no offsets, so weights cannot be carried to its tokens; "
            "expected a fast tokenizer (tokenizer.json)"
        )


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], plain: Sequence[bool]) -> Tokens:
    """Tokenize texts, all of one sort at once.

    Args:
        tokenizer: A fast tokenizer.
        texts: The texts.
        plain: For each, whether it is plain text: it gets the tokenizer's special tokens and the end-of-text token.
            A text that a chat template wrote has all its special tokens in it.
    """
    encodings: dict[int, Any] = {}
    for special_tokens in (False, True):
        places = [place for place, is_plain in enumerate(plain) if is_plain is special_tokens]
        if places:
            with _untrimmed_offsets(tokenizer):
                encoded = tokenizer(
                    [texts[place] for place in places],
                    add_special_tokens=special_tokens,
                    return_attention_mask=False,
                    return_token_type_ids=False,
                    verbose=False,  # no warning of rows longer than the model takes: `max_length` is applied later
                )
            encodings |= zip(places, encoded.encodings or [], strict=True)
    input_ids: list[int] = []
    starts: list[int] = []
    ends = []
    eos = tokenizer.eos_token_id
    for place, text in enumerate(texts):
        input_ids += encodings[place].ids
        starts += [start for start, _ in encodings[place].offsets]
        if plain[place] and eos is not None and encodings[place].ids[-1:] != [eos]:
            input_ids.append(eos)
            starts.append(len(text))
        ends.append(len(input_ids))
    return Tokens(np.array(input_ids, dtype=np.int32), np.array(starts, dtype=np.int64), ends)


@contextmanager
def _untrimmed_offsets(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Let a byte-level tokenizer count a token's white space to the token, as it is in the ids.

    Such tokenizers (GPT-2's, RoBERTa's) may trim white space from offsets in a post-processing step that changes
    nothing else; then the first character of ` word` would be the `w`.
    """
    backend: Any = tokenizer.backend_tokenizer
    processor = backend.post_processor
    state = processor.__getstate__() if processor is not None else "{}"
    untrimmed = json.loads(
        state, object_hook=lambda part: {name: name != "trim_offsets" and value for name, value in part.items()}
    )
    if untrimmed != json.loads(state):
        whole = json.loads(Tokenizer(models.BPE()).to_str())  # a processor is read from JSON only within a tokenizer
        whole["post_processor"] = untrimmed
        backend.post_processor = Tokenizer.from_str(json.dumps(whole)).post_processor
    try:
        yield
    finally:
        backend.post_processor = processor
