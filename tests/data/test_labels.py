"""Labels of rows for classification: what they are, which numbers they become, and which are refused."""

import json
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from swiftplug.builtin.tasks.classification import SequenceClassification
from swiftplug.data.labels import LabelledData, number_labels
from swiftplug.data.read.conversation import RowError, RowOrigin
from swiftplug.data.read.tasks import to_conversations
from swiftplug.errors import UserError
from swiftplug.plugin import Rows


def read(label: Any, line: int = 1, name: str = "train.jsonl") -> dict[str, str]:
    [conversation] = to_conversations({"text": "A text.", "label": label}, RowOrigin(name, line), Rows.LABELLED)
    assert conversation.columns == {}
    return conversation.facts


def dataset(labels: list[Any], name: str = "train.jsonl") -> Dataset:
    return Dataset.from_list([{**read(label, line, name), "length": 9} for line, label in enumerate(labels, 1)])


def number(train: list[Any], evaluation: list[Any] | None = None, **options: Any) -> LabelledData:
    held = None if evaluation is None else dataset(evaluation, "test.jsonl")
    return number_labels(dataset(train), held, SequenceClassification(**options))


def labels_of(data: Dataset) -> list[Any]:
    return [each.tolist() for each in data.with_format("numpy")["label"][:]]


def test_names_are_numbered_in_the_order_of_the_alphabet() -> None:
    found = number(["pos", "neg", "neutral", "pos"], ["neutral"])
    assert found.labels == (("neg", "neutral", "pos"), "single_label_classification")
    assert (labels_of(found.train), found.eval and labels_of(found.eval)) == ([2, 0, 1, 2], [1])
    assert found.notes == ["labels: 3 classes: neg (1), neutral (1), pos (2)"]


def test_numbers_count_from_0_to_the_highest() -> None:
    found = number([2, 0, 2, 0])
    assert found.labels.names == ("0", "1", "2")
    assert found.notes == ["labels: 3 classes: 0 (2), 1 (0), 2 (2)", "labels: no training row has 1"]
    assert number(["2", "0", "2", "0"]).labels == found.labels  # as a CSV file has them
    assert number(["007", "0"]).labels.names == ("0", "007")  # no numeral


def test_lists_are_several_labels() -> None:
    found = number([["b", "a"], [], ["c"], '["a"]'])
    assert found.labels == (("a", "b", "c"), "multi_label_classification")
    assert labels_of(found.train) == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert found.train.with_format("numpy")[0]["label"].dtype == np.float32
    assert labels_of(number([[1], [0, 1]]).train) == [[0, 1], [1, 1]]


def test_floats_are_numbers_to_predict_and_so_are_whole_ones_on_request() -> None:
    for found in (number([0.5, 3, 1.25]), number(["0.5", "3", "1.25"])):
        assert found.labels == (("LABEL_0",), "regression")
        assert found.notes == ["labels: numbers from 0.5 to 3 (regression)"]
        assert labels_of(found.train) == [0.5, 3, 1.25]
    assert labels_of(number([1, 5], problem="regression").train) == [1, 5]
    assert labels_of(number([1.0, 0.0], [1.0], problem="single").train) == [1, 0]


def test_the_task_may_name_the_classes() -> None:
    found = number(["b", "a"], ["c"], labels=["c", "b", "a"])
    assert (found.labels.names, labels_of(found.train)) == (("c", "b", "a"), [1, 2])
    assert found.eval is not None and labels_of(found.eval) == [0]
    assert labels_of(number([5, 1, 3], labels=[1, 3, 5]).train) == [2, 0, 1]
    assert number([1, 0], labels=["no", "yes"]).labels.names == ("no", "yes")
    assert number([True, False]).labels.names == ("false", "true")


@pytest.mark.parametrize(
    ("train", "evaluation", "options", "message"),
    [
        (["a", 3], None, {}, r"train.jsonl:2: `label` is a whole number \(3\), but text \(\"a\"\) at train.jsonl:1"),
        ([["a"], []], ["a"], {}, r"test.jsonl:1: `label` is text \(\"a\"\), but a list of texts"),
        (["a", "b"], [["a"]], {}, r"test.jsonl:1: `label` is a list of texts \(\[\"a\"\]\), but text"),
        (["a", "b"], ["bb"], {}, r"test.jsonl:1: `label` \"bb\" is a class that no training row has; did you mean 'b'"),
        ([0, 1, 2, 0], [3], {}, "test.jsonl:1: `label` 3 is a class that no training row has"),
        ([0, -1, 1], None, {}, "train.jsonl:2: `label` -1 is out of range: classes by number count from 0"),
        ([0, 94110], None, {}, "train.jsonl:2: `label` 94110 is out of range.* 2 training rows cannot"),
        (["1e999", "2.5"], None, {}, "train.jsonl:1: `label` 1e999 is too large"),
        (["2.5"], ["9" * 5000], {}, "test.jsonl:1: `label` 9{60} is too large; the largest is 3.4e.38"),
        (["a", "a"], None, {}, 'labels: "a" is the only class of the training rows'),
        ([[], []], None, {}, "no training row has a class"),
        (["a", "b"], None, {"labels": ["a", "c"]}, 'train.jsonl:2: `label` "b" is none of task.labels'),
        ([0, 2], None, {"labels": ["a", "c"]}, "train.jsonl:2: `label` 2 is none of task.labels"),
        (["a", "b"], None, {"problem": "regression"}, r"`label` is text .* does not fit task.problem: regression"),
        ([0.5, 1.0], None, {"problem": "single"}, "train.jsonl:1: `label` 0.5 is no class number"),
        ([0.5, 1.0], None, {"labels": ["a", "b"]}, "task.labels: names classes"),
        (["a", "b"], None, {"labels": ["a"]}, "task.labels: found .* expected two classes or more"),
    ],
)
def test_what_does_not_fit_is_refused(train: Any, evaluation: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        number(train, evaluation, **options)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (None, "no label"),
        ("  ", "no label"),
        (float("nan"), "not a finite number"),
        (1e39, "not a finite number: it is 1e.39; the largest is 3.4e.38"),
        (10**400, "not a finite number"),
        ({"a": 1}, "neither a class nor a number"),
        (["a", 1], "neither one of texts nor one of whole numbers"),
        ([0.0, 1.0], "neither one of texts nor one of whole numbers"),
        ([0, 1, 0], "has one twice"),
    ],
)
def test_a_row_with_no_usable_label_is_left_out(label: Any, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        read(label)


def test_labels_are_kept_as_they_are_written() -> None:
    assert json.loads(read("sehr gut ☀")["label"]) == "sehr gut ☀"
