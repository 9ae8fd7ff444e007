"""The contracts of reward models: outcome (ORM) and process (PRM)."""

from collections.abc import Awaitable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class InferRequest(Mapping[str, Any]):
    """A conversation to be scored. Its last message is the assistant's answer.

    The other columns of the row are attributes and items too: `request.tools` and `request["tools"]` are
    `request.columns["tools"]`, and `request.get("tools")` is None if the row has no tools.

    Attributes:
        messages: Dictionaries `{"role": ..., "content": ...}`.
        columns: The other columns of the row (tools, ground truth, ...).
    """

    messages: list[dict[str, Any]]
    columns: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        columns = self.__dict__.get("columns", {})
        if name in columns:
            return columns[name]
        raise AttributeError(f"the row has no column {name!r}; it has {', '.join(columns) or 'none'}")

    def __getitem__(self, name: str) -> Any:
        return self.messages if name == "messages" else self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter({"messages": None, **self.columns})

    def __len__(self) -> int:
        return len({"messages", *self.columns})


@dataclass(frozen=True)
class Unscored:
    """Takes the place of a reward that could not be computed, for example because a server failed.

    The reason is recorded with the candidate.

    Attributes:
        reason: Why there is no reward, in one line.
    """

    reason: str


class ORM:
    """Base class of outcome reward models, which score finished answers. `__call__` may also be `async`.

    The parameters of `__init__` are the options of the plugin, except `weight`: that is the weight of the scorer.

    Arguments are passed by name. Instead of `infer_requests`, the first parameter may be `completions`, as in ms-swift:
    the answers as strings. Any others are then columns of the rows, one value per answer, as in `(completions,
    solution, **kwargs)`; `solution`, `answer`, `reference` and `ground_truth` are the reference where there is no such
    column. A function in this form gets answers, and `prompts`, as lists of messages, as in TRL.

    Attributes:
        needs_reference: Whether it compares answers with references. If so, a run without any reference rejects it, and
            so does one in which it finds a first batch of answers wrong and then, asked once more, the references too.
        right_from: An answer counts as right from this score on; None if the scores only rank answers.
        may_change: The options that do not change the rewards: they may differ when a run is resumed.

    Example:
        >>> class SameText(ORM):
        ...     def __call__(self, infer_requests, ground_truths, **kwargs):
        ...         answers = [request.messages[-1]["content"] for request in infer_requests]
        ...         return [float(answer == truth) for answer, truth in zip(answers, ground_truths)]
    """

    needs_reference: bool = True
    right_from: float | None = 0.5
    may_change: Collection[str] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take nothing; reward classes of ms-swift pass on what theirs takes."""

    def __call__(
        self, infer_requests: list[InferRequest], ground_truths: list[str | None], **kwargs: Any
    ) -> "Sequence[float | Unscored] | Awaitable[Sequence[float | Unscored]]":
        """Score the last message of each request.

        Args:
            infer_requests: The conversations, with the answer as the last message.
            ground_truths: The reference of each request as text, in the same order; None if its row has none.
            **kwargs: Arguments that later versions may add.

        Returns:
            One reward per request, or an `Unscored`.
        """
        raise NotImplementedError

    def answer_of(self, text: str) -> str | None:
        """Extract the final answer from a text. The majority vote counts these answers.

        Args:
            text: The text of a candidate.

        Returns:
            The final answer; None if there is none.
        """
        return text.strip() or None


AsyncORM = ORM
"""Another name of it, which ms-swift has for those whose `__call__` is `async`."""


class PRM:
    """Base class of process reward models, which score the steps of an answer. `__call__` may also be `async`.

    The parameters of `__init__` are the options of the plugin, except `weight`: that is the weight of the scorer.

    Attributes:
        may_change: The options that do not change the rewards: they may differ when a run is resumed.
    """

    may_change: Collection[str] = ()

    def __call__(
        self, infer_requests: list[InferRequest], **kwargs: Any
    ) -> "Sequence[float | list[float] | Unscored] | Awaitable[Sequence[float | list[float] | Unscored]]":
        """Score the last message of each request.

        Args:
            infer_requests: The conversations, with the answer as the last message.
            **kwargs: `ground_truths`, the reference of each request; later versions may add more.

        Returns:
            For each request one reward, or a list with one reward per step, or an `Unscored`.
        """
        raise NotImplementedError

    def step_ends(self, text: str) -> list[int]:
        """Where the steps of an answer end that `__call__` rewards; tasks that reward single tokens need it.

        Args:
            text: The answer.

        Returns:
            For each reward of a step the number of characters up to the end of the step, in ascending order.
        """
        raise NotImplementedError
