import pytest

from swiftplug.plugin import InferRequest, UserError
from swiftplug_plugins_example.environment import GuessNumber

QUESTION = {"role": "user", "content": "Which number?"}


def play(environment: GuessNumber, *guesses: str) -> list[str | None]:
    """What the environment says to each guess; None where the episode ends."""
    assert environment.reset(InferRequest([QUESTION], {"reference": "42"}))[-1]["role"] == "user"
    replies = [environment.step([QUESTION, {"role": "assistant", "content": guess}]) for guess in guesses]
    return [reply[-1]["content"] if reply else None for reply in replies]


def test_guesses_are_answered_until_the_number_is_found() -> None:
    environment = GuessNumber(guesses=4)
    assert play(environment, "It is 30.", "Not 10 but 50?", "42") == ["higher", "lower", None]
    assert environment.reward() == 0.5


def test_the_first_guess_is_worth_most_and_the_last_may_be_wrong() -> None:
    environment = GuessNumber(guesses=2)
    assert play(environment, "42") == [None]
    assert environment.reward() == 1
    environment = GuessNumber(guesses=2)
    assert play(environment, "who knows", "9" * 5000) == ["Guess a number.", None]
    assert environment.reward() == 0


@pytest.mark.parametrize("reference", [None, "many"])
def test_a_row_without_a_number_is_one_line(reference: str | None) -> None:
    with pytest.raises(UserError, match=r"^guess_number: the reference .* is no whole number$"):
        GuessNumber().reset(InferRequest([QUESTION], {"reference": reference}))
