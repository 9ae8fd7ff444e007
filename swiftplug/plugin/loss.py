"""The contracts of losses and loss scales."""

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IGNORED_LABEL = -100
"""The label of a position without a target, as in PyTorch's cross entropy and in Transformers."""


class TokenLoss:
    """Base class of losses that are a sum over tokens: subclass it and define `token_loss`.

    An instance is called like any other loss. Because positions are independent, training can also compute it in chunks
    and at labelled positions only, so that the logits of a whole batch never exist at once. It does so for models whose
    output head it knows. The parameters of `__init__` are the options of the plugin.

    Example:
        >>> class CrossEntropy(TokenLoss):
        ...     def token_loss(self, logits, targets):
        ...         return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    """

    def token_loss(self, logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """The unweighted loss of each position.

        Args:
            logits: `(N, V)` float32 logits.
            targets: `(N,)` token ids.

        Returns:
            `(N,)` losses.
        """
        raise NotImplementedError

    def __call__(
        self,
        outputs: Any,
        labels: "torch.Tensor",
        loss_scale: "torch.Tensor | None" = None,
        num_items_in_batch: "torch.Tensor | int | None" = None,
    ) -> "torch.Tensor":
        """The weighted sum of the token losses, divided by the number of trained tokens.

        Args:
            outputs: The model's output, with `logits` of shape `(B, T, V)`.
            labels: `(B, T)` token ids, not shifted; -100 where there is no target.
            loss_scale: `(B, T)` weights; None means 1 everywhere.
            num_items_in_batch: Number of trained tokens in the whole accumulation step; None: in this batch.

        Returns:
            A scalar.
        """
        targets = labels[:, 1:]
        trained = targets != IGNORED_LABEL
        losses = self.token_loss(outputs.logits[:, :-1][trained].float(), targets[trained])
        if loss_scale is not None:
            losses = losses * loss_scale[:, 1:][trained]
        return losses.sum() / (trained.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


class ContextType(StrEnum):
    """The type of a context: a segment of the rendered conversation."""

    RESPONSE = "response"
    SUFFIX = "suffix"
    OTHER = "other"


class LossScale:
    """Weighs responses and suffixes 1 and all else 0. Subclass it and override `get_loss_scale` for other weights.

    A weight of 0 leaves a token out of the loss; any other weight multiplies the token's loss.
    The parameters of `__init__` are the options of the plugin.

    Example:
        >>> class Half(LossScale):
        ...     def get_loss_scale(self, context, context_type, is_last_round, **kwargs):
        ...         return [context], [0.5 if context_type in (ContextType.RESPONSE, ContextType.SUFFIX) else 0.0]
    """

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        """Split a segment into parts and give each a weight.

        Args:
            context: The text of the segment, as the chat template rendered it.
            context_type: `RESPONSE` for an answer, `SUFFIX` for the end-of-turn token behind it, `OTHER` for all else.
                A suffix whose response has no trained part weighs 0, whatever is returned for it.
            is_last_round: Whether the segment belongs to the last round of the conversation.
            **kwargs: `query`, the text of the user's message in this round; and, if there is such a parameter, `role`,
                the role of the segment's message (empty for what the chat template writes between messages).

        Returns:
            The parts, which joined are exactly `context`, and one finite weight per part, at least 0.
        """
        return [context], [float(context_type in (ContextType.RESPONSE, ContextType.SUFFIX))]


def split_str_parts_by(text: str, delimiters: Sequence[str], regex_mode: bool = False) -> list[dict[str, Any]]:
    """Split a text at delimiters, as a loss scale of SWIFT 3 does.

    Args:
        text: The text of a context.
        delimiters: Words, or regular expressions; where several match, the one given first counts.
        regex_mode: Whether they are regular expressions (a dot matches line breaks too).

    Returns:
        Dictionaries with `key` and `content`. For words, the word and the text after it, up to the next word; text
        before the first has the key "". For regular expressions, the expression and its match; text between matches
        has the key "".

    Example:
        >>> split_str_parts_by("So. Action: go", ["Action:"])
        [{'key': '', 'content': 'So. '}, {'key': 'Action:', 'content': ' go'}]
    """
    if regex_mode:
        return [{"key": key, "content": part} for key, part in _split(text, delimiters, re.DOTALL)]
    parts: list[dict[str, Any]] = []
    for key, part in _split(text, [re.escape(delimiter) for delimiter in delimiters]):
        if key:
            parts.append({"key": part, "content": ""})
        elif parts:
            parts[-1]["content"] = part
        else:
            parts.append({"key": "", "content": part})
    return parts or [{"key": "", "content": ""}]


def split_parts_by_regex(text_list: list[dict[str, Any]], regex_delimiters: Mapping[str, Sequence[float]]) -> None:
    """Split those parts of `split_str_parts_by` that have no key, in place, as a loss scale of SWIFT 3 does.

    Args:
        text_list: The parts; what matches an expression becomes a part of its own, with the weight as its key.
        regex_delimiters: Regular expressions, each with a list that begins with the weight of its matches.
    """
    split: list[dict[str, Any]] = []
    for item in text_list:
        pieces = _split(item["content"], [*regex_delimiters]) if item["key"] == "" else []
        found = [{"key": regex_delimiters[key][0] if key else "", "content": part} for key, part in pieces]
        split += found or [item]
    text_list[:] = split


def _split(text: str, patterns: Sequence[str], flags: int = 0) -> Iterator[tuple[str, str]]:
    """The pieces of a text, none empty: each match with its pattern, and what lies between matches with ""."""
    regexes = [re.compile(pattern, flags) for pattern in patterns]
    position = 0
    while position < len(text):
        searches = (filter(lambda match: match[0], regex.finditer(text, position)) for regex in regexes)
        matches = [
            (match, pattern) for pattern, search in zip(patterns, searches, strict=True) for match in islice(search, 1)
        ]
        if not matches:
            yield "", text[position:]
            return
        match, pattern = min(matches, key=lambda found: found[0].start())  # of several, the pattern given first
        if position < match.start():
            yield "", text[position : match.start()]
        yield pattern, match[0]
        position = match.end()
