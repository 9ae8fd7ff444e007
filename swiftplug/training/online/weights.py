"""Which of the drawn tokens train: a loss scale weighs the turns of a candidate as it weighs the answers of rows."""

from collections.abc import Callable, Sequence
from itertools import chain, groupby

import numpy as np

from swiftplug.data.chat.segments import Rendered, Segment
from swiftplug.data.weights import check_binary, lay_weights, scale_name, token_weights
from swiftplug.plugin import Chat, ContextType, LossScale, Task
from swiftplug.training.online.record import DrawnCandidate


def left_out_tokens(
    candidate: DrawnCandidate,
    scale: LossScale,
    task: Task,
    chat: Chat,
    decode: Callable[[Sequence[int]], str],
    opened: str,
) -> list[bool]:
    """Which tokens of a candidate a loss scale weighs 0; empty if it is none.

    Args:
        candidate: The candidate.
        scale: Asked for the text of each turn, and for the end of the turn.
        task: The run's task, for errors.
        chat: Tells one from the other.
        decode: The text of tokens.
        opened: The end of a prompt, which the text of a turn begins with.

    Raises:
        UserError: The loss scale breaks its contract, or gives another weight than 0 and 1.
    """
    left_out: list[bool] = []
    for number, (drawn, run) in enumerate(groupby(candidate.drawn)):
        ids = candidate.ids[len(left_out) : len(left_out) + len([*run])]
        if not drawn:
            left_out += [False] * len(ids)
            continue
        answer, text = len(chat.answer(ids, opened)), opened + decode(ids)
        asked = [it for it in chain(*candidate.asked[: number // 2 + 1]) if it["role"] in ("user", "tool")]
        is_last = not any(it["role"] == "user" for it in chain(*candidate.asked[number // 2 + 1 :]))
        query = str(asked[-1]["content"]) if asked else ""
        segments = [
            Segment(0, answer, ContextType.RESPONSE, is_last, query, role="assistant"),
            Segment(answer, len(text), ContextType.SUFFIX, is_last, query, role="assistant"),
        ]
        spans = lay_weights(Rendered(text, segments, []), scale)
        if all(span.weight == 1 for span in spans):
            left_out += [False] * len(ids)
            continue
        # The bytes of a character that is cut by the end of a token are decoded as U+FFFD.
        starts = np.array([len(opened) + len(decode(ids[:place]).rstrip("\ufffd")) for place in range(len(ids))])
        weights = token_weights(starts, spans)
        check_binary(weights, starts, spans, text, scale_name(scale), task)
        left_out += (weights == 0).tolist()
    return left_out if any(left_out) else []
