"""What fits the contract of each kind, and the error for what does not."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from swiftplug.errors import ContractError
from swiftplug.plugin import ORM, PRM, Environment, LossScale, PreferenceTask, Rows, Task, TokenLoss, Tuner
from swiftplug.plugin.registry.contracts import check_contract


class Callback(TrainerCallback): ...


class Duck:
    def on_step_end(self, args: Any, state: Any, control: Any) -> None: ...


class Weighs(LossScale):
    def __init__(self, weight: float) -> None: ...

    def get_loss_scale(self, context: Any, context_type: Any, is_last_round: Any, *, query: Any = None) -> Any: ...


class WeighsWithoutQuery:
    def get_loss_scale(self, context: Any, context_type: Any, is_last_round: Any) -> Any: ...


class Chunked(TokenLoss):
    def token_loss(self, logits: Any, targets: Any) -> Any: ...


class NotChunked(TokenLoss): ...


class LossClass:
    def __call__(self, outputs: Any, labels: Any) -> Any: ...


class ModuleLoss(torch.nn.Module):
    def forward(self, outputs: Any, labels: Any) -> Any: ...


class Judge:
    generate = True

    def __call__(self, predictions: Any, references: Any) -> Any: ...


class OldTuner(Tuner):
    """As SWIFT 3.0 has it: no `state_dict` of its own."""

    @staticmethod
    def prepare_model(args: Any, model: Any) -> Any: ...
    @staticmethod
    def save_pretrained(model: Any, save_directory: Any, safe_serialization: bool = True, **kwargs: Any) -> None: ...
    @staticmethod
    def from_pretrained(model: Any, model_id: Any, **kwargs: Any) -> Any: ...


class UnsavedTuner(Tuner):
    @staticmethod
    def prepare_model(args: Any, model: Any) -> Any: ...
    @staticmethod
    def from_pretrained(model: Any, model_id: Any, **kwargs: Any) -> Any: ...


class BoundTunerMethods(OldTuner):
    def prepare_model(self, args: Any, model: Any) -> Any: ...  # type: ignore[override]


class ClassMethodTuner(OldTuner):
    @classmethod
    def prepare_model(cls, args: Any, model: Any, *, rank: int) -> Any: ...  # type: ignore[override]


class Steps(PRM):
    def __call__(self, infer_requests: Any, **kwargs: Any) -> Any: ...


class StepsWithoutTruths:
    def __call__(self, infer_requests: Any) -> Any: ...


class Answers(ORM):
    async def __call__(self, infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any: ...  # type: ignore[override]


class NoAnswers(ORM): ...


class MsSwift(ORM):
    def __call__(self, completions: Any, solution: Any, **kwargs: Any) -> Any: ...  # type: ignore[override]


class Unnamed(ORM):
    def __call__(self, **kwargs: Any) -> Any: ...  # type: ignore[override]


class Rated(Task):
    rows = Rows.RATED

    def loss(self, model: Any, batch: Any) -> Any: ...


class LossElsewhere(Task):
    rows = Rows.ANSWERS
    kinds = frozenset({"loss"})


class Objective(PreferenceTask): ...


class Room(Environment):
    def step(self, messages: Any) -> Any: ...


class NarrowRoom(Environment):
    def step(self) -> Any: ...  # type: ignore[override]


def task(**attributes: Any) -> type[Rated]:
    return type("Rated", (Rated,), attributes)


def factory(*, k: int = 3) -> tuple[Any, None]: ...  # type: ignore[empty-body]


def two(a: Any, b: Any, *, option: int) -> Any: ...


def three(a: Any, b: Any, c: Any) -> Any: ...


FITS: list[tuple[str, Any]] = [
    ("task", Rated),
    ("task", LossElsewhere),
    ("task", task(rows=Rows.LABELLED, head="sequence")),
    ("task", task(kinds={"loss_scale", "metric"}, weights="any", head="token", num_labels=2)),
    ("callback", Callback),
    ("callback", Callback()),
    ("callback", lambda args: Callback()),
    ("loss", two),
    ("loss", lambda outputs, labels, loss_scale=None, num_items_in_batch=None: 0),
    ("loss", lambda outputs, labels, *, loss_scale, num_items_in_batch: 0),
    ("loss", lambda outputs, labels, loss_scale: 0),
    ("loss", lambda *args, **kwargs: 0),
    ("loss", partial(three, c=1)),
    ("loss", Chunked),
    ("loss", LossClass),
    ("loss", LossClass()),
    ("loss", ModuleLoss()),
    ("loss_scale", Weighs),
    ("loss_scale", Weighs(1.0)),
    ("loss_scale", LossScale),
    ("metric", (lambda prediction: {}, None)),
    ("metric", (lambda prediction: {}, lambda logits, labels: 0)),
    ("metric", factory),
    ("metric", Judge),
    ("metric", Judge()),
    ("optimizer", three),
    ("optimizer", lambda args, model, dataset, **options: 0),
    ("tools", two),
    ("tuner", OldTuner),
    ("tuner", OldTuner()),
    ("tuner", ClassMethodTuner),
    ("prm", Steps),
    ("orm", Answers),
    ("orm", lambda infer_requests, ground_truths: 0),
    ("orm", lambda *args, **kwargs: 0),
    ("orm", lambda completions: 0),
    ("orm", lambda prompts, completions, answer, *, option=3, **kwargs: 0),
    ("orm", MsSwift),
    ("orm", MsSwift()),
    ("prm", lambda completions, solution, **kwargs: 0),
    ("model", lambda args: 0),
    ("model", "org/model"),
    ("dataset", lambda *, rows=3: []),
    ("environment", Room),
]


@pytest.mark.parametrize(("kind", "plugin"), FITS)
def test_fits(kind: str, plugin: Any) -> None:
    check_contract(kind, plugin)


REFUSED: list[tuple[str, Any, str]] = [
    ("task", Duck, "the class Duck, expected a subclass of swiftplug.plugin.Task"),
    ("task", Task, "Task that does not define loss"),
    ("task", Objective, "does not define pair_loss"),
    ("task", task(rows=None), "has rows None, expected Rows.TEXT or Rows.ANSWERS or Rows.PAIRS"),
    ("task", task(rows="rated"), "has rows 'rated', expected Rows.TEXT"),
    ("task", task(rows=Rows.PROMPTS), r"has rows <Rows.PROMPTS: 'prompts'>, expected Rows.TEXT"),
    (
        "task",
        task(kinds={"tuner"}),
        "has 'tuner' as its kinds; choose from: engine, environment, loss, loss_scale, metric, orm, prm",
    ),
    ("task", task(kinds={"metric", "losses"}), "has 'losses' as its kinds; did you mean 'loss'"),
    ("task", task(weights="some"), "has 'some' as its weights; choose from: any, binary"),
    ("task", task(head="tokens"), "has 'tokens' as its head; did you mean 'token'"),
    ("task", task(head="token"), "has the head 'token' without num_labels, expected how many numbers it gives"),
    ("callback", Duck, "the class Duck, expected a subclass of transformers.TrainerCallback"),
    ("callback", Duck(), "an instance of Duck"),
    ("callback", lambda: Callback(), r"signature \(\), expected \(args\)"),
    ("loss", lambda labels: 0, r"signature \(labels\), expected \(outputs, labels, loss_scale=..., num_items"),
    ("loss", three, r"signature \(a, b, c\).*missing a required argument: 'c'"),
    ("loss", 3, r"is int 3, expected a callable \(outputs, labels"),
    ("loss", NotChunked, r"NotChunked that does not define token_loss\(logits, targets\)"),
    ("loss", Duck, r"Duck that does not define __call__\(outputs, labels"),
    ("loss_scale", WeighsWithoutQuery, r"get_loss_scale\(self, context, context_type, is_last_round\).*'query'"),
    ("loss_scale", Duck, "does not define get_loss_scale"),
    ("metric", lambda prediction: {}, "is a function, expected a pair"),
    ("metric", lambda k=5: (None, None), "or a function of keyword-only options that returns one"),
    ("metric", (1, None), r"a compute that is int 1, expected a callable \(eval_prediction\)"),
    ("metric", (lambda prediction: {}, lambda logits: 0), r"signature preprocess\(logits\)"),
    ("metric", (lambda prediction: {},), "expected a pair"),
    ("optimizer", two, r"signature \(a, b, \*, option\), expected \(args, model, dataset\)"),
    ("optimizer", torch.optim.SGD, "the class SGD that does not define __call__"),
    ("tools", factory, r"expected \(tool_names, tool_descs\)"),
    ("tuner", UnsavedTuner, r"does not define save_pretrained\(model, save_directory, state_dict=..."),
    ("tuner", BoundTunerMethods, r"prepare_model\(args, model\) as a static method"),
    ("tuner", two, "a function that does not define prepare_model"),
    ("prm", StepsWithoutTruths, "'ground_truths'"),
    ("orm", NoAnswers, r"does not define __call__\(infer_requests, ground_truths\)"),
    ("orm", two, "has the first parameter 'a', expected 'infer_requests', or 'completions' or 'prompts'"),
    ("orm", lambda completion_ids, **kwargs: 0, "has the first parameter 'completion_ids', expected 'infer_requests'"),
    ("orm", lambda solution, completions: 0, "has the first parameter 'solution'"),
    ("orm", lambda completions, /: 0, "has no parameter that has a name, expected 'infer_requests'"),
    ("orm", Unnamed, "has no parameter that has a name, expected 'infer_requests'"),
    ("prm", two, "has the first parameter 'a', expected 'infer_requests'"),
    ("model", lambda: 0, r"expected \(args\)"),
    ("dataset", two, r"expected \(\)"),
    (
        "environment",
        Duck,
        "the class Duck, expected a subclass of swiftplug.plugin.Environment, of which each candidate",
    ),
    ("environment", Room(), "an instance of Room, expected a subclass"),
    ("environment", Environment, r"Environment that does not define step\(messages\)"),
    ("environment", NarrowRoom, r"signature step\(self\), expected step\(self, messages\)"),
]


@pytest.mark.parametrize(("kind", "plugin", "cause"), REFUSED)
def test_refused(kind: str, plugin: Any, cause: str) -> None:
    with pytest.raises(ContractError, match=cause) as caught:
        check_contract(kind, plugin)
    assert "\n" not in str(caught.value)


def test_checking_calls_nothing() -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("called")

    class Never:
        def __init__(self, required: int) -> None:
            raise AssertionError("made")

        __call__: Callable[..., Any] = never

    for kind in ("loss", "optimizer", "tools", "orm", "prm", "dataset"):
        check_contract(kind, never)
        check_contract(kind, Never)
