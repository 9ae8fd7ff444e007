"""Right or wrong, and how long: short right answers are worth most, short wrong ones least."""

import math
from typing import Any, Literal

from pydantic import PositiveInt

from swiftplug.builtin.orms.gsm8k import GSM8K
from swiftplug.builtin.orms.math import Math
from swiftplug.errors import UserError
from swiftplug.plugin.rewards import ORM, InferRequest, Unscored


class Cosine(ORM):
    """The cosine reward of "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv 2502.03373), on characters.

    Along half a cosine of the length, a right answer's reward falls from `right_short` at no length to `right_long` at
    `max_chars`, and a wrong one's rises from `wrong_short` to `wrong_long`: an answer that fails should have thought
    longer. Longer answers get the value at `max_chars`. The defaults of the four values are the paper's.

    What the paper does besides, a penalty for an answer cut off by the token limit, is left to `length`: it must not
    make a right answer wrong here. For characters and tokens see `length`, too.
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
            max_chars: Characters at which the curves end.
            correct_by: The ORM that tells right from wrong.
            right_short: Reward of a right answer of no length.
            right_long: Reward of a right answer of `max_chars` or more.
            wrong_short: Reward of a wrong answer of no length.
            wrong_long: Reward of a wrong answer of `max_chars` or more.

        Raises:
            UserError: A wrong answer could get as much as a right one, or a value is not finite.
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
            right if isinstance(right, Unscored) else self._score(right == 1, len(request.messages[-1]["content"]))
            for request, right in zip(infer_requests, judged, strict=True)
        ]

    def answer_of(self, text: str) -> str | None:
        """The final answer, as the judge reads it."""
        return self.judge.answer_of(text)

    def _score(self, right: bool, chars: int) -> float:
        short, long = self.right if right else self.wrong
        share = min(chars / self.max_chars, 1.0)
        return long + (short - long) * (1 + math.cos(share * math.pi)) / 2
