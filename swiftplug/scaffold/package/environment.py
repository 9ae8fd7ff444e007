"""An environment: says when an answer is wrong, and lets the model try again."""

from collections.abc import Sequence

from swiftplug.plugin import Environment, InferRequest, Message


class SecondAttempt(Environment):
    """Compares the last line of an answer with that of the row's reference; the sooner it is right, the better.

    Args:
        attempts: How often the model may answer.
    """

    # The parameters are the plugin's options; they are checked against their annotations.
    def __init__(self, attempts: int = 2) -> None:
        self.attempts = attempts

    def reset(self, row: InferRequest) -> None:
        """Begin an episode. Each candidate has an instance of its own, so what it remembers is kept in `self`."""
        self.expected = _last_line(str(row.get("reference", "")))
        self.wrong = 0
        self.is_right = False

    def step(self, messages: Sequence[Message]) -> list[Message] | None:
        """Answer the model's turn, the last of the messages; None ends the episode."""
        self.is_right = _last_line(messages[-1]["content"]) == self.expected
        self.wrong += not self.is_right
        if self.is_right or self.wrong == self.attempts:
            return None
        return [{"role": "user", "content": "That is not right. Try again."}]

    def reward(self) -> float:
        """The reward of the episode; an environment without this method leaves it to ORMs."""
        return self.is_right / (1 + self.wrong)


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
