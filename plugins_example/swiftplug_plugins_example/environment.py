"""An environment: twenty questions' smaller sister, a number to be found by guesses."""

import re
from collections.abc import Sequence

from swiftplug.plugin import Environment, InferRequest, Message, UserError


class GuessNumber(Environment):
    """Answers each guess of a hidden number with "higher" or "lower"; the fewer guesses, the higher the reward.

    The number is the row's `reference`: a last assistant message, or a column `reference` or `answer`.

    Args:
        guesses: How many guesses there are. Parameters of `__init__` are a plugin's options: `--set
            environment.guesses=5`.
    """

    def __init__(self, guesses: int = 8) -> None:
        self.left = self.guesses = guesses
        self.is_found = False

    def reset(self, row: InferRequest) -> list[Message]:
        """Begin an episode: each candidate has an instance of its own. What is returned follows the prompt."""
        try:
            self.number = int(str(row.get("reference", "")))
        except ValueError as error:
            raise UserError(f"guess_number: the reference {row.get('reference')!r} is no whole number") from error
        return [{"role": "user", "content": f"You have {self.guesses} guesses."}]

    def step(self, messages: Sequence[Message]) -> list[Message] | None:
        """Answer the model's turn, the last of the messages; None ends the episode."""
        self.left -= 1
        numbers = re.findall(r"-?\d+", messages[-1]["content"])
        guess = int(numbers[-1][:9]) if numbers else None
        self.is_found = guess == self.number
        if self.is_found or not self.left:
            return None
        if guess is None:
            return [{"role": "user", "content": "Guess a number."}]
        return [{"role": "user", "content": "higher" if guess < self.number else "lower"}]

    def reward(self) -> float:
        """The reward of the episode: 1 for the first guess, 0 if the number was not found."""
        return (self.left + 1) / self.guesses if self.is_found else 0.0
