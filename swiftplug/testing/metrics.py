"""The contract of a metric."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import EvalPrediction
from transformers.trainer_pt_utils import EvalLoopContainer

from swiftplug.errors import ContractError, UserError
from swiftplug.plugin import IGNORED_LABEL
from swiftplug.plugin.registry import BoundMetric, LoadedPlugin
from swiftplug.plugin.registry.returns import check_metrics
from swiftplug.testing.inputs import TEXTS, RaisedError, number, on
from swiftplug.training.evaluation import predictions_of

_TEXT_PAIRS = (("4", "4"), ("It is five.", "5"), ("二加二等于四", "二加二等于四。"), ("", "4"), ("👍🏽", "👍"))
_ROWS, _LENGTH, _VOCABULARY = 6, 7, 9
_TOLERANCE = 1e-5

_Rows = tuple[torch.Tensor, torch.Tensor]  # logits and labels


def check(plugin: LoadedPlugin) -> None:
    """Compute it on several sets of rows, each in several batches and orders."""
    metric: BoundMetric = plugin.bound
    if metric.generate:
        _check_texts(metric)
        return
    refusals: list[Exception] = []
    for what, rows in _sorts_of_rows().items():
        try:
            whole = _evaluate(metric, rows, _ROWS, what)
        except (UserError, RaisedError) as error:  # it may be for rows of another sort
            refusals.append(error)
            continue
        _check_rows(metric, what, rows, whole)
        if not refusals:  # it is for tokens, whatever it makes of labels
            return
    if len(refusals) == len(_sorts_of_rows()):
        raise refusals[0]


def _sorts_of_rows() -> dict[str, _Rows]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, _VOCABULARY, (_ROWS, _LENGTH), generator=generator)
    for row in range(_ROWS):
        labels[row, : 1 + row % 3] = labels[row, _LENGTH - row % 2 :] = IGNORED_LABEL
    logits = torch.randn(_ROWS, _LENGTH, _VOCABULARY, generator=generator)
    logits[0, :-1] += 9 * torch.nn.functional.one_hot(labels[0, 1:].clamp(min=0), _VOCABULARY)  # one row is right
    classes = torch.randn(_ROWS, 3, generator=generator)
    return {
        "labelled tokens": (logits, labels),
        "one class per row": (classes, torch.tensor([0, 1, 2, 2, 1, 0])),
        "several classes per row": (classes, (torch.randn(_ROWS, 3, generator=generator) > 0).float()),
        "a number per row": (classes[:, :1], torch.linspace(-1, 2, _ROWS)),
    }


def _check_rows(metric: BoundMetric, what: str, rows: _Rows, whole: dict[str, float]) -> None:
    _check_finite(whole, what)
    for size in (1, 4):
        by = f"{what}, in batches of {size}"
        _check_equal(whole, _evaluate(metric, rows, size, by), f"in one batch, {{}} in batches of {size} rows")
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    other = _evaluate(metric, (rows[0][order], rows[1][order]), _ROWS, f"{what}, in another order")
    _check_equal(whole, other, "in one order of the rows, {} in another")
    _evaluate(metric, (rows[0][:1], rows[1][:1]), 1, f"one row of {what}")
    if rows[1].dim() == 2 and not rows[1].is_floating_point():
        unlabelled = rows[1].clone()
        unlabelled[2] = IGNORED_LABEL
        name = "a row without a trained token"
        with_such = _evaluate(metric, (rows[0], unlabelled), _ROWS, name)
        _check_finite(with_such, name)
        others = torch.tensor([0, 1, 3, 4, 5])
        without = _evaluate(metric, (rows[0][others], rows[1][others]), _ROWS, what)
        _check_equal(without, with_such, f"without, and {{}} with {name}")


def _evaluate(metric: BoundMetric, rows: _Rows, size: int, what: str) -> dict[str, float]:
    """What the metric gives, after batches have been joined as Trainer joins them."""
    logits, labels = rows
    kept, targets = (EvalLoopContainer(do_nested_concat=True, padding_index=-100) for _ in range(2))
    for start in range(0, len(labels), size):
        batch, batch_labels = logits[start : start + size].clone(), labels[start : start + size].clone()
        if labels.dim() == 2 and not labels.is_floating_point():  # a batch is as long as its longest row
            longest = int((batch_labels != IGNORED_LABEL).any(dim=0).nonzero().max()) + 1
            batch, batch_labels = batch[:, :longest].contiguous(), batch_labels[:, :longest].contiguous()
        with on(f"{what} (preprocess)"):
            predictions = (metric.preprocess or predictions_of)(batch, batch_labels)
            _check_kept(predictions, len(batch_labels))
        with on(f"{what} (joining what preprocess kept of each batch)"):
            kept.add(predictions)
            targets.add(batch_labels)
    with on(f"{what} (compute)"):
        prediction = EvalPrediction(predictions=kept.get_arrays(), label_ids=targets.get_arrays())
        return _checked(metric.compute(prediction))


def _check_kept(predictions: Any, rows: int) -> None:
    """Check that what preprocess returned can be joined with that of other batches: tensors with a row for each row."""
    tensors = predictions if isinstance(predictions, tuple | list) else [predictions]
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise ContractError(f"returned a {type(tensor).__name__} from preprocess, expected a tensor")
        if tensor.dim() == 0 or len(tensor) != rows:
            raise ContractError(
                f"returned a tensor of shape {tuple(tensor.shape)} from preprocess for {rows} rows, expected "
                f"({rows}, ...): Trainer joins batches along rows"
            )


def _check_texts(metric: BoundMetric) -> None:
    def compute(pairs: Sequence[tuple[str, str]], what: str) -> dict[str, float]:
        predictions, references = ([pair[index] for pair in pairs] for index in range(2))
        with on(what):
            result = _checked(metric.compute(predictions, references))
        if (predictions, references) != ([pair[0] for pair in pairs], [pair[1] for pair in pairs]):
            raise ContractError("changes the texts that it gets, which other metrics get too; work on a copy")
        return result

    whole = compute(_TEXT_PAIRS, "answers in several scripts")
    _check_finite(whole, "answers in several scripts")
    _check_equal(
        whole, compute(_TEXT_PAIRS[::-1], "answers in another order"), "in one order of the rows, {} in another"
    )
    _check_equal(whole, compute(_TEXT_PAIRS, "the same answers again"), "the first time, {} for the same answers again")
    for what, pair in {
        "an empty answer": ("", "4"),
        "an empty answer and reference": ("", ""),
        "one answer": ("4", "4"),
        **{f"{name} as an answer": (text, "4") for name, text in TEXTS.items()},
    }.items():
        result = compute([pair], what)
        _check_finite(result, what)
        if result.keys() != whole.keys():
            raise ContractError(
                f"returned {', '.join(result)} for {what}, and {', '.join(whole)} before; return the same names always"
            )


def _checked(returned: Any) -> dict[str, float]:
    """What compute returned, if it is numbers by names that an evaluation can have."""
    result = check_metrics(returned)
    if not result:
        raise ContractError("returned an empty dict, expected numbers by name")
    if "loss" in result:
        raise ContractError("returned the name 'loss', which is that of the evaluation's own loss; choose another")
    return result


def _check_finite(result: Mapping[str, float], what: str) -> None:
    for name, value in result.items():
        if not math.isfinite(value):
            raise ContractError(f"gives {name} = {value} for {what}; expected a finite number")


def _check_equal(one: Mapping[str, float], other: Mapping[str, float], how: str) -> None:
    """Compare two results; `how` continues the first number and has a place for the second."""
    for name, value in one.items():
        found = other.get(name, math.nan)
        same = math.isclose(value, found, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
        if not same and not (math.isnan(value) and math.isnan(found)):
            raise ContractError(
                f"gives {name} = {number(value)} {how.format(number(found))}; compute it from all labelled positions "
                "at once, not as a mean over batches, and leave out those whose label is -100"
            )
