"""From segments to the weight of each token: a loss scale weighs characters, and offsets map them to tokens."""

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
    """`a+b+c`: the first scale is asked for every context, the others for responses only, and the weights multiply.

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
        """Cut the context where any of the loss scales does."""
        spans = cut_context(self._first, 0, context, context_type, is_last_round, **kwargs)
        if context_type is ContextType.RESPONSE:
            for scale in self._others:
                spans = _multiply(spans, cut_context(scale, 0, context, context_type, is_last_round, **kwargs))
        return [context[span.start : span.end] for span in spans], [span.weight for span in spans]


def _multiply(one: Sequence[WeightedSpan], other: Sequence[WeightedSpan]) -> list[WeightedSpan]:
    """Spans that are cut where either list is, with the product of the weights. Both lists cover the same text."""
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
    """One loss scale that combines several."""
    return scales[0] if len(scales) == 1 else CombinedLossScale(scales)


def cut_context(
    scale: LossScale, start: int, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
) -> list[WeightedSpan]:
    """Ask a loss scale for the weights of the context that begins at `start`, check them, and return them as spans.

    Raises:
        UserError: The parts do not add up to the context, or a part does not have exactly one finite weight.
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
    """Assign a weight to every character of a rendering, as spans.

    A message's `loss: false` excludes its turn from training, `loss: true` trains it (with the loss scale's weights, or
    with 1 if these are all 0), and `loss_scale` multiplies the weights of its turn.

    Args:
        rendered: The text and its segments.
        loss_scale: Asked for every segment except suffixes, which get the weight of their response's last character.
        messages: The row's messages; the segments' `message_index` refers to them.

    Raises:
        UserError: The loss scale breaks its contract.
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
    """Apply a message's own `loss` and `loss_scale` to the weights of its turn."""
    loss, factor = message.get("loss"), message.get("loss_scale")
    if loss is None and factor is None:
        return cut
    factor = 0.0 if loss is False else 1.0 if factor is None else float(factor)
    if loss and not any(span.weight for span in cut):
        return [span._replace(weight=factor) for span in cut]
    return [span._replace(weight=span.weight * factor) for span in cut]


def token_weights(starts: np.ndarray, spans: Sequence[WeightedSpan]) -> np.ndarray:
    """Map weights from characters to tokens: a token gets the weight of its first character.

    Args:
        starts: `(N,)` positions of each token's first character.
        spans: Spans that cover the text, in order.

    Returns:
        `(N,)` float32 weights.
    """
    filled = [span for span in spans if span.start < span.end] or [WeightedSpan(0, 1, 0.0)]
    weights = np.array([span.weight for span in filled], dtype=np.float32)
    # Without the last end: a token after the last character of the text gets the last weight.
    ends = np.array([span.end for span in filled[:-1]], dtype=np.int64)
    return weights[ends.searchsorted(starts, side="right")]
