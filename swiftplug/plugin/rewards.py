"""The contracts of reward models: outcome (ORM) and process (PRM)."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class InferRequest:
    """A conversation to be scored; its last message is the assistant's answer.

    The other columns are attributes too: `request.tools` is `request.columns["tools"]`.

    Attributes:
        messages: `{"role": ..., "content": ...}` dictionaries.
        columns: The other columns of the dataset's row (tools, ground truth, ...).
    """

    messages: list[dict[str, Any]]
    columns: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        columns = self.__dict__.get("columns", {})
        if name in columns:
            return columns[name]
        raise AttributeError(f"the row has no column {name!r}; it has {', '.join(columns) or 'none'}")


@dataclass(frozen=True)
class Unscored:
    """What a scorer returns in place of a reward that it could not get, from a server say.

    The reason is recorded with the candidate; nothing is guessed.

    Attributes:
        reason: Why, in one line.
    """

    reason: str


class ORM:
    """An outcome reward model: scores finished answers. `__call__` may also be `async`.

    The parameters of `__init__` are the options of the plugin; `weight` is taken already, for the scorer's weight.
    """

    needs_reference: bool = True
    """Whether it compares answers with references; a run without any refuses it then."""

    right_from: float | None = 0.5
    """The score from which an answer counts as right; None for one that ranks answers and does not judge them."""

    def __call__(
        self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any
    ) -> "Sequence[float | Unscored] | Awaitable[Sequence[float | Unscored]]":
        """Score the last message of each request.

        Args:
            infer_requests: The conversations, answer last.
            ground_truths: The reference of each, in the same order.
            **kwargs: Whatever later versions add.

        Returns:
            One reward a request; an `Unscored` where there is none.
        """
        raise NotImplementedError

    def answer_of(self, text: str) -> str | None:
        """The final answer that a text gives, by which a majority is counted; None where it gives none.

        Args:
            text: A candidate.
        """
        return text.strip() or None


class PRM:
    """A process reward model: scores the steps of an answer. `__call__` may also be `async`."""

    def __call__(
        self, infer_requests: list[InferRequest], **kwargs: Any
    ) -> "Sequence[float | list[float] | Unscored] | Awaitable[Sequence[float | list[float] | Unscored]]":
        """Score the last message of each request.

        Args:
            infer_requests: The conversations, answer last.
            **kwargs: `ground_truths`, the reference of each request.

        Returns:
            For each request one reward, or one reward a step; an `Unscored` where there is none.
        """
        raise NotImplementedError
