"""A penalty for an answer that is too long, which sets in softly."""

from typing import Any

from pydantic import PositiveInt

from swiftplug.errors import UserError
from swiftplug.plugin.rewards import ORM, InferRequest


class Length(ORM):
    """The soft overlong punishment of DAPO (arXiv 2503.14476, equation 13), on characters.

    0 up to `max_chars - margin_chars` characters, from there falling in a straight line to -1 at `max_chars`, and -1
    beyond. It ranks answers and judges none.

    The paper counts tokens; a scorer sees texts, whichever model wrote them, so this counts characters (Unicode code
    points). A token is about 4 characters of English prose, 2.5 of a worked calculation, and fewer of Chinese. The
    paper's 20,480 tokens with a margin of 4,096 are about 80,000 characters with a margin of 16,000.
    """

    needs_reference = False
    right_from = None

    def __init__(self, max_chars: PositiveInt, margin_chars: PositiveInt | None = None) -> None:
        """Set the lengths between which the punishment grows.

        Args:
            max_chars: Characters from which it is complete.
            margin_chars: How many characters before that it sets in; a fifth of `max_chars`, as in the paper, if None.

        Raises:
            UserError: The margin is longer than the longest answer.
        """
        margin = max_chars / 5 if margin_chars is None else margin_chars
        if margin > max_chars:
            raise UserError(f"length: margin_chars is {margin_chars}, expected at most max_chars, which is {max_chars}")
        self.max_chars = max_chars
        self.margin_chars = margin

    def __call__(self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any) -> list[float]:
        """See `ORM.__call__`. References play no part."""
        return [self._score(len(request.messages[-1]["content"])) for request in infer_requests]

    def _score(self, chars: int) -> float:
        too_long = chars - (self.max_chars - self.margin_chars)
        return max(-too_long / self.margin_chars, -1.0) if too_long > 0 else 0.0
