import re

import pytest

from swiftplug_plugins_example.dataset import backwards


def words(**options: int) -> list[str]:
    found = []
    for question, answer in backwards(**options)["messages"]:
        match = re.fullmatch(r"Spell ([a-z]+) backwards\.", question["content"])
        assert match
        word = match[1]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert answer["content"] == word[::-1]
        found.append(word)
    return found


def test_rows_are_right_and_no_two_are_alike() -> None:
    made = words(size=500, min_length=2, max_length=4)
    assert len(set(made)) == 500
    assert {len(word) for word in made} == {2, 3, 4}


def test_the_seed_decides_and_a_smaller_set_is_the_start_of_a_larger() -> None:
    assert words(size=5) == words(size=20)[:5]
    assert words(size=5, seed=1) != words(size=5)


def test_more_words_than_there_are_is_an_error() -> None:
    assert sorted(words(size=26, min_length=1, max_length=1)) == list("abcdefghijklmnopqrstuvwxyz")
    for size in (0, 27):
        with pytest.raises(ValueError, match=rf"size is {size}, but there are 26 words of 1 to 1 letters"):
            backwards(size=size, min_length=1, max_length=1)
