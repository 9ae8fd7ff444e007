"""Where an answer's turn begins and ends in a rendering: what a template writes around answers, learned by trying it.

An answer begins where the generation prompt ends, as a model that is asked to answer would begin it; a thinking tag
that the generation prompt already opens still belongs to the answer. It ends with the end-of-turn token: what the
template writes behind an answer, before anything that depends on what follows.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from swiftplug.data.chat.marks import Messages
from swiftplug.data.read.conversation import RowError

Apply = Callable[[Messages, bool], str]  # messages, add_generation_prompt -> text

_QUESTION, _ANSWER = "zqjxquestion", "zqjxanswer"
_MARKER = re.compile(r"<[^<>\s]+>")
_THINKING = re.compile(r"<[^<>\s]*think[^<>\s]*>", re.IGNORECASE)


class TurnFormat(NamedTuple):
    """What a template writes around a plain answer.

    Attributes:
        prompt: What stands between the user's text and the answer, as far as a generation prompt gives it.
        header: The part of `prompt` that opens the answer's turn; empty where a template knows no generation prompt.
        generation_prompt: What asking for a generation prompt adds, with any thinking tag.
        closing: What closes the turn when another follows, without the white space at its end.
    """

    prompt: str
    header: str
    generation_prompt: str
    closing: str


def learn_turn_format(apply: Apply, system: bool, parts: bool) -> TurnFormat | None:
    """Render a question and an answer, with and without a generation prompt, and compare.

    Args:
        apply: Renders messages.
        system: Whether to begin with a system message, for templates that want one.
        parts: Whether contents are lists of parts, which some templates want.

    Returns:
        What was learned, or None where the template does not write such a conversation.
    """

    def message(role: str, text: str) -> Messages:
        return [{"role": role, "content": [{"type": "text", "text": text}] if parts else text}]

    asked = (message("system", "zqjxsystem") if system else []) + message("user", _QUESTION)
    answered = asked + message("assistant", _ANSWER)
    try:
        behind_question, prompted = (apply(asked, prompt).rpartition(_QUESTION) for prompt in (False, True))
        behind_answer, reprompted = (apply(answered, prompt).rpartition(_ANSWER) for prompt in (False, True))
    except RowError:
        return None
    between = behind_answer[0].rpartition(_QUESTION)
    if not (behind_question[1] and prompted[1] and behind_answer[1] and reprompted[1] and between[1]):
        return None
    closes_question = common_prefix(behind_question[2], prompted[2])
    generation_prompt = prompted[2][len(closes_question) :]
    prompt = without_thinking(common_prefix(prompted[2], between[2]))
    closing = reprompted[2]
    if generation_prompt and closing.endswith(generation_prompt):
        closing = closing[: -len(generation_prompt)]
    else:
        closing = common_prefix(behind_answer[2], closing)
    return TurnFormat(prompt, prompt[len(closes_question) :], generation_prompt, closing.rstrip())


def common_prefix(one: str, other: str) -> str:
    """The common start of two texts, which ends in no marker (`<|im_end|>`) that only one of them completes."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    for text in (one, other):
        for marker in _MARKER.finditer(text):
            if marker.start() < length < marker.end():
                length = marker.start()
    return one[:length]


def without_thinking(prompt: str) -> str:
    """A prompt up to the thinking tag that it opens, if it does."""
    found = _THINKING.search(prompt)
    return prompt[: found.start()] if found else prompt


def end_of_turn(written: str, closing: str) -> int:
    """Where, in what a template writes behind an answer's last text, the end-of-turn token begins.

    Args:
        written: That text, up to and including the end-of-turn token.
        closing: What closes a plain answer's turn; empty where the template writes no such token, or it is unknown.

    Returns:
        A position in `written`; its length where no token ends the turn.
    """
    if not closing:
        return len(written)
    if written.endswith(closing):
        return len(written) - len(closing)
    markers = list(_MARKER.finditer(written))
    return markers[-1].start() if markers and markers[-1].end() == len(written) else len(written)
