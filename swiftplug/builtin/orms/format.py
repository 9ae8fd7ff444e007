"""Does the whole answer have the form that was asked for?"""

import re
from typing import Any

from swiftplug.errors import UserError
from swiftplug.plugin.rewards import ORM, InferRequest

THINK_THEN_ANSWER = r"<think>(?:(?!</?think>).)+</think>\s*(?!\s)(?:(?!</?think>).)+"
"""Some reasoning between one pair of think tags, and behind it an answer."""


class Format(ORM):
    """1.0 if a regular expression matches the whole answer, white space around it aside, else 0.0.

    A dot matches newlines too. The default is the form that DeepSeek-R1 (arXiv 2501.12948) was rewarded for: the
    reasoning stands in `<think>...</think>`, once and first, and an answer follows. R1-Zero's template puts tags around
    the answer as well: `<think>.+?</think>\\s*<answer>.+?</answer>`.
    """

    needs_reference = False

    def __init__(self, pattern: str = THINK_THEN_ANSWER) -> None:
        """Set the form.

        Args:
            pattern: A regular expression of Python's `re`.

        Raises:
            UserError: `pattern` is no regular expression.
        """
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise UserError(f"format: pattern {pattern!r} is no regular expression: {error}") from error

    def __call__(self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any) -> list[float]:
        """See `ORM.__call__`. References play no part."""
        return [
            float(self.pattern.fullmatch(request.messages[-1]["content"].strip()) is not None)
            for request in infer_requests
        ]
