"""What encoding needs of a tokenizer: exact offsets."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from swiftplug.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_offsets(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a tokenizer that cannot tell which characters a token stands for.

    Raises:
        UserError: If the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__} has no offsets, so weights cannot be carried to its tokens; "
            "expected a fast tokenizer (tokenizer.json)"
        )


@contextmanager
def untrimmed_offsets(tokenizer: "PreTrainedTokenizerBase") -> Iterator[None]:
    """Let a byte-level tokenizer count a token's white space to the token, as it is in the ids, while this lasts.

    Such tokenizers (GPT-2's, RoBERTa's) may trim white space from offsets in a post-processing step that changes
    nothing else; then the first character of ` word` would be the `w`.
    """
    backend: Any = tokenizer.backend_tokenizer
    processor = backend.post_processor
    state = json.loads(processor.__getstate__()) if processor is not None else {}
    if not _set_trim(state):
        yield
        return
    backend.post_processor = _processor(state)
    try:
        yield
    finally:
        backend.post_processor = processor


def _set_trim(state: Any) -> bool:
    """Turn trimming off in a processor's state; whether it was on."""
    if isinstance(state, list):
        return sum(_set_trim(item) for item in state) > 0
    if not isinstance(state, dict):
        return False
    was_on = bool(state.get("trim_offsets"))
    if was_on:
        state["trim_offsets"] = False
    return sum(_set_trim(item) for item in state.values()) > 0 or was_on


def _processor(state: Any) -> Any:
    """A post-processor from its JSON state."""
    from tokenizers import Tokenizer, models

    whole = json.loads(Tokenizer(models.BPE()).to_str())
    whole["post_processor"] = state
    return Tokenizer.from_str(json.dumps(whole)).post_processor
