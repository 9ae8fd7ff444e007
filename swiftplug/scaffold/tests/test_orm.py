import pytest

from swiftplug.plugin import InferRequest
from swiftplug.scaffold.package.orm import SameLastLine


@pytest.mark.parametrize(
    ("answer", "reference", "reward"),
    [
        ("2 + 2 = 4\nSo 4.", "So 4.", 1),
        ("4", "5", 0),
        ("4\n", "2 + 2\n 4", 1),
        ("", "", 0),
        ("4", None, 0),
        ("A", "a", 0),
    ],
)
def test_the_last_line_decides(answer: str, reference: str | None, reward: float) -> None:
    request = InferRequest([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": answer}])
    assert SameLastLine()([request], [reference]) == [reward]


def test_case_may_be_ignored() -> None:
    assert SameLastLine(ignore_case=True)([InferRequest([{"role": "assistant", "content": "YES"}])], ["yes"]) == [1]
