"""The arithmetic problems: every step is right, the question has all the numbers, and the splits do not overlap."""

import re
from fractions import Fraction

import pytest

from swiftplug.errors import UserError
from swiftplug.plugin.registry import PluginChoice, Registry

SETTINGS = [{}, {"min_steps": 3, "max_steps": 5}, {"max_number": 99}, {"min_steps": 1, "max_steps": 1}]
GAINS, LOSSES = ("buys", "finds", "gets"), ("loses", "sells", "gives")


def problems(**options):
    plugin = Registry.discover().resolve("dataset", PluginChoice(name="arithmetic", options=options), "--dataset")
    return list(plugin.bound())


def parse(row):
    """The steps of an answer as (left, operator, right, result), and what is in the box."""
    *steps, box = row["messages"][1]["content"].split("\n")
    parsed = []
    for index, step in enumerate(steps, start=1):
        match = re.fullmatch(rf"Step {index}: (\d+) ([+-]) (\d+) = (\d+)", step)
        assert match, step
        parsed.append((int(match[1]), match[2], int(match[3]), int(match[4])))
    assert row["solution"] == box
    return parsed, int(re.fullmatch(r"\\boxed\{(\d+)\}", box)[1])


@pytest.mark.parametrize("options", SETTINGS)
def test_every_step_is_right_and_goes_on_from_the_last(options):
    for row in problems(size=400, **options):
        steps, boxed = parse(row)
        for left, operator, right, result in steps:
            assert Fraction(result) == Fraction(left) + (Fraction(right) if operator == "+" else -Fraction(right))
            assert result > 0
        assert [step[3] for step in steps[:-1]] == [step[0] for step in steps[1:]]
        assert boxed == steps[-1][3]


@pytest.mark.parametrize("options", SETTINGS)
def test_the_question_alone_gives_the_answer(options):
    for row in problems(size=400, **options):
        question = row["messages"][0]["content"]
        start, *events = re.findall(r"[^.]*\d+[^.]*\.", question)
        total = int(re.search(r"\d+", start)[0])
        for event in events:
            verb, number = re.search(r"(?:She|He) (\w+) (\d+)", event).groups()
            assert verb in GAINS + LOSSES
            total += int(number) if verb in GAINS else -int(number)
        assert total == parse(row)[1]


def test_the_people_and_things_of_a_question_fit_together():
    for row in problems(size=300):
        question = row["messages"][0]["content"]
        name, number, thing = re.match(r"(\w+) \w+ (\d+) (\w+)\.", question).groups()
        assert int(number) > 1
        *_, asked = question.split(". ")
        assert re.search(rf"\b{name}\b", asked)
        assert re.search(rf"\b{thing}\b", asked)
        assert len(set(re.findall(r"\b(She|He)\b", question))) == 1
        assert not re.search(rf"\b(from|to) {name}\b", question)


def test_no_calculation_is_in_both_splits():
    def calculations(split):
        return {
            row["messages"][1]["content"]
            for seed in (1, 2)
            for options in SETTINGS
            for row in problems(size=400, seed=seed, split=split, **options)
        }

    train, test = calculations("train"), calculations("test")
    assert len(test) > 200
    assert not train & test


def test_no_two_problems_are_alike():
    questions = [row["messages"][0]["content"] for row in problems(size=3000)]
    assert len(set(questions)) == 3000


def test_options_set_number_and_difficulty():
    rows = [parse(row)[0] for row in problems(size=300, min_steps=2, max_steps=4, max_number=7)]
    assert len(rows) == 300
    assert {len(steps) for steps in rows} == {2, 3, 4}
    assert max(max(steps[0][0], *(step[2] for step in steps)) for steps in rows) == 7


def test_the_seed_decides_which():
    assert problems(size=50, seed=3) == problems(size=50, seed=3)
    assert problems(size=50, seed=3) != problems(size=50, seed=4)
    assert problems(size=50, seed=3) == problems(size=80, seed=3)[:50]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"size": 0}, "size=0"),
        ({"min_steps": 3}, "min_steps=3"),
        ({"max_number": 1}, "max_number=1"),
        ({"size": 10**6, "max_steps": 1, "max_number": 2}, "different problems"),
        ({"split": "dev"}, "split"),
        ({"stepz": 2}, "max_steps"),
    ],
)
def test_what_makes_no_problems_is_an_error(options, word):
    with pytest.raises(UserError, match=word):
        problems(**options)
