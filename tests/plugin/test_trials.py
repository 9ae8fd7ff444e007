"""What `list-plugins --check` finds by calling plugins on tiny input."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from swiftplug.cli.main import app
from swiftplug.errors import ContractError, UserError
from swiftplug.plugin import ORM, PRM, Estimator, LossScale, PolicyTask, PreferenceTask, Rows, Task, TaskLoss, Unscored
from swiftplug.plugin.registry.trials import try_out


class Parts(LossScale):
    def get_loss_scale(self, context: Any, context_type: Any, is_last_round: Any, **kwargs: Any) -> Any:
        return [context[:3], context[3:]], [1.0, 2]


class Lost(LossScale):
    def get_loss_scale(self, context: Any, context_type: Any, is_last_round: Any, **kwargs: Any) -> Any:
        return [context.strip(), ""], [1.0, 1.0]


class Unweighed(LossScale):
    def get_loss_scale(self, context: Any, context_type: Any, is_last_round: Any, **kwargs: Any) -> Any:
        return [context], []


class Negative(LossScale):
    def get_loss_scale(self, context: Any, context_type: Any, is_last_round: Any, **kwargs: Any) -> Any:
        return [context], [-1.0]


class Async(ORM):
    async def __call__(self, completions: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return [1.0, None]


class NeedsOptions(ORM):
    def __init__(self, server: str) -> None:
        raise AssertionError("made")

    def __call__(self, infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any: ...


class Steps(PRM):
    def __call__(self, infer_requests: Any, **kwargs: Any) -> Any:
        return [[1.0, 0.5], Unscored("none")]


class Tensors(PRM):
    def __call__(self, infer_requests: Any, **kwargs: Any) -> Any:
        return [torch.tensor([1.0, 0.5]), torch.tensor(1.0)]


class Texts(PRM):
    def __call__(self, infer_requests: Any, **kwargs: Any) -> Any:
        return [[1.0, "good"], 1.0]


class Hinge(PreferenceTask):
    def pair_loss(self, chosen: Any, rejected: Any) -> Any:
        return torch.relu(1 - chosen.ratios + rejected.ratios)


class Summed(Hinge):
    def pair_loss(self, chosen: Any, rejected: Any) -> Any:
        return super().pair_loss(chosen, rejected).sum()


class NotANumber(Hinge):
    def pair_loss(self, chosen: Any, rejected: Any) -> Any:
        return (rejected.logps - chosen.logps - 100).log()


class WithoutGradient(Hinge):
    def pair_loss(self, chosen: Any, rejected: Any) -> Any:
        return chosen.reference - rejected.reference


class Uncounted(Task):
    rows = Rows.RATED

    def loss(self, model: Any, batch: Any) -> Any:
        [answers] = model.sequence_logps(batch, [0])
        return TaskLoss({"row": answers.logps.sum()})


class Bare(Task):
    rows = Rows.LABELLED
    head = "sequence"

    def loss(self, model: Any, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(model.outputs(batch).logits, batch["label"])


class Overwriting(Bare):
    def loss(self, model: Any, batch: Any) -> Any:
        loss = super().loss(model, batch)
        return TaskLoss({"rows": loss}, {"eval_loss": loss})


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("called")


def mean(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return outputs.logits.float().pow(2).sum() / num_items_in_batch


def no_pair(*, k: int = 1) -> Any:
    return k / 2


def needs_column(completions: Any, tests: Any, **kwargs: Any) -> Any:
    raise AssertionError("called")


@pytest.mark.parametrize(
    ("kind", "plugin"),
    [
        ("loss", mean),
        ("task", Hinge),
        ("loss_scale", Parts),
        ("metric", (lambda prediction: {"n": float(prediction.predictions.size)}, None)),
        ("metric", (lambda prediction: {"n": prediction.predictions.mean()}, lambda logits, labels: logits.amax(-1))),
        ("optimizer", lambda args, model, dataset: (torch.optim.SGD(model.parameters(), args.learning_rate), None)),
        ("optimizer", lambda args, model, dataset: (None, None)),
        ("tools", lambda tool_names, tool_descs: tool_descs[0]["function"]["name"]),
        ("orm", Async),
        ("orm", lambda infer_requests, ground_truths: torch.ones(2)),
        ("prm", Steps),
        ("prm", Tensors),
        *((kind, never) for kind in ("engine", "model", "dataset", "tuner", "callback")),
    ],
)
def test_what_does_as_its_contract_says(kind: str, plugin: Any) -> None:
    try_out(kind, "mine", plugin)


@pytest.mark.parametrize(
    ("plugin", "cause"), [(NeedsOptions, "needs the option 'server'"), (needs_column, "needs the column 'tests'")]
)
def test_what_cannot_be_called_without_more_is_not_tried(plugin: Any, cause: str) -> None:
    with pytest.raises(UserError, match=cause):
        try_out("orm", "mine", plugin)


def online(estimate: Any) -> type[PolicyTask]:
    """A task that draws, of whose `estimate` something is wrong."""
    return type("Online", (PolicyTask,), {"estimate": estimate})


def estimating(advantages: Any) -> type[PolicyTask]:
    """A task whose estimator has something wrong."""
    estimator = type("Own", (Estimator,), {"__call__": advantages})()
    return type("Estimating", (PolicyTask,), {"estimator": estimator})


@pytest.mark.parametrize(
    ("kind", "plugin", "cause"),
    [
        ("task", online(lambda self, drawn: None), "returned None from estimate, expected a dict with 'advantages'"),
        ("task", online(lambda self, drawn: {"advantage": drawn.rewards}), "returned 'advantage' from estimate, exp"),
        ("task", online(lambda self, drawn: {"advantages": [1.0, 0.0]}), r"returned 'advantages' : \[1.0, 0.0\] from"),
        ("task", online(lambda self, drawn: {"advantages": drawn.rewards}), r"'advantages' of shape \(1, 2\) from est"),
        (
            "task",
            online(lambda self, drawn: {"advantages": drawn.rewards[0], "other": drawn.rewards}),
            r"returned 'other' of shape \(1, 2\) from estimate, expected .* first dimension is of the 2 candidates",
        ),
        ("task", online(lambda self, drawn: {"advantages": drawn.rewards[0].long()}), r"shape \(2,\) and torch.int64"),
        ("task", estimating(lambda self, rewards, drawn: rewards.T), r"got a tensor of shape \(2, 1\) from its est"),
        ("task", estimating(lambda self, rewards, drawn: rewards.tolist()), r"got \[\[1.0, 0.0\]\] from its estimator"),
        ("task", Summed, r"returned a tensor of shape \(\) from pair_loss, expected one loss per pair"),
        ("task", NotANumber, "returned nan as the part 'pairs' of a loss, expected a finite number"),
        ("task", WithoutGradient, "returned a loss without a gradient"),
        ("task", Uncounted, "returned the part 'row' of a loss that it does not count; did you mean 'rows'?"),
        ("task", Bare, "returned a Tensor from loss, expected a TaskLoss with sums"),
        ("task", Overwriting, "returned 'eval_loss' to be logged, which the run itself logs; give it another name"),
        ("metric", no_pair, "is float 0.5, expected a pair"),
        ("loss", lambda outputs, labels: outputs.logits, r"a tensor of shape \(2, 4, 8\), expected a scalar tensor"),
        ("loss", lambda outputs, labels: outputs.logits.sum() * float("nan"), "returned nan, expected a finite number"),
        ("loss", lambda outputs, labels: 0.5, "returned a float, expected a scalar tensor"),
        ("loss_scale", Lost, "its parts do not join to the suffix they were cut from"),
        ("loss_scale", Unweighed, "found 1 parts and 0 weights"),
        ("loss_scale", Negative, "found the weight -1.0"),
        ("metric", (lambda prediction: 0.5, None), "returned a float, expected a dict of numbers"),
        ("metric", (lambda prediction: {"acc": "high"}, None), "returned 'acc': 'high', expected a name and a number"),
        ("metric", (lambda prediction: {}, lambda logits, labels: None), "a preprocess that returned a NoneType"),
        (
            "optimizer",
            lambda args, model, dataset: torch.optim.SGD(model.parameters(), 1.0),
            "returned a SGD, expected",
        ),
        ("optimizer", lambda args, model, dataset: ("adamw", None), "returned a str first"),
        ("tools", lambda tool_names, tool_descs: tool_descs, "returned a list, expected text"),
        ("orm", lambda completions: ["good", "bad"], "returned the reward 'good', expected a finite number"),
        ("orm", lambda completions, solution: [*solution, "5"], "returned 3 rewards for 2 candidates"),
        ("orm", lambda completions: [1.0], "returned 1 reward for 2 candidates"),
        ("orm", lambda completions: 1.0, "returned a float, expected a list of 2 rewards"),
        ("orm", lambda infer_requests, ground_truths: [float("nan")] * 2, "returned the reward nan"),
        ("orm", lambda infer_requests, ground_truths: [[1.0], [1.0]], r"returned the reward \[1.0\]"),
        ("prm", Texts, r"returned the reward \[1.0, 'good'\], expected a finite number, or a list of one per step"),
        ("loss", lambda outputs, labels: outputs.logits.sum().detach(), "returned a tensor without a gradient"),
        ("optimizer", lambda args, model, dataset: (None, object()), "returned a scheduler without its optimizer"),
        (
            "optimizer",
            lambda args, model, dataset: (torch.optim.SGD(model.parameters(), 1.0), "cosine"),
            "returned a str second, expected a learning rate scheduler",
        ),
        ("metric", (lambda prediction: {"acc": torch.ones(2)}, None), "returned 'acc': tensor.*expected a name and a"),
    ],
)
def test_what_does_not(kind: str, plugin: Any, cause: str) -> None:
    with pytest.raises(ContractError, match=cause) as error:
        try_out(kind, "mine", plugin)
    assert "\n" not in str(error.value)


def test_a_plugin_is_called_without_a_network() -> None:
    def remote(infer_requests: Any, ground_truths: Any) -> Any:
        socket.create_connection(("127.0.0.1", 9))

    with pytest.raises(ConnectionError, match="no network in a check"):
        try_out("orm", "remote", remote)
    assert socket.socket.connect.__name__ == "connect"


def test_the_list_says_what_is_broken_and_what_was_not_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from swiftplug.plugin import orms, register_loss_func\n"
        "orms['texts'] = lambda completions: ['good'] * len(completions)\n"
        "orms['raises'] = lambda completions: 1 / 0\n"
        "orms['right'] = lambda completions: [1.0] * len(completions)\n"
        "def remote(completions):\n"
        "    import socket\n"
        "    try:\n"
        "        socket.create_connection(('127.0.0.1', 9))\n"
        "    except OSError as error:\n"
        "        raise RuntimeError('no judge') from error\n"
        "orms['remote'] = remote\n"
        "register_loss_func('raises', lambda outputs, labels: 1 / 0)\n"
        "register_loss_func('judged', lambda outputs, labels: remote([]))\n"
    )
    options = ["--check", "--json", "--plugin", str(file)]

    def listed(kind: str) -> dict[str, tuple[str, str]]:
        assert app(["list-plugins", *options, "--kind", kind], standalone_mode=False) == 1
        plugins = json.loads(capsys.readouterr().out)
        return {it["name"]: (it["status"], it["cause"]) for it in plugins if it["distribution"] == "file"}

    orms, losses = listed("orm"), listed("loss")
    assert orms["texts"] == ("broken", "returned the reward 'good', expected a finite number")
    # It may well need a column that it does not name.
    assert orms["raises"][0] == "fits"
    assert orms["raises"][1].startswith("raised ZeroDivisionError: division by zero (")
    assert orms["raises"][1].endswith(") when it was called on tiny input")
    assert orms["right"] == ("fits", "")
    assert orms["remote"] == losses["judged"] == ("fits", "not tried: it needs a network")
    assert losses["raises"][0] == "broken"
    assert losses["raises"][1].startswith("raised ZeroDivisionError: division by zero (")
