"""An outcome reward model: is the last number of the answer the right one?"""

import re
from typing import Any

from swiftplug.plugin import ORM, InferRequest


class LastNumber(ORM):
    r"""1 if the last number of the answer is that of the reference, else 0: fits `#### 18`, `A: 18`, `\boxed{18}`.

    Args:
        tolerance: Maximum difference of the two.
    """

    def __init__(self, tolerance: float = 1e-6) -> None:
        self.tolerance = tolerance

    def __call__(self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any) -> list[float]:
        """One reward for each request. An answer without a number scores 0."""
        return [
            self._reward(_last_number(request.messages[-1]["content"]), _last_number(str(truth)))
            for request, truth in zip(infer_requests, ground_truths, strict=True)
        ]

    def _reward(self, found: float | None, expected: float | None) -> float:
        return float(found is not None and expected is not None and abs(found - expected) <= self.tolerance)


def _last_number(text: str) -> float | None:
    numbers = re.findall(r"(?<!\d)-?\d+(?:,\d{3})*(?:\.\d+)?", text)  # the minus in "48-24" is not a sign
    return float(numbers[-1].replace(",", "")) if numbers else None
