"""From segments to the weight of each token: a loss scale weighs characters, offsets carry the weights to tokens."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from swiftplug.data.chat.segments import Rendered
from swiftplug.errors import UserError
from swiftplug.plugin import ContextType, LossScale


class WeightedSpan(NamedTuple):
    """A stretch of the text, and the weight of its characters."""

    start: int
    end: int
    weight: float


class CombinedLossScale(LossScale):
    """`a+b+c`: the first is asked for every context, the others for responses only, and the weights multiply.

    Args:
        scales: The loss scales, in the order of the name.

    Example:
        >>> CombinedLossScale([LossScale(), LossScale()]).get_loss_scale("hi", ContextType.RESPONSE, True, query="")
        (['hi'], [1.0])
    """

    def __init__(self, scales: Sequence[LossScale]) -> None:
        self._first, *self._others = scales

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        """Cut the context wherever one of the loss scales does."""
        spans = cut_context(self._first, 0, context, context_type, is_last_round, **kwargs)
        if context_type is ContextType.RESPONSE:
            for scale in self._others:
                spans = _multiply(spans, cut_context(scale, 0, context, context_type, is_last_round, **kwargs))
        return [context[span.start : span.end] for span in spans], [span.weight for span in spans]


def _multiply(one: Sequence[WeightedSpan], other: Sequence[WeightedSpan]) -> list[WeightedSpan]:
    """Spans that are cut where either are, with the product of their weights. Both cover the same text."""
    product = []
    position = first = second = 0
    while first < len(one) and second < len(other):
        end = min(one[first].end, other[second].end)
        product.append(WeightedSpan(position, end, one[first].weight * other[second].weight))
        position = end
        first += one[first].end == end
        second += other[second].end == end
    return product


def combine(scales: Sequence[LossScale]) -> LossScale:
    """One loss scale that does what several do together."""
    return scales[0] if len(scales) == 1 else CombinedLossScale(scales)


def cut_context(
    scale: LossScale, start: int, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
) -> list[WeightedSpan]:
    """Ask a loss scale for the context that begins at `start`, check its answer, and return spans that cover it.

    Raises:
        UserError: The parts do not join to the context, or do not have one finite number each as weight.
    """
    parts, weights = scale.get_loss_scale(context, context_type, is_last_round, **kwargs)
    name = f"loss scale {type(scale).__name__}"
    joined = "".join(parts)
    if joined != context:
        different = (i for i, (a, b) in enumerate(zip(joined, context, strict=False)) if a != b)
        at = next(different, min(len(joined), len(context)))
        raise UserError(
            f"{name}: its parts do not join to the {context_type.value} they were cut from: "
            f"at character {at} found {joined[at : at + 20]!r}, expected {context[at : at + 20]!r}"
        )
    if len(parts) != len(weights):
        raise UserError(f"{name}: found {len(parts)} parts and {len(weights)} weights, expected one weight per part")
    spans = []
    for part, weight in zip(parts, weights, strict=True):
        if not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise UserError(f"{name}: found the weight {weight!r}, expected a finite number")
        spans.append(WeightedSpan(start, start + len(part), float(weight)))
        start += len(part)
    return spans


def lay_weights(
    rendered: Rendered, loss_scale: LossScale, messages: Sequence[dict[str, Any]] = ()
) -> list[WeightedSpan]:
    """Spans that cover a rendering, with the weight of their characters.

    A message's `loss: false` leaves its turn out, `loss: true` trains it (with the loss scale's weights, or with 1
    where those leave it out whole), and `loss_scale` multiplies the weights of its turn.

    Args:
        rendered: The text and its segments.
        loss_scale: Is asked for every segment but suffixes, which have the weight of their response's last character.
        messages: The row's messages, which the segments' `message_index` counts.

    Raises:
        UserError: The loss scale's parts do not join to the context, or a weight is not a number.
    """
    spans: list[WeightedSpan] = []
    response_weight = 0.0
    for start, end, kind, is_last_round, query, message in rendered.segments:
        if kind is ContextType.SUFFIX:
            spans.append(WeightedSpan(start, end, response_weight))
            continue
        cut = cut_context(loss_scale, start, rendered.text[start:end], kind, is_last_round, query=query)
        if 0 <= message < len(messages):
            cut = _apply_message(cut, messages[message])
        if kind is ContextType.RESPONSE:
            filled = [span for span in cut if span.start < span.end] or cut
            response_weight = filled[-1].weight if filled else 0.0
        spans += cut
    return spans


def _apply_message(cut: list[WeightedSpan], message: dict[str, Any]) -> list[WeightedSpan]:
    """The weights of a turn after its message's own `loss` and `loss_scale`."""
    loss, factor = message.get("loss"), message.get("loss_scale")
    if loss is None and factor is None:
        return cut
    factor = 0.0 if loss is False else 1.0 if factor is None else float(factor)
    if loss and not any(span.weight for span in cut):
        return [span._replace(weight=factor) for span in cut]
    return [span._replace(weight=span.weight * factor) for span in cut]


def token_weights(starts: np.ndarray, spans: Sequence[WeightedSpan]) -> np.ndarray:
    """Carry weights from characters to tokens: a token has the weight of its first character.

    Args:
        starts: `(N,)` the position of each token's first character in the text.
        spans: Spans that cover the text, in order.

    Returns:
        `(N,)` float32 weights.
    """
    filled = [span for span in spans if span.start < span.end] or [WeightedSpan(0, 1, 0.0)]
    weights = np.array([span.weight for span in filled], dtype=np.float32)
    # The last end is left out: a token that stands for no character at the very end of the text has the last weight.
    ends = np.array([span.end for span in filled[:-1]], dtype=np.int64)
    return weights[ends.searchsorted(starts, side="right")]
