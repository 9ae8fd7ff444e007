"""Which of the drawn tokens train: a loss scale weighs the turns of a candidate as it weighs the answers of rows."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, groupby

from swiftplug.data.chat.segments import Rendered, Segment
from swiftplug.data.chat.tools import message_text
from swiftplug.data.weights import WeightedSpan, lay_weights, not_binary, scale_name
from swiftplug.plugin import Chat, ContextType, LossScale, Task
from swiftplug.training.online.record import DrawnCandidate


def left_out_tokens(
    candidate: DrawnCandidate, scale: LossScale, task: Task, chat: Chat, decode: Callable[[Sequence[int]], str]
) -> list[bool]:
    """Which tokens of a candidate a loss scale weighs 0; empty if it is none.

    Args:
        candidate: The candidate.
        scale: Asked for the text of each turn, and for the end of the turn.
        task: The run's task, for errors.
        chat: Tells one from the other.
        decode: The text of tokens.

    Raises:
        UserError: The loss scale breaks its contract, or gives another weight than 0 and 1.
    """
    left_out: list[bool] = []
    opened = candidate.opened
    for number, (drawn, run) in enumerate(groupby(candidate.drawn)):
        ids = candidate.ids[len(left_out) : len(left_out) + len([*run])]
        if not drawn:
            left_out += [False] * len(ids)
            continue
        answer, text = len(chat.answer(ids, opened)), opened + decode(ids)
        asked = [it for it in chain(*candidate.asked[: number // 2 + 1]) if it["role"] in ("user", "tool")]
        is_last = not any(it["role"] == "user" for it in chain(*candidate.asked[number // 2 + 1 :]))
        query = message_text(asked[-1]) if asked else ""
        segments = [
            Segment(0, answer, ContextType.RESPONSE, is_last, query, role="assistant"),
            Segment(answer, len(text), ContextType.SUFFIX, is_last, query, role="assistant"),
        ]
        spans = [span for span in lay_weights(Rendered(text, segments, []), scale) if span.start < span.end]
        spans = spans or [WeightedSpan(0, 1, 1.0)]
        is_uniform = len({span.weight for span in spans}) == 1
        start = partial(_start, opened, ids, decode)
        starts = [0 if is_uniform else bisect_left(range(len(ids)), span.start, key=start) for span in spans[1:]]
        for span, first, end in zip(spans, [0, *starts], [*starts, len(ids)], strict=True):
            if first < end and span.weight not in (0, 1):
                raise not_binary(span, text, scale_name(scale), task)
            left_out += [span.weight == 0] * (end - first)
    return left_out if any(left_out) else []


def _start(opened: str, ids: Sequence[int], decode: Callable[[Sequence[int]], str], place: int) -> int:
    """Where in a text a token begins; the bytes of a character that is cut before it are decoded as U+FFFD."""
    return len(opened) + len(decode(ids[:place]).rstrip("\ufffd"))
