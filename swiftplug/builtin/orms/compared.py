"""What ORMs share that compare each answer with its reference."""

from typing import Any

from swiftplug.plugin.rewards import ORM, InferRequest, Unscored

NO_REFERENCE = Unscored("there is no reference to compare with")


class Compared(ORM):
    """Scores each answer by its own reference; where there is none, nothing is guessed."""

    def __call__(
        self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any
    ) -> list[float | Unscored]:
        """See `ORM.__call__`. A reference may be a number; a candidate without one is `Unscored`."""
        return [
            NO_REFERENCE if truth is None else self.score(request.messages[-1]["content"], str(truth))
            for request, truth in zip(infer_requests, ground_truths, strict=True)
        ]

    def score(self, answer: str, reference: str) -> float | Unscored:
        """The reward of one answer.

        Args:
            answer: A candidate.
            reference: What it is compared with.
        """
        raise NotImplementedError
