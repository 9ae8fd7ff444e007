"""Does an agent call the right tools with the right arguments?"""

import json
import re

from swiftplug.builtin.orms.compared import Compared

_KEYWORD = re.compile(r"^[ \t]*(Thought|Action Input|Action|Observation|Final Answer)[ \t]*[:：]", re.MULTILINE)
_FENCE = re.compile(r"```\w*\n(.*)\n[ \t]*```", re.DOTALL)


class React(Compared):
    """1.0 if an answer in the ReAct format (arXiv 2210.03629) makes the reference's move, else 0.0.

    A move is what follows `Action:` and `Action Input:`, call by call, and what follows `Final Answer:`; each keyword
    begins a line, and its colon may be a Chinese one. Thoughts may differ. What stands from the first `Observation:` on
    is left out: an agent is stopped there, and its tool writes the rest.

    Names of actions are compared as text, arguments as JSON (order of keys and white space aside, 1 and 1.0 alike) or,
    where they are no JSON, as text; no arguments are `{}`. A reference with neither keyword is compared with the answer
    as text. White space around is ignored everywhere.

    Example:
        >>> reference = 'Action: search\\nAction Input: {"query": "height of Everest", "limit": 1}'
        >>> answer = 'Thought: look.\\nAction: search\\nAction Input: {"limit": 1, "query": "height of Everest"}'
        >>> React().score(answer, reference)
        1.0
    """

    def score(self, answer: str, reference: str) -> float:
        """1.0 for the right move, else 0.0."""
        expected = move_of(reference)
        if expected is None:
            return float(answer.strip() == reference.strip())
        return float(move_of(answer) == expected)

    def answer_of(self, text: str) -> str | None:
        """The move, or the whole text if it makes none."""
        return move_of(text) or text.strip() or None


def move_of(text: str) -> str | None:
    """The calls and the final answer of a text, written in one way; None where it has neither.

    Args:
        text: An agent's answer, or a reference.

    Example:
        >>> move_of('Action: add\\nAction Input: {"b": 2.0, "a": 1}\\nObservation: 3')
        'Action: add\\nAction Input: {"a": 1, "b": 2}'
    """
    move = []
    _, *parts = _KEYWORD.split(text)
    for keyword, said in zip(parts[::2], parts[1::2], strict=True):
        if keyword == "Observation":
            break
        if keyword == "Action Input":
            arguments = _canonical(said.strip())
            move.extend([f"Action Input: {arguments}"] if arguments not in ("", "{}") else [])
        elif keyword != "Thought":
            move.append(f"{keyword}: {said.strip()}")
    return "\n".join(move) or None


def _canonical(arguments: str) -> str:
    """JSON with sorted keys; text that is no JSON as it is."""
    fenced = _FENCE.fullmatch(arguments)
    try:
        value = json.loads(fenced[1] if fenced else arguments, parse_float=_number)
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    except (ValueError, RecursionError):
        return arguments


def _number(digits: str) -> int | float:
    number = float(digits)
    return int(number) if number.is_integer() else number
