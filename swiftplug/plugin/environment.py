"""The contract of environments, which answer what a model writes, so that a candidate takes several turns."""

from collections.abc import Sequence
from typing import Any

from swiftplug.plugin.rewards import InferRequest, Unscored

Message = dict[str, Any]
"""A message of a conversation: `role` and `content`, texts both, and perhaps `name`."""


class Environment:
    """Base class of environments: tools, a game, a user. Each candidate has an instance of its own.

    The parameters of `__init__` are the options of the plugin, except `weight`: that is the weight of its reward.

    Only what the model writes trains, not what the environment answers. Run again with the same row and the same
    answers it must reply the same: random numbers are seeded by the row, and instances share nothing that changes.

    A message with the role `tool` has the role `user` where the chat template has no role `tool`, and is written as the
    run's tools format writes results.

    Example:
        >>> class GuessNumber(Environment):
        ...     def reset(self, row):
        ...         self.number, self.found = int(row["number"]), False
        ...
        ...     def step(self, messages):
        ...         guess = messages[-1]["content"].strip()
        ...         self.found = guess == str(self.number)
        ...         return None if self.found else [{"role": "user", "content": "No. Guess again."}]
        ...
        ...     def reward(self):
        ...         return float(self.found)
    """

    def reset(self, row: InferRequest) -> Sequence[Message] | None:
        """Begin an episode; called once, before the model's first turn.

        Args:
            row: The messages of the prompt, and the other columns of the row; as `reference` the right answer as text,
                None if there is none.

        Returns:
            Messages that are put behind the prompt's, the same for all candidates of a row; None for none.
        """
        return None

    def step(self, messages: Sequence[Message]) -> Sequence[Message] | None:
        """Answer the model's turn. A turn that is cut off at the token limit is not answered: it ends the episode.

        Args:
            messages: The whole conversation, the model's turn last. If the row has tools, that has the calls in it, in
                the run's tools format, as `tool_calls` too: `[{"type": "function", "function": {"name": ...,
                "arguments": {...}}}]`.

        Returns:
            The messages that answer it, which the model then continues; None if the episode ends.
        """
        raise NotImplementedError

    def reward(self) -> "float | Unscored | None":
        """The reward of the episode; called once, after its end.

        Returns:
            A reward that counts beside those of the ORMs; `Unscored` if it could not be had, which leaves the candidate
            out; None if it gives none.
        """
        return None
