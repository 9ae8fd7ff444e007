"""From text to tokens, with the position in the text where each token starts."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

from swiftplug.errors import UserError


class Tokens(NamedTuple):
    """The tokens of a text: `(N,)` int32 ids, and `(N,)` int64 positions of each token's first character."""

    input_ids: np.ndarray
    starts: np.ndarray


def check_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that does not report which characters a token stands for."""
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__} has no offsets, so weights cannot be assigned to its tokens; "
            "expected a fast tokenizer (tokenizer.json)"
        )


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], plain: bool, ends: bool = True) -> list[Tokens]:
    """Tokenize texts in one batch.

    Plain texts get the tokenizer's special tokens and, if `ends`, the end-of-text token; what a chat template wrote
    already has its special tokens.
    """
    if not texts:
        return []
    with _untrimmed_offsets(tokenizer):
        encoded = tokenizer(
            list(texts),
            add_special_tokens=plain,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about rows that are too long for the model: `max_length` is applied later
        )
    eos = tokenizer.eos_token_id
    tokens = []
    for text, encoding in zip(texts, encoded.encodings or [], strict=True):
        ids, starts = encoding.ids, [start for start, _ in encoding.offsets]
        if plain and ends and eos is not None and ids[-1:] != [eos]:
            ids.append(eos)
            starts.append(len(text))
        tokens.append(Tokens(np.array(ids, dtype=np.int32), np.array(starts, dtype=np.int64)))
    return tokens


@contextmanager
def _untrimmed_offsets(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Include leading white space in token offsets.

    Byte-level tokenizers (GPT-2's, RoBERTa's) may trim white space from offsets in a post-processing step that changes
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
