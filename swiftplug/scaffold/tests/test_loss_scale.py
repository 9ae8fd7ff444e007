import pytest

from swiftplug.plugin import ContextType
from swiftplug.scaffold.package.loss_scale import LastLine


@pytest.mark.parametrize(
    ("answer", "parts"), [("2 + 2\n= 4\nSo 4.", ["2 + 2\n= 4\n", "So 4."]), ("4", ["", "4"]), ("", ["", ""])]
)
def test_the_last_line_counts_more(answer: str, parts: list[str]) -> None:
    found, weights = LastLine(weight=3).get_loss_scale(answer, ContextType.RESPONSE, True, query="2 + 2?")
    assert (found, weights) == (parts, [1, 3])


def test_questions_do_not_train() -> None:
    assert LastLine().get_loss_scale("2 +\n2?", ContextType.OTHER, True) == (["2 +\n2?"], [0])
