import pytest

from swiftplug.scaffold.package.metric import WordF1


def test_it_is_the_mean_over_answers() -> None:
    # "a cat" and "a black cat": precision 2/2, recall 2/3, so F1 is 4/5. "no" and "yes" share nothing.
    assert WordF1()(["a cat", "no"], ["a black cat", "yes"]) == {"word_f1": pytest.approx((0.8 + 0) / 2)}


def test_a_word_counts_as_often_as_it_occurs() -> None:
    assert WordF1()(["no no"], ["no"]) == {"word_f1": pytest.approx(2 / 3)}
