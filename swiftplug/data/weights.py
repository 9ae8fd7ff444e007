"""From segments to the weight of each token: a loss scale weighs characters, and offsets map them to tokens."""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from swiftplug.data.chat.segments import Rendered
from swiftplug.errors import ContractError, UserError
from swiftplug.plugin import ContextType, LossScale, Task
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.registry.returns import check_weights


class WeightedSpan(NamedTuple):
    """A stretch of the text, and the weight of its characters."""

    start: int
    end: int
    weight: float


class CombinedLossScale(LossScale):
    """`a+b+c`: the first scale is asked for every context, the others for responses and suffixes; the weights multiply.

    Args:
        scales: The loss scales, in the order of the name.
        names: What errors call each of them; by default its class.

    Example:
        >>> CombinedLossScale([LossScale(), LossScale()]).get_loss_scale("hi", ContextType.RESPONSE, True, query="")
        (['hi'], [1.0])
    """

    def __init__(self, scales: Sequence[LossScale], names: Sequence[str] = ()) -> None:
        names = names or [f"loss scale {type(scale).__name__}" for scale in scales]
        self._scales = list(zip(scales, names, strict=True))
        self.name = " + ".join(names)

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        """Cut the context where any of the loss scales does."""
        spans = self.cut(0, context, context_type, is_last_round, **kwargs)
        return [context[span.start : span.end] for span in spans], [span.weight for span in spans]

    def cut(
        self, start: int, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> list[WeightedSpan]:
        """The same as spans; see `cut_context`."""
        if not self._scales:  # a task in which no loss scale acts
            return [WeightedSpan(start, start + len(context), 1.0)]
        first, *others = self._scales
        spans = cut_context(*first, start, context, context_type, is_last_round, **kwargs)
        for each in others if context_type is not ContextType.OTHER else ():
            spans = _multiply(spans, cut_context(*each, start, context, context_type, is_last_round, **kwargs))
        return spans


def _multiply(one: Sequence[WeightedSpan], other: Sequence[WeightedSpan]) -> list[WeightedSpan]:
    """Spans that are cut where either list is, with the product of the weights. Both lists cover the same text."""
    product = []
    first = second = 0
    position = one[0].start if one else 0
    while first < len(one) and second < len(other):
        end = min(one[first].end, other[second].end)
        product.append(WeightedSpan(position, end, one[first].weight * other[second].weight))
        position = end
        first += one[first].end == end
        second += other[second].end == end
    return product


def scale_name(scale: LossScale) -> str:
    """What errors call a loss scale."""
    return scale.name if isinstance(scale, CombinedLossScale) else f"loss scale {type(scale).__name__}"


def combine(plugins: Sequence[LoadedPlugin]) -> LossScale:
    """One loss scale that combines those of several plugins."""
    return CombinedLossScale([plugin.bound for plugin in plugins], [str(plugin.found) for plugin in plugins])


def cut_context(
    scale: LossScale, name: str, start: int, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
) -> list[WeightedSpan]:
    """Ask a loss scale for the weights of the context that begins at `start`, check them, and return them as spans.

    `name` is what errors call the scale. It gets the keyword `role` only if it has such a parameter.

    Raises:
        UserError: The parts do not add up to the context, or a part does not have exactly one weight that is a finite
            number and at least 0.
    """
    if isinstance(scale, CombinedLossScale):
        return scale.cut(start, context, context_type, is_last_round, **kwargs)
    if not _takes_role(type(scale).get_loss_scale):
        kwargs.pop("role", None)
    returned: Any = scale.get_loss_scale(context, context_type, is_last_round, **kwargs)
    try:
        parts, weights = check_weights(returned, context, context_type)
    except ContractError as error:
        raise UserError(f"{name}: {error}") from None
    if len(parts) == 1:
        return [WeightedSpan(start, start + len(context), weights[0])]
    spans: list[WeightedSpan] = []
    for part, weight in zip(parts, weights, strict=True):
        spans.append(WeightedSpan(start, start + len(part), weight))
        start += len(part)
    return spans


@cache
def _takes_role(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters
    return "role" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def lay_weights(
    rendered: Rendered, loss_scale: LossScale, messages: Sequence[dict[str, Any]] = ()
) -> list[WeightedSpan]:
    """Assign a weight to every character of a rendering, as spans.

    A message's `loss: false` excludes its turn from training, `loss: true` trains it (with the loss scale's weights, or
    with 1 if these are all 0), and `loss_scale` multiplies the weights of its turn.

    Args:
        rendered: The text and its segments.
        loss_scale: Asked for every segment. A suffix whose response has no trained part weighs 0 all the same.
        messages: The row's messages; the segments' `message_index` refers to them.

    Raises:
        UserError: The loss scale breaks its contract.
    """
    name = scale_name(loss_scale)
    spans: list[WeightedSpan] = []
    response: list[WeightedSpan] = []  # the last one, as the loss scale weighs it
    for start, end, kind, is_last_round, query, index, role in rendered.segments:
        text = rendered.text[start:end]
        cut = cut_context(loss_scale, name, start, text, kind, is_last_round, query=query, role=role)
        message = messages[index] if 0 <= index < len(messages) else {}
        if kind is not ContextType.SUFFIX:
            response = [span for span in cut if span.start < span.end] or cut
        trains = any(span.weight for span in response)
        factor = 0.0 if message.get("loss") is False else float(message.get("loss_scale", 1))
        if message.get("loss") and not trains:
            cut = [span._replace(weight=factor) for span in cut]
        elif kind is ContextType.SUFFIX and not trains:
            cut = [span._replace(weight=0.0) for span in cut]
        elif factor != 1:
            cut = [span._replace(weight=span.weight * factor) for span in cut]
        spans += cut
    return spans


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


def not_binary(span: WeightedSpan, text: str, given: str, task: Task) -> UserError:
    """The error about a weight other than 0 and 1; `given` is what gave it."""
    found = f"{given} weighs {text[span.start : span.end]!r:.60} {span.weight:g}"
    return UserError(f"{found}; {type(task).__name__} takes the weights 0 and 1 only")
