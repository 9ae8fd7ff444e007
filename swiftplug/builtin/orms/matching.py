r"""ORMs that compare an answer with its reference as text: its last `\boxed{...}`, or its ReAct action."""

import json
import re
from typing import Any

from swiftplug.builtin.boxed import last_boxed, without_reasoning
from swiftplug.plugin import ORM, InferRequest, Unscored

NO_REFERENCE = Unscored("there is no reference to compare with")


class ComparingORM(ORM):
    """Scores each answer by its own reference; an answer without one is `Unscored`."""

    def __call__(
        self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any
    ) -> list[float | Unscored]:
        """See `ORM.__call__`. A reference may also be a number."""
        return [
            NO_REFERENCE if truth is None else self.score(request.messages[-1]["content"], str(truth))
            for request, truth in zip(infer_requests, ground_truths, strict=True)
        ]

    def score(self, answer: str, reference: str) -> float | Unscored:
        """The reward of one answer, compared with its reference."""
        raise NotImplementedError


class Math(ComparingORM):
    r"""1.0 if the answer's last `\boxed{...}` equals the reference's as text, else 0.0.

    A box in `<think>...</think>` does not count, surrounding white space is ignored, and `1/2` is not `0.5`
    (`math_verify` finds them equal). A reference without a box is compared as a whole. An answer without a box scores
    0.0.

    Example:
        >>> Math().score(r"Half of it is \boxed{\frac{1}{2}}.", r"\boxed{ \frac{1}{2} }")
        1.0
    """

    def score(self, answer: str, reference: str) -> float:
        """1.0 for the right box, else 0.0."""
        found, expected = (last_boxed(without_reasoning(text)) for text in (answer, reference))
        if expected is None:
            expected = reference
        return float(found is not None and found.strip() == expected.strip())

    def answer_of(self, text: str) -> str | None:
        """The content of the last box."""
        return (last_boxed(without_reasoning(text)) or "").strip() or None


class React(ComparingORM):
    """1.0 if a ReAct answer (arXiv 2210.03629) has the reference's actions and final answer, else 0.0.

    Compared is what follows `Action:` and `Action Input:`, call by call, and what follows `Final Answer:`. Each keyword
    starts a line; its colon may be a Chinese one. Thoughts may differ, and what is in `<think>...</think>` does not
    count. Text from the first `Observation:` on is ignored: there an agent is stopped, and its tool goes on.

    Names of actions are compared as text; arguments as JSON (ignoring the order of keys and white space, and 1 equals
    1.0) or, if they are not JSON, as text; no arguments equal `{}`. A reference without these keywords is compared with
    the answer as text. Surrounding white space is always ignored.

    Example:
        >>> reference = 'Action: search\\nAction Input: {"query": "height of Everest", "limit": 1}'
        >>> answer = 'Thought: look.\\nAction: search\\nAction Input: {"limit": 1, "query": "height of Everest"}'
        >>> React().score(answer, reference)
        1.0
    """

    def score(self, answer: str, reference: str) -> float:
        """1.0 for the right actions and final answer, else 0.0."""
        answer, reference = without_reasoning(answer), without_reasoning(reference)
        expected = actions_of(reference)
        if expected is None:
            return float(answer.strip() == reference.strip())
        return float(actions_of(answer) == expected)

    def answer_of(self, text: str) -> str | None:
        """The actions and the final answer, or all that is not reasoning if there is neither."""
        text = without_reasoning(text)
        return actions_of(text) or text.strip() or None


_KEYWORD = re.compile(r"^[ \t]*(Thought|Action Input|Action|Observation|Final Answer)[ \t]*[:：]", re.MULTILINE)
_FENCE = re.compile(r"```\w*\n(.*)\n[ \t]*```", re.DOTALL)


def actions_of(text: str) -> str | None:
    """The actions and the final answer of a ReAct text, in one canonical form; None if it has neither.

    Example:
        >>> actions_of('Action: add\\nAction Input: {"b": 2.0, "a": 1}\\nObservation: 3')
        'Action: add\\nAction Input: {"a": 1, "b": 2}'
    """
    lines = []
    _, *parts = _KEYWORD.split(text)
    for keyword, content in zip(parts[::2], map(str.strip, parts[1::2]), strict=True):
        if keyword == "Observation":
            break
        if keyword == "Action Input":
            arguments = _canonical_json(content)
            lines.extend([f"Action Input: {arguments}"] if arguments not in ("", "{}") else [])
        elif keyword != "Thought":
            lines.append(f"{keyword}: {content}")
    return "\n".join(lines) or None


def _canonical_json(text: str) -> str:
    """JSON with sorted keys; text that is not JSON as it is."""
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_float=_number)
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    except (ValueError, RecursionError):
        return text


def _number(digits: str) -> int | float:
    number = float(digits)
    return int(number) if number.is_integer() else number
