import pytest

from swiftplug.plugin import InferRequest
from swiftplug_plugins_example.orm import LastNumber
from swiftplug_plugins_example.prm import FreshSteps


def answered(*answers: str) -> list[InferRequest]:
    question = {"role": "user", "content": "How many?"}
    return [InferRequest(messages=[question, {"role": "assistant", "content": answer}]) for answer in answers]


def test_a_step_that_repeats_is_worth_nothing() -> None:
    requests = answered("2 + 2 = 4\n\n2 + 2  = 4\nSo 4.\n2 + 2 = 4", "")
    assert FreshSteps()(requests) == [[1.0, 0.0, 1.0, 0.0], []]


@pytest.mark.parametrize(
    ("answer", "truth", "reward"),
    [
        ("48/2=24 and 48-24", "#### 24", 1.0),
        (r"so \boxed{1,234}.", "A: 1234", 1.0),
        ("it is -3", 3, 0.0),
        ("it is -3", -3, 1.0),
        ("18.50 dollars", "18.5", 1.0),
        ("18.51 dollars", "18.5", 0.0),
        ("I do not know", "7", 0.0),
        ("7", None, 0.0),
    ],
)
def test_the_last_number_decides(answer: str, truth: object, reward: float) -> None:
    assert LastNumber()(answered(answer), [truth]) == [reward]


def test_tolerance_and_order() -> None:
    assert LastNumber(tolerance=0.1)(answered("3.05", "9", "4"), ["3", "8", "4"]) == [1.0, 0.0, 1.0]
