import pytest

from swiftplug.plugin import ContextType
from swiftplug_plugins_example.loss_scale import Digits


@pytest.mark.parametrize(
    ("context", "parts", "weights"),
    [
        ("48/2 = 24 clips", ["48", "/", "2", " = ", "24", " clips"], [3, 1, 3, 1, 3, 1]),
        ("no number", ["no number"], [1]),
        ("7", ["7"], [3]),
        ("", [""], [1]),
        ("共3个²", ["共", "3", "个²"], [1, 3, 1]),
    ],
)
def test_digits_weigh_more(context: str, parts: list[str], weights: list[float]) -> None:
    assert Digits(weight=3).get_loss_scale(context, ContextType.RESPONSE, True, query="?") == (parts, weights)


@pytest.mark.parametrize(("context_type", "weight"), [(ContextType.SUFFIX, 1.0), (ContextType.OTHER, 0.0)])
def test_only_responses_and_their_suffixes_train(context_type: ContextType, weight: float) -> None:
    assert Digits().get_loss_scale("12 apples", context_type, False) == (["12 apples"], [weight])
