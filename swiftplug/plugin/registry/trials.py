"""Calls plugins for real, on tiny input and without a network, and checks what they return.

Engines, environments, models, datasets, tuners and callbacks are not called: they may download or load anything.
"""

import inspect
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, NoReturn
from unittest.mock import patch

from pydantic import BaseModel

from swiftplug.errors import ContractError, UserError
from swiftplug.plugin.arguments import RunArguments
from swiftplug.plugin.loss import IGNORED_LABEL, ContextType
from swiftplug.plugin.online import Drawn, OnlineTask
from swiftplug.plugin.registry.declared import declared_options
from swiftplug.plugin.registry.options import BoundMetric, bind, check_options
from swiftplug.plugin.registry.returns import (
    check_estimate,
    check_loss,
    check_metrics,
    check_optimizer,
    check_reward,
    check_rewards,
    check_step_ends,
    check_task_loss,
    check_weights,
)
from swiftplug.plugin.registry.scorers import REFERENCE_NAMES, BoundScorer
from swiftplug.plugin.rewards import InferRequest
from swiftplug.plugin.task import Batch, Rows, SequenceLogps, Task, TaskModel, TokenLogps, row_count

_CONTEXT = "Thought: 2 + 2 is 4.\nAction: add\nAction Input: {}\n\\boxed{4}"
_TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}


ON_ANY_INPUT = ("loss", "loss_scale", "metric", "tools")
"""The kinds of which a trial has all that a run passes: what one of them raises is its own fault."""


class NoNetworkError(ConnectionError):
    """A plugin that is tried has asked for the network."""


class _NoConfig(BaseModel):
    """The config of no run."""


def import_libraries() -> None:
    """Import what trials use: a time limit would interrupt an import, and what is imported by half works no more."""
    import transformers

    for name in ("EvalPrediction", "LlamaForCausalLM", "LlamaForSequenceClassification", "TrainingArguments"):
        getattr(transformers, name)


def try_out(kind: str, name: str, plugin: Any) -> None:
    """Call a plugin that fits its contract, unless it is of a kind that is not called.

    Raises:
        UserError: It needs an option or a column.
        ContractError: It returns something else than its contract says.
        Exception: Whatever it raises on this input.
    """
    if kind not in _TRIALS:
        return
    with _offline():
        try:
            options = check_options({}, declared_options(kind, plugin))
        except ContractError as error:
            raise UserError(str(error)) from error
        _TRIALS[kind](bind(kind, name, plugin, options))


@contextmanager
def _offline() -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise NoNetworkError("there is no network in a check")

    with patch.object(socket.socket, "connect", refuse), patch.object(socket, "getaddrinfo", refuse):
        yield


def _try_loss(loss: Callable[..., Any]) -> None:
    import torch
    from transformers.modeling_outputs import CausalLMOutput

    labels = torch.tensor([[IGNORED_LABEL, 1, 2, 3], [IGNORED_LABEL, 4, 5, IGNORED_LABEL]])
    outputs = CausalLMOutput(logits=torch.linspace(-1, 1, 2 * 4 * 8).reshape(2, 4, 8).requires_grad_())
    optional = {"loss_scale": torch.ones(2, 4), "num_items_in_batch": torch.tensor(5)}
    named = inspect.signature(loss).parameters
    value = check_loss(loss(outputs, labels, **{name: each for name, each in optional.items() if name in named}))
    if not torch.isfinite(value):
        raise ContractError(f"returned {value.item()}, expected a finite number")


def _try_loss_scale(loss_scale: Any) -> None:
    for context, kind in ((_CONTEXT, ContextType.RESPONSE), ("<|im_end|>\n", ContextType.SUFFIX)):
        check_weights(loss_scale.get_loss_scale(context, kind, True, query="What is 2 + 2?"), context, kind)


def _try_task(task: Task) -> None:
    import torch

    if "loss" in task.kinds:  # whose plugin computes the loss
        return
    conversations = 2 if task.rows in (Rows.PAIRS, Rows.RATED) else 1
    ids = torch.arange(conversations * 2 * 5).reshape(-1, 5) % 7 + 1
    labels = ids % 2 if task.rows is Rows.STEPS else ids.clone()
    labels[:, :2] = IGNORED_LABEL
    facts: dict[str, Any] = {
        "rating": torch.tensor([True, False]),
        "label": torch.tensor([0, 1]),
        "margin": torch.ones(2),
    }
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "length": torch.tensor([5, 5])}
    if isinstance(task, OnlineTask):
        trains, zeros = labels != IGNORED_LABEL, torch.zeros(labels.shape)
        facts |= {"reference_logps": zeros - 2, "values": zeros}
        drawn = Drawn(torch.tensor([[1.0, 0.0]]), trains, zeros, zeros - 2, zeros - 2, zeros, lambda tensor: tensor)
        facts |= check_estimate(task.estimate(drawn), trains)
    loss = check_task_loss(task.loss(_TinyModel(task), {**batch, **facts}), task.counts({**batch, **facts}))
    for name, part in loss.sums.items():
        if not torch.isfinite(part):
            raise ContractError(f"returned {part.item()} as the part {name!r} of a loss, expected a finite number")


class _TinyModel(TaskModel):
    """A small random model with the head of a task; it is its own reference, scaled."""

    def __init__(self, task: Task) -> None:
        import torch
        import transformers

        head = {"language": "CausalLM", "sequence": "SequenceClassification", "token": "TokenClassification"}[task.head]
        config = _tiny_config()
        config.num_labels = task.num_labels or 2
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model: Any = getattr(transformers, f"LlamaFor{head}")(config)
        self.needs_reference = task.needs_reference

    def outputs(self, batch: Batch) -> Any:
        return self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    def sequence_logps(self, batch: Batch, conversations: Any = None) -> list[SequenceLogps]:
        targets = batch["labels"][:, 1:]
        trained = targets != IGNORED_LABEL
        logps = self.outputs(batch).logits[:, :-1].log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
        rows, sums = row_count(batch), (logps * trained).sum(dim=1)
        references: Any = (sums.detach() * 0.9).split(rows) if self.needs_reference else [None] * (len(sums) // rows)
        columns = zip(sums.split(rows), trained.sum(dim=1).split(rows), references, strict=True)
        answers = [SequenceLogps(*each) for each in columns]
        return answers if conversations is None else [answers[number] for number in conversations]

    def token_logps(self, batch: Batch) -> TokenLogps:
        import torch

        trains = torch.nn.functional.pad(batch["labels"][:, 1:] != IGNORED_LABEL, (1, 0))
        before = torch.nn.functional.pad(self.outputs(batch).logits.log_softmax(-1)[:, :-1], (0, 0, 1, 0))
        logps = before.gather(2, batch["labels"].clamp(min=0)[..., None])[..., 0] * trains
        entropies = -(before.exp() * before).sum(dim=-1).detach() * trains
        return TokenLogps(logps, trains, entropies, before[..., 0] * trains)

    def mean(self, values: Any) -> Any:
        return values.detach().mean()


def _try_metric(metric: BoundMetric) -> None:
    import torch
    from transformers import EvalPrediction

    if metric.generate:
        result: Any = metric.compute(["4", "five is right"], ["4", "5"])
    else:
        labels = torch.tensor([[IGNORED_LABEL, 1, 2, 3], [IGNORED_LABEL, 4, 5, IGNORED_LABEL]])
        logits = torch.linspace(-1, 1, 2 * 4 * 8).reshape(2, 4, 8)
        predictions = metric.preprocess(logits, labels) if metric.preprocess else logits.argmax(dim=-1)
        if not isinstance(predictions, torch.Tensor | tuple | list):
            raise ContractError(f"has a preprocess that returned a {type(predictions).__name__}, expected a tensor")
        arrays = (
            predictions.numpy() if isinstance(predictions, torch.Tensor) else tuple(it.numpy() for it in predictions)
        )
        result = metric.compute(EvalPrediction(predictions=arrays, label_ids=labels.numpy()))
    check_metrics(result)


def _try_optimizer(make: Callable[..., Any]) -> None:
    from transformers import LlamaForCausalLM, TrainingArguments

    with TemporaryDirectory() as folder:
        args = RunArguments()
        args.config, args.num_training_steps = _NoConfig(), 10
        args.training_args = TrainingArguments(output_dir=folder, use_cpu=True, report_to=[])
        check_optimizer(make(args, LlamaForCausalLM(_tiny_config()), [{"input_ids": [1, 2]}]))


def _tiny_config() -> Any:
    from transformers import LlamaConfig

    sizes: Any = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    return LlamaConfig(**sizes, num_attention_heads=2, pad_token_id=0)


def _try_tools(tools_format: Callable[..., Any]) -> None:
    text = tools_format(["add"], [_TOOL])
    if not isinstance(text, str | None):
        raise ContractError(f"returned a {type(text).__name__}, expected text, or None for the chat template's own")


def _try_scorer(scorer: BoundScorer) -> None:
    if columns := [name for name in scorer.needed_columns if name not in REFERENCE_NAMES]:
        raise UserError(f"needs the column {columns[0]!r}")
    messages = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": r"It is \boxed{4}."}]
    for each in check_rewards(scorer([InferRequest(messages), InferRequest(messages)], ["4", "4"]), 2):
        reward = check_reward(scorer.kind, each)
        if scorer.places_steps and isinstance(reward, list):
            check_step_ends(scorer.step_ends(messages[-1]["content"]), len(reward), messages[-1]["content"])


_TRIALS: dict[str, Callable[[Any], None]] = {
    "task": _try_task,
    "loss": _try_loss,
    "loss_scale": _try_loss_scale,
    "metric": _try_metric,
    "optimizer": _try_optimizer,
    "tools": _try_tools,
    "prm": _try_scorer,
    "orm": _try_scorer,
}
