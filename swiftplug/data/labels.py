"""The labels of rows for classification as numbers, which they become when those of all rows are known."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from swiftplug.data.read.tasks import LARGEST
from swiftplug.errors import UserError, nearest
from swiftplug.formatting import format_count, format_number
from swiftplug.plugin.task import Labels, Task

NAMES_SHOWN = 12  # in a line

_NUMERAL = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")  # as JSON has it: 007 is a name

# The sorts of labels.
_TEXT, _BOOL, _INTEGER, _NUMBER = "text", "true or false", "a whole number", "a number"
_NAMES, _NUMBERS, _NOTHING = "a list of texts", "a list of whole numbers", "an empty list"
_LISTS = (_NAMES, _NUMBERS, _NOTHING)

_PROBLEM_TYPES: dict[str, Any] = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}

Label = str | bool | int | float | list[str] | list[int]


class LabelledData(NamedTuple):
    """The examples of a run, with labels as numbers.

    Attributes:
        labels: What the numbers of the model's head stand for.
        train: Examples with `label`: int64 for one class, float32 for a number, a list of a float32 for each class (1
            where it applies) for several.
        eval: Likewise.
        notes: What the labels are, as lines to print.
    """

    labels: Labels
    train: Dataset
    eval: Dataset | None
    notes: list[str]


def number_labels(train: Dataset, evaluation: Dataset | None, task: Task, known: Labels | None = None) -> LabelledData:
    """Decide by all labels what they are (one class, several, or a number), and replace them by numbers.

    Classes by name are numbered in the order of their sorted names, or of the task's `labels`; classes by number count
    from 0 to the highest of the training rows. Texts that are all numerals, as in a CSV file, are numbers.

    Args:
        train: Examples with the facts of `Rows.LABELLED` (see `to_conversations`): `label` as JSON, and `origin`.
        evaluation: Likewise.
        task: May have `problem` and `labels`.
        known: Those of a model that is trained already, whose numbers are kept; None to decide by the rows.

    Raises:
        UserError: The labels are of two types or do not fit the task's options; one is out of range, or a class of the
            evaluation is none of the training rows; or all training rows have the same.
    """
    splits = [_Split(each) for each in (train, evaluation) if each is not None]
    sort = _sort_of_all(splits)
    problem = _problem(sort, task, splits, known)
    if problem == "regression":
        for split in splits:
            split.numbers = [np.float32(value) for value in split.values]
        values = splits[0].numbers
        labels = Labels(("LABEL_0",), _PROBLEM_TYPES[problem])
        low, high = (format_number(float(value)) for value in (min(values), max(values)))
        notes = [f"labels: numbers from {low} to {high} (regression)"]
    else:
        classes = _classes(splits, sort, task, known)
        places = {value: place for place, value in enumerate(classes)}
        several = problem == "multi"
        for split in splits:
            split.numbers = [_one_hot(value, places) if several else np.int64(places[value]) for value in split.values]
        names = tuple(map(str, task.labels)) if task.labels else tuple(map(_name, classes))
        labels = Labels(known.names if known else names, _PROBLEM_TYPES[problem])
        notes = [*_describe(splits[0], classes, names, several)]
    numbered = [split.numbered() for split in splits]
    return LabelledData(labels, numbered[0], numbered[1] if evaluation is not None else None, notes)


class _Split:
    """The labels of a split.

    Attributes:
        values: The label of each row.
        numbers: What becomes of it.
    """

    def __init__(self, examples: Dataset) -> None:
        self.examples = examples
        texts = examples["label"][:]
        parsed = {text: json.loads(text) for text in {*texts}}
        self.values: list[Any] = [parsed[text] for text in texts]
        self.numbers: list[Any] = []

    def origin(self, row: int) -> str:
        """The place of a row, as `file:line`."""
        return str(self.examples[row]["origin"])

    def each(self) -> Iterator[tuple[int, Any]]:
        """Each class of each row, with the number of the row."""
        for row, value in enumerate(self.values):
            for one in value if isinstance(value, list) else [value]:
                yield row, one

    def numbered(self) -> Dataset:
        """The examples with the numbers as labels."""
        return self.examples.remove_columns(["label", "origin"]).add_column("label", self.numbers)


def _sort_of_all(splits: Sequence[_Split]) -> str:
    """The one sort that all labels are of; numerals become numbers."""
    values = [value for split in splits for value in split.values]
    if all(isinstance(value, str) and _NUMERAL.fullmatch(value) for value in {*map(_hashable, values)}):
        for split in splits:
            for row, value in enumerate(split.values):
                if abs(float(value)) > LARGEST:
                    raise UserError(
                        f"{split.origin(row)}: `label` {value:.60} is too large; the largest is {LARGEST:.2g}"
                    )
            split.values = [json.loads(value) for value in split.values]
    first: dict[str, tuple[_Split, int]] = {}
    for split in splits:
        for row, value in enumerate(split.values):
            first.setdefault(_sort(value), (split, row))
    sorts = [*first]
    if {*sorts} == {_INTEGER, _NUMBER}:
        return _NUMBER
    if {_NAMES, _NUMBERS} & {*sorts}:
        sorts = [sort for sort in sorts if sort != _NOTHING]
    if len(sorts) > 1:
        (one, row), (other, other_row) = first[sorts[0]], first[sorts[1]]
        raise UserError(
            f"{other.origin(other_row)}: `label` is {sorts[1]} ({_shown(other.values[other_row])}), but {sorts[0]} "
            f"({_shown(one.values[row])}) at {one.origin(row)}; expected labels of one type"
        )
    return sorts[0]


def _problem(sort: str, task: Task, splits: Sequence[_Split], model: Labels | None) -> str:
    """What the rows are labelled with: `single`, `multi` or `regression`."""
    found = "multi" if sort in _LISTS else "regression" if sort == _NUMBER else "single"
    trained = {name: problem for problem, name in _PROBLEM_TYPES.items()}
    asked: str = task.problem or trained.get(model and model.problem_type, found)
    if asked == "single" and sort == _NUMBER:
        for split in splits:
            for row, value in enumerate(split.values):
                if not float(value).is_integer():
                    raise UserError(f"{split.origin(row)}: `label` {value} is no class number (task.problem: single)")
            split.values = [int(value) for value in split.values]
    elif asked != found and (asked, sort) != ("regression", _INTEGER):
        train = splits[0]
        raise UserError(
            f"{train.origin(0)}: `label` is {sort} ({_shown(train.values[0])}), which does not fit task.problem: "
            f"{asked}, but {found}"
        )
    if asked == "regression" and task.labels:
        raise UserError("task.labels: names classes, and these labels are numbers to predict (regression); drop it")
    return asked


def _classes(splits: Sequence[_Split], sort: str, task: Task, model: Labels | None) -> list[Any]:
    """The classes as the rows write them, in the order of their numbers."""
    train = splits[0]
    found = {value for _, value in train.each()}
    if not found:
        raise UserError("labels: no training row has a class, as each `label` is an empty list")
    if len(found) < 2 and model is None:
        raise UserError(f"labels: {_shown(*found)} is the only class of the training rows; expected two or more")
    by_number = sort in (_INTEGER, _NUMBERS, _NUMBER)
    classes: list[Any] = sorted(found)
    if task.labels:
        is_position = by_number and not all(isinstance(each, int) for each in task.labels)
        classes = [*range(len(task.labels))] if is_position else [*task.labels]
    elif model is not None:
        unnamed = model.names == Labels.unnamed(len(model.names)).names
        classes = [*range(len(model.names))] if by_number and unnamed else class_values(model.names)
    elif by_number:
        low, high = classes[0], classes[-1]
        if low < 0 or high >= len(train.values):
            row = next(row for row, value in train.each() if value in ({low} if low < 0 else {high}))
            raise UserError(
                f"{train.origin(row)}: `label` {low if low < 0 else high} is out of range: classes by number count "
                f"from 0, and {format_count(len(train.values), 'training row')} cannot have so many; name the classes "
                "by text or with task.labels, or set task.problem: regression to predict numbers"
            )
        classes = [*range(high + 1)]
    known = {*classes}
    for split in splits:
        for row, value in split.each():
            if value not in known and model is not None:
                close = nearest(value, model.names) if isinstance(value, str) else ""
                raise UserError(
                    f"{split.origin(row)}: `label` {_shown(value)} is a class that the model has not{close}"
                )
            if value not in known or (split is not train and value not in found and not task.labels and model is None):
                raise UserError(f"{split.origin(row)}: {_unknown(value, split is train, classes, task)}")
    return classes


def class_values(names: Sequence[str]) -> list[Any]:
    """The classes as rows write them: numbers, or true and false, where all names are such."""
    try:
        values = [json.loads(name) for name in names]
    except ValueError:
        return [*names]
    return values if {type(value) for value in values} in ({int}, {bool}) else [*names]


def _unknown(value: Any, is_train: bool, classes: Sequence[Any], task: Task) -> str:
    shown = f"`label` {_shown(value)}"
    close = nearest(value, [str(each) for each in classes]) if isinstance(value, str) else ""
    if task.labels:
        return f"{shown} is none of task.labels{close}"
    return f"{shown} is a class that no training row has{close}; task.labels names classes that training may lack"


def _describe(train: _Split, classes: Sequence[Any], names: Sequence[str], several: bool) -> Iterator[str]:
    """What the classes are, and which of them no training row has."""
    counts = Counter(value for _, value in train.each())
    counted = [f"{name} ({counts[value]:,})" for name, value in zip(names, classes, strict=True)]
    shown = counted[:NAMES_SHOWN] + ([f"{len(counted) - NAMES_SHOWN:,} more"] if len(counted) > NAMES_SHOWN else [])
    of = "any of " if several else ""
    yield f"labels: {of}{format_count(len(classes), 'class')}: {', '.join(shown)}"
    unused = [name for name, value in zip(names, classes, strict=True) if not counts[value]]
    if unused:
        shown = unused[:NAMES_SHOWN] + (["..."] if len(unused) > NAMES_SHOWN else [])
        yield f"labels: no training row has {', '.join(shown)}"


def _one_hot(value: Sequence[Any], places: Mapping[Any, int]) -> np.ndarray:
    row = np.zeros(len(places), np.float32)
    row[[places[each] for each in value]] = 1
    return row


def _sort(value: Label) -> str:
    if isinstance(value, list):
        return _NOTHING if not value else _NAMES if isinstance(value[0], str) else _NUMBERS
    if isinstance(value, bool):
        return _BOOL
    return _TEXT if isinstance(value, str) else _INTEGER if isinstance(value, int) else _NUMBER


def _hashable(value: Label) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _name(value: str | bool | int) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _shown(value: Label) -> str:
    return json.dumps(value, ensure_ascii=False)
