from swiftplug.plugin import InferRequest
from swiftplug.scaffold.package.environment import SecondAttempt

QUESTION = {"role": "user", "content": "2 + 2?"}


def play(environment: SecondAttempt, *answers: str) -> list[bool]:
    """Whether each answer is answered."""
    environment.reset(InferRequest([QUESTION], {"reference": "2 + 2 = 4\n4"}))
    return [environment.step([QUESTION, {"role": "assistant", "content": it}]) is not None for it in answers]


def test_a_wrong_answer_may_be_corrected() -> None:
    environment = SecondAttempt(attempts=3)
    assert play(environment, "5", "So\n4") == [True, False]
    assert environment.reward() == 0.5


def test_the_last_attempt_ends_the_episode() -> None:
    environment = SecondAttempt()
    assert play(environment, "5", "6") == [True, False]
    assert environment.reward() == 0
    assert play(environment, "4") == [False]
    assert environment.reward() == 1
