"""The contracts of reward models: outcome (ORM) and process (PRM)."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class InferRequest:
    """A conversation to be scored; its last message is the assistant's answer.

    Attributes:
        messages: `{"role": ..., "content": ...}` dictionaries.
        columns: The other columns of the dataset's row (tools, ground truth, ...).
    """

    messages: list[dict[str, Any]]
    columns: dict[str, Any] = field(default_factory=dict)


class ORM:
    """An outcome reward model: scores finished answers. `__call__` may also be `async`."""

    def __call__(self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any) -> list[float]:
        """Score the last message of each request.

        Args:
            infer_requests: The conversations, answer last.
            ground_truths: The reference of each, in the same order.
            **kwargs: Whatever later versions add.

        Returns:
            One reward a request.
        """
        raise NotImplementedError


class PRM:
    """A process reward model: scores the steps of an answer."""

    def __call__(self, infer_requests: list[InferRequest], **kwargs: Any) -> list[float | list[float]]:
        """Score the last message of each request.

        Args:
            infer_requests: The conversations, answer last.
            **kwargs: `ground_truths`, the reference of each request.

        Returns:
            For each request one reward, or one reward a step.
        """
        raise NotImplementedError
