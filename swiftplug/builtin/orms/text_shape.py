"""ORMs that score the shape of an answer: its format, its length, and how much it repeats."""

import math
import re
from typing import Any, Literal

from pydantic import PositiveInt

from swiftplug.builtin.orms.gsm8k import GSM8K
from swiftplug.builtin.orms.matching import Math
from swiftplug.builtin.patterns import compile_pattern
from swiftplug.plugin import ORM, InferRequest, Unscored, UserError

THINK_THEN_ANSWER = r"<think>(?:(?!</?think>).)+</think>\s*(?!\s)(?:(?!</?think>).)+"
"""Reasoning between one pair of think tags, then an answer."""

# Ideographs and kana, which are written without spaces, are a word each; so are the punctuation marks between them.
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")


class TextORM(ORM):
    """Scores each answer by its text alone; needs no reference."""

    needs_reference = False

    def __call__(self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any) -> list[float]:
        """See `ORM.__call__`. References are ignored."""
        return [self.score(request.messages[-1]["content"]) for request in infer_requests]

    def score(self, answer: str) -> float:
        """The reward of one answer."""
        raise NotImplementedError


class Format(TextORM):
    """1.0 if the whole answer matches a regular expression (by default `<think>...</think>` and text), else 0.0.

    Surrounding white space is ignored, and a dot matches newlines too. The default is the format that DeepSeek-R1
    (arXiv 2501.12948) was rewarded for: the reasoning is in `<think>...</think>`, once and first, and an answer
    follows. R1-Zero's template has tags around the answer as well: `<think>.+?</think>\\s*<answer>.+?</answer>`.
    """

    def __init__(self, pattern: str = THINK_THEN_ANSWER) -> None:
        """Set the format.

        Args:
            pattern: A regular expression (Python's `re`).

        Raises:
            UserError: `pattern` is not a regular expression.
        """
        self.pattern = compile_pattern(pattern, "format: pattern", re.DOTALL)

    def score(self, answer: str) -> float:
        """1.0 for a match, else 0.0."""
        return float(self.pattern.fullmatch(answer.strip()) is not None)


class Length(TextORM):
    """Penalty from 0 to -1 for answers that are too long: DAPO's soft overlong punishment, in characters.

    The reward is 0 up to `max_chars - margin_chars` characters, from there falls linearly to -1 at `max_chars`, and
    stays -1 beyond (arXiv 2503.14476, equation 13). It ranks answers and does not judge them.

    The paper counts tokens. A scorer sees text, whichever model wrote it, so this counts characters (Unicode code
    points). A token is about 4 characters of English prose, 2.5 of a worked calculation, and fewer of Chinese. The
    paper's 20,480 tokens with a margin of 4,096 are about 80,000 characters with a margin of 16,000.
    """

    right_from = None

    def __init__(self, max_chars: PositiveInt, margin_chars: PositiveInt | None = None) -> None:
        """Set the lengths between which the penalty grows.

        Args:
            max_chars: Number of characters from which the penalty is -1.
            margin_chars: Number of characters before `max_chars` at which the penalty begins; None is a fifth of
                `max_chars`, as in the paper.

        Raises:
            UserError: The margin is longer than `max_chars`.
        """
        margin = max_chars / 5 if margin_chars is None else margin_chars
        if margin > max_chars:
            raise UserError(f"length: margin_chars is {margin_chars}, expected at most max_chars, which is {max_chars}")
        self.max_chars = max_chars
        self.margin_chars = margin

    def score(self, answer: str) -> float:
        """The penalty."""
        excess = len(answer) - (self.max_chars - self.margin_chars)
        return max(-excess / self.margin_chars, -1.0) if excess > 0 else 0.0


class Repetition(TextORM):
    """Penalty for repeated n-grams: `max_penalty` times their share, from 0 to -1 by default.

    The reward is `max_penalty * (1 - unique n-grams / n-grams)`. The n-grams are of words, ignoring case; a Chinese or
    Japanese character counts as a word. An answer with fewer words than an n-gram scores 0.0. It ranks answers and does
    not judge them.

    Source: the n-gram repetition penalty of "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv 2502.03373),
    as a single reward for the answer.

    Example:
        >>> request = InferRequest([{"role": "assistant", "content": "no no no no no"}])
        >>> Repetition(n_grams=2)([request], [None])
        [-0.75]
    """

    right_from = None

    def __init__(self, n_grams: PositiveInt = 3, max_penalty: float = -1.0) -> None:
        """Set the n-grams and the penalty.

        Args:
            n_grams: Number of words in an n-gram.
            max_penalty: The score that endless repetition approaches, `max_penalty <= 0`.

        Raises:
            UserError: `max_penalty` is positive or not finite.
        """
        if not -math.inf < max_penalty <= 0:
            raise UserError(f"repetition: max_penalty is {max_penalty}, expected a finite number of at most 0")
        self.n_grams = n_grams
        self.max_penalty = max_penalty

    def score(self, answer: str) -> float:
        """The penalty."""
        words = _WORD.findall(answer.lower())
        n_grams = list(zip(*(words[start:] for start in range(self.n_grams)), strict=False))
        repeated = len(n_grams) - len(set(n_grams))
        return self.max_penalty * repeated / len(n_grams) if repeated else 0.0


class Cosine(ORM):
    """Cosine reward (arXiv 2502.03373): short right answers score most, short wrong ones least, by characters.

    Along half a cosine of the length, a right answer's reward falls from `right_short` at length 0 to `right_long` at
    `max_chars`, and a wrong one's rises from `wrong_short` to `wrong_long`: an answer that fails should have thought
    longer. Longer answers get the value at `max_chars`. The defaults of the four values are the paper's ("Demystifying
    Long Chain-of-Thought Reasoning in LLMs").

    The paper also penalises an answer cut off by the token limit. That is left to `length`: here it must not make a
    right answer wrong. For characters and tokens, see `length` too.
    """

    def __init__(
        self,
        max_chars: PositiveInt,
        correct_by: Literal["math", "gsm8k"] = "math",
        right_short: float = 2.0,
        right_long: float = 1.0,
        wrong_short: float = -10.0,
        wrong_long: float = 0.0,
    ) -> None:
        """Set the ends of both curves.

        Args:
            max_chars: Number of characters at which the curves end.
            correct_by: The ORM that decides whether an answer is right.
            right_short: Reward of a right answer of length 0.
            right_long: Reward of a right answer of `max_chars` or more.
            wrong_short: Reward of a wrong answer of length 0.
            wrong_long: Reward of a wrong answer of `max_chars` or more.

        Raises:
            UserError: A wrong answer could score as much as a right one, or a value is not finite.
        """
        least_right, most_wrong = min(right_short, right_long), max(wrong_short, wrong_long)
        if not all(map(math.isfinite, (right_short, right_long, wrong_short, wrong_long))) or most_wrong >= least_right:
            raise UserError(
                f"cosine: right answers get {right_short} to {right_long}, wrong ones {wrong_short} to {wrong_long}; "
                "expected finite numbers, and every right one above every wrong one"
            )
        self.max_chars = max_chars
        self.judge = {"math": Math, "gsm8k": GSM8K}[correct_by]()
        self.right = (right_short, right_long)
        self.wrong = (wrong_short, wrong_long)
        self.right_from = (least_right + most_wrong) / 2

    def __call__(
        self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any
    ) -> list[float | Unscored]:
        """See `ORM.__call__`. A candidate that the judge cannot score is `Unscored`."""
        judged = self.judge(infer_requests, ground_truths)
        return [
            score if isinstance(score, Unscored) else self._reward(score == 1, len(request.messages[-1]["content"]))
            for request, score in zip(infer_requests, judged, strict=True)
        ]

    def answer_of(self, text: str) -> str | None:
        """The final answer, as the judge reads it."""
        return self.judge.answer_of(text)

    def _reward(self, right: bool, chars: int) -> float:
        short, long = self.right if right else self.wrong
        share = min(chars / self.max_chars, 1.0)
        return long + (short - long) * (1 + math.cos(share * math.pi)) / 2
