"""A plugin that keeps its contract passes `check_plugin`; one that does not is told what to change."""

import re
import signal
import sys
import time
from functools import partial
from typing import Any

import pytest
from datasets import Dataset
from transformers import TrainerCallback

from swiftplug.errors import UserError
from swiftplug.testing import ContractBroken, check_plugin


def test_an_installed_plugin_is_checked_by_name() -> None:
    check_plugin("loss", "swiftplug:focal", gamma=1.0)


def test_a_dataset_may_be_streamed() -> None:
    def streamed():  # type: ignore[no-untyped-def]
        rows = [{"prompt": f"{number}?", "completion": "yes"} for number in range(2)]
        return Dataset.from_list(rows).to_iterable_dataset()

    check_plugin("dataset", streamed)


def test_the_message_names_the_plugin() -> None:
    def per_row(outputs, labels):  # type: ignore[no-untyped-def]
        return outputs.logits.mean((1, 2))

    with pytest.raises(ContractBroken, match=r"loss 'per_row' returned a tensor of shape \(3,\), expected a scalar"):
        check_plugin("loss", per_row)


def test_a_plugin_that_exits_is_broken() -> None:
    def gives_up(infer_requests, ground_truths):  # type: ignore[no-untyped-def]
        sys.exit("no key")

    with pytest.raises(ContractBroken, match=r"^orm 'gives_up' raised SystemExit: no key"):
        check_plugin("orm", gives_up)


def test_a_plugin_that_hangs_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(infer_requests, ground_truths):  # type: ignore[no-untyped-def]
        while True:
            try:
                time.sleep(30)
            except Exception:
                continue

    monkeypatch.setattr("swiftplug.testing.check._SECONDS", 0.2)
    left, handler = signal.getitimer(signal.ITIMER_REAL)[0], signal.getsignal(signal.SIGALRM)
    place = rf"{re.escape(__file__)}:{waits.__code__.co_firstlineno + 3}"
    with pytest.raises(
        ContractBroken, match=rf"^orm 'waits' has not ended after 0.2 s, at {place} \(for 14 answers\)$"
    ):
        check_plugin("orm", waits)
    # The timer of pytest-timeout, or none, goes on.
    assert left - 20 < signal.getitimer(signal.ITIMER_REAL)[0] <= left
    assert signal.getsignal(signal.SIGALRM) == handler


def test_a_pair_and_a_partial_are_called_by_their_function() -> None:
    def accuracy(eval_prediction):  # type: ignore[no-untyped-def]
        return 0.5

    with pytest.raises(ContractBroken, match=r"^metric 'accuracy' returned a float, expected a dict"):
        check_plugin("metric", (accuracy, None))
    with pytest.raises(ContractBroken, match=r"^tools 'len' has the wrong signature"):
        check_plugin("tools", partial(len))


@pytest.mark.parametrize(
    ("kind", "plugin", "options", "words"),
    [
        ("los", "focal", {}, "there is no kind 'los'; did you mean 'loss'"),
        (None, "focal", {}, "there is no kind None; choose from: callback, "),
        ([], "focal", {}, r"there is no kind \[\]; choose from: callback, "),
        ("loss", "foccal", {}, "check_plugin: there is no loss 'foccal'; did you mean 'focal'"),
        ("loss", "focal", {"gama": 2}, "loss 'focal' takes no option 'gama'; did you mean 'gamma'"),
        ("orm", "length", {}, r"orm 'length': needs the option 'max_chars': check_plugin\('orm', ..., max_chars=...\)"),
        (
            "loss",
            "focal",
            {"columns": {"a": 1}},
            "columns: only an orm, a prm or an environment reads them, not a loss",
        ),
    ],
)
def test_what_cannot_be_checked_is_told_from_what_is_broken(
    kind: Any, plugin: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        check_plugin(kind, plugin, **options)


def test_a_reward_gets_the_columns_it_needs() -> None:
    def hard(completions, difficulty, **kwargs):  # type: ignore[no-untyped-def]
        return [float(value) for value in difficulty]

    with pytest.raises(UserError, match="orm 'hard': needs the column 'difficulty'"):
        check_plugin("orm", hard)
    check_plugin("orm", hard, columns={"difficulty": 3})


def test_a_callback_may_refuse_runs_with_evaluation_or_those_without() -> None:
    def without(args):  # type: ignore[no-untyped-def]
        if args.eval_dataset:
            raise UserError("is for runs without evaluation")
        return TrainerCallback()

    def refuses_all(args):  # type: ignore[no-untyped-def]
        raise UserError("is for no run")

    check_plugin("callback", without)
    with pytest.raises(UserError, match="callback 'refuses_all': is for no run"):
        check_plugin("callback", refuses_all)
