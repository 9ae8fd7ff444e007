"""A process reward model: a step that repeats an earlier one is worth nothing."""

from itertools import accumulate
from typing import Any

from swiftplug.plugin import PRM, InferRequest


class FreshSteps(PRM):
    """Rewards each line of an answer: 1 if it is new, 0 if it repeats an earlier one, as small models often do."""

    def __call__(self, infer_requests: list[InferRequest], **kwargs: Any) -> list[float | list[float]]:
        """One list of rewards for each request, one reward for each line of its last message."""
        return [self._rewards(request.messages[-1]["content"]) for request in infer_requests]

    def step_ends(self, text: str) -> list[int]:
        """Where these lines end, for tasks that reward a step at its last token, such as ppo."""
        lines = text.splitlines(keepends=True)
        return [end for line, end in zip(lines, accumulate(map(len, lines)), strict=True) if line.strip()]

    def _rewards(self, answer: str) -> list[float]:
        steps = [" ".join(line.split()).lower() for line in answer.splitlines() if line.strip()]
        return [float(step not in steps[:index]) for index, step in enumerate(steps)]
