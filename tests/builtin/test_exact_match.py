"""The exact-match metric, on answers that a person has judged."""

import math

import pytest

from swiftplug.plugin.registry import PluginChoice, Registry


def resolve(**options):
    return Registry.discover().resolve("metric", PluginChoice(name="exact_match", options=options), "--metric").bound


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        (r"Step 1: 1 + 1 = 2" + "\n" + r"\boxed{2}", r"\boxed{2}", True),
        (r"another way: \boxed{ 2 }", r"so it is \boxed{2}", True),
        (r"\boxed{3}", r"\boxed{2}", False),
        (r"first \boxed{2}, no, \boxed{3}", r"\boxed{3}", True),
        (r"first \boxed{3}, no, \boxed{2}", r"\boxed{3}", False),
        (r"\boxed{\frac{1}{2}}", r"\boxed{\frac{1}{2}}", True),
        (r"\boxed{\frac{1}{3}}", r"\boxed{\frac{1}{2}}", False),
        (r"\boxed{\{1, 2\}}", r"\boxed{\{1, 2\}}", True),
        (r"\boxed{[0, 1\}} and \boxed{1", r"\boxed{[0, 1\}}", True),
        (r"\boxed{2", r"\boxed{2}", False),
        ("2", r"\boxed{2}", False),
        ("", r"\boxed{}", False),
        (r"\boxed{}", r"\boxed{}", True),
        # reasoning is no answer
        (r"<think>\boxed{2}</think>I do not know.", r"\boxed{2}", False),
        (r"<think>\boxed{3}</think>\boxed{2}", r"\boxed{2}", True),
        (r"<think>\boxed{2}", r"\boxed{2}", False),
        (r"\boxed{3}?</think>\boxed{2}", r"<think>\boxed{3}</think>\boxed{2}", True),
        (r"<think>\boxed{3}</think>2", r"<think>\boxed{3}</think>2", True),
        ("Paris", " Paris\n", True),
        ("paris", "Paris", False),
        (r"\boxed{Paris}", "Paris", False),
        ("", "", True),
    ],
)
def test_right_and_wrong(prediction, reference, right):
    assert resolve().compute([prediction], [reference]) == {"exact_match": float(right)}


def test_the_share_of_right_answers():
    predictions = [r"\boxed{1}", r"\boxed{2}", "three", r"\boxed{4}"]
    references = [r"\boxed{1}", r"\boxed{20}", "three", r"\boxed{5}"]
    assert resolve().compute(predictions, references) == {"exact_match": 0.5}


def test_nothing_to_compare_is_not_a_score():
    assert math.isnan(resolve().compute([], [])["exact_match"])


def test_answers_and_references_must_pair_up():
    with pytest.raises(ValueError, match="zip"):
        resolve().compute(["1", "2"], ["1"])


def test_it_asks_for_generated_answers_of_a_length():
    assert resolve().generate
    assert resolve(max_new_tokens=7).max_new_tokens == 7
