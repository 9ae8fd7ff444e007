"""A penalty for an answer that says the same again and again."""

import re
from typing import Any

from pydantic import PositiveInt

from swiftplug.errors import UserError
from swiftplug.plugin.rewards import ORM, InferRequest

# Ideographs and kana, which are written without spaces, are a word each; so are the punctuation marks between them.
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")


class Repetition(ORM):
    """The share of repeated n-grams, as a penalty: `max_penalty * (1 - unique n-grams / n-grams)`.

    The n-grams are of words, upper and lower case alike; a Chinese or Japanese character counts as a word. An answer
    of fewer words than an n-gram has scores 0.0. It ranks answers and judges none.

    Source: the n-gram repetition penalty of "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv 2502.03373),
    as the one reward of an answer.

    Example:
        >>> request = InferRequest([{"role": "assistant", "content": "no no no no no"}])
        >>> Repetition(n_grams=2)([request], [None])
        [-0.75]
    """

    needs_reference = False
    right_from = None

    def __init__(self, n_grams: PositiveInt = 3, max_penalty: float = -1.0) -> None:
        """Set what counts as repetition, and what it costs.

        Args:
            n_grams: Words of an n-gram.
            max_penalty: The score that endless repetition comes near to, `max_penalty <= 0`.

        Raises:
            UserError: `max_penalty` is outside its range.
        """
        if not -float("inf") < max_penalty <= 0:
            raise UserError(f"repetition: max_penalty is {max_penalty}, expected a finite number of at most 0")
        self.n_grams = n_grams
        self.max_penalty = max_penalty

    def __call__(self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any) -> list[float]:
        """See `ORM.__call__`. References play no part."""
        return [self._score(request.messages[-1]["content"]) for request in infer_requests]

    def _score(self, answer: str) -> float:
        words = _WORD.findall(answer.lower())
        n_grams = list(zip(*(words[start:] for start in range(self.n_grams)), strict=False))
        repeated = len(n_grams) - len(set(n_grams))
        return self.max_penalty * repeated / len(n_grams) if repeated else 0.0
