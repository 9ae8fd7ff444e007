"""A process reward model (PRM): steps should be short."""

from typing import Any

from swiftplug.plugin import PRM, InferRequest


class ShortSteps(PRM):
    """Rewards each line of an answer: 1 up to a number of words, and less the longer the line is.

    Args:
        words: Number of words from which on the reward falls.
    """

    # The parameters are the plugin's options; they are checked against their annotations.
    def __init__(self, words: int = 12) -> None:
        self.words = words

    def __call__(self, infer_requests: list[InferRequest], **kwargs: Any) -> list[float | list[float]]:
        """For each request a list with a reward for each step; one number for the whole answer would do too."""
        answers = [request.messages[-1]["content"] for request in infer_requests]
        return [[self._reward(line) for line in answer.splitlines() if line.strip()] for answer in answers]

    def _reward(self, step: str) -> float:
        return min(1.0, self.words / len(step.split()))
