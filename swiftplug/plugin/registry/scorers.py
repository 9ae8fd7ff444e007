"""How an ORM or a PRM is called: with what its parameters name, in each of the forms in which rewards exist."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from swiftplug.plugin.registry.contracts import FIRST_PARAMETERS, form_of, is_function
from swiftplug.plugin.rewards import ORM, PRM, InferRequest

REFERENCE_NAMES = ("reference", "solution", "answer", "ground_truth", "ground_truths")
"""Parameters that get the reference of a row without a column of that name."""

_OUR_ARGUMENTS = {"infer_requests", "ground_truths"}
_ALWAYS_GIVEN = {*FIRST_PARAMETERS, *REFERENCE_NAMES, "messages", "tools"}


@dataclass(frozen=True)
class BoundScorer:
    """An ORM or a PRM with its options, called in one way whatever its form.

    The name of the first parameter tells the form, and every argument is passed by name:

    - `infer_requests`: ours. It gets the requests, and their references as `ground_truths`.
    - `completions` or `prompts`: a class in the form of ms-swift, which gets the answers as strings, or a function in
      the form of TRL, which gets prompts and answers as lists of messages. Both get the columns of the rows by name.

    Attributes:
        scorer: The function, or the object with a `__call__`.
        kind: `orm` or `prm`.
    """

    scorer: Callable[..., Any]
    kind: str

    def __call__(self, infer_requests: Sequence[InferRequest], ground_truths: Sequence[str | None]) -> Any:
        """Call the scorer for the last message of each request.

        Args:
            infer_requests: The conversations, with the answer as the last message.
            ground_truths: The reference of each request; None if it has none.

        Returns:
            What the scorer returns, or what its awaitable gives: a reward for each request.
        """
        columns = {name for request in infer_requests for name in request.columns}
        taken = {name for name, each in self._arguments.items() if each.default is each.empty or name in columns}
        taken |= self._arguments.keys() & _ALWAYS_GIVEN
        if any(each.kind is each.VAR_KEYWORD for each in self._parameters.values()):
            taken |= _OUR_ARGUMENTS if self.is_ours else (columns | _ALWAYS_GIVEN) - _OUR_ARGUMENTS - self._options
        returned = self.scorer(**{name: self._argument(name, infer_requests, ground_truths) for name in taken})
        if inspect.isawaitable(returned):
            import asyncio  # only here: `list-plugins` does not need it

            return asyncio.run(_await(returned))
        return returned

    def __getattr__(self, name: str) -> Any:
        if name in ("scorer", "kind"):  # missing only while the object is being copied
            raise AttributeError(name)
        return getattr(self.scorer, name)

    def _argument(self, name: str, requests: Sequence[InferRequest], truths: Sequence[str | None]) -> Sequence[Any]:
        """What a parameter gets: one value for each request."""
        if name == "infer_requests":
            return requests
        if name == "ground_truths" and self.is_ours:
            return truths
        if name == "prompts":
            return [request.messages[:-1] for request in requests]
        if name == "completions":
            answers = [request.messages[-1] for request in requests]
            return [[answer] if is_function(self.scorer) else answer["content"] for answer in answers]
        missing = truths if name in REFERENCE_NAMES else [None] * len(requests)
        return [request.get(name, other) for request, other in zip(requests, missing, strict=True)]

    @cached_property
    def is_ours(self) -> bool:
        """Whether it has the form of this package."""
        return form_of(inspect.signature(self.scorer)) == "infer_requests"

    @property
    def needs_reference(self) -> bool:
        """Whether it cannot score an answer to a row without a reference."""
        return self.is_ours and bool(getattr(self.scorer, "needs_reference", self.kind == "orm"))

    @property
    def compares(self) -> bool:
        """Whether it compares answers with references."""
        return self.needs_reference or (not self.is_ours and bool(self._arguments.keys() & {*REFERENCE_NAMES}))

    @property
    def needed_columns(self) -> list[str]:
        """The columns of the rows that it cannot be called without."""
        known = {*FIRST_PARAMETERS, "messages", "tools", *(["ground_truths"] if self.is_ours else [])}
        return [name for name, each in self._arguments.items() if each.default is each.empty and name not in known]

    @property
    def right_from(self) -> float | None:
        """The least reward of a right answer; None if it does not judge."""
        right_from: float | None = getattr(self.scorer, "right_from", ORM.right_from)
        return right_from if self.kind == "orm" else None

    @property
    def places_steps(self) -> bool:
        """Whether it says where the steps end that it rewards."""
        return getattr(type(self.scorer), "step_ends", PRM.step_ends) is not PRM.step_ends

    def answer_of(self, text: str) -> str | None:
        """The final answer in a text; see `ORM.answer_of`."""
        answer = getattr(self.scorer, "answer_of", ORM().answer_of)(text)
        return None if answer is None else str(answer)

    @cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.scorer).parameters)

    @property
    def _options(self) -> set[str]:
        """The keyword-only parameters of a function: options, never arguments."""
        keyword_only = {name for name, each in self._parameters.items() if each.kind is each.KEYWORD_ONLY}
        return keyword_only if is_function(self.scorer) else set()

    @property
    def _arguments(self) -> dict[str, inspect.Parameter]:
        """The parameters that get an argument of their own."""
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        named = {name: each for name, each in self._parameters.items() if each.kind not in variadic}
        return {name: each for name, each in named.items() if name not in self._options}


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
