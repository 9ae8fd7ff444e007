"""Calls plugins for real, on tiny input and without a network, and checks what they return.

Engines, models, datasets, tuners and callbacks are not called: they may download or load anything.
"""

import asyncio
import inspect
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from tempfile import TemporaryDirectory
from typing import Any, NoReturn
from unittest.mock import patch

from pydantic import BaseModel

from swiftplug.errors import UserError
from swiftplug.plugin.arguments import RunArguments
from swiftplug.plugin.loss import IGNORED_LABEL, ContextType
from swiftplug.plugin.registry.errors import ContractError
from swiftplug.plugin.registry.options import BoundMetric, bind, check_options, declared_options
from swiftplug.plugin.registry.scorers import BoundScorer
from swiftplug.plugin.rewards import InferRequest, Unscored

_CONTEXT = "Thought: 2 + 2 is 4.\nAction: add\nAction Input: {}\n\\boxed{4}"
_TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}


class _NoConfig(BaseModel):
    """The config of no run."""


def try_out(kind: str, name: str, plugin: Any) -> None:
    """Call a plugin that fits its contract, unless it needs options or is of a kind that is not called.

    Raises:
        ContractError: It returns something else than its contract says.
        Exception: Whatever it raises on this input.
    """
    if kind not in _TRIALS:
        return
    with _offline():
        try:
            bound = bind(kind, name, plugin, check_options({}, declared_options(kind, plugin)))
        except (ContractError, UserError):  # it needs options
            return
        _TRIALS[kind](bound)


@contextmanager
def _offline() -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ConnectionError("there is no network in a check")

    with patch.object(socket.socket, "connect", refuse), patch.object(socket, "getaddrinfo", refuse):
        yield


def _try_loss(loss: Callable[..., Any]) -> None:
    import torch
    from transformers.modeling_outputs import CausalLMOutput

    labels = torch.tensor([[IGNORED_LABEL, 1, 2, 3], [IGNORED_LABEL, 4, 5, IGNORED_LABEL]])
    outputs = CausalLMOutput(logits=torch.linspace(-1, 1, 2 * 4 * 8).reshape(2, 4, 8).requires_grad_())
    optional = {"loss_scale": torch.ones(2, 4), "num_items_in_batch": torch.tensor(5)}
    named = inspect.signature(loss).parameters
    value = loss(outputs, labels, **{name: each for name, each in optional.items() if name in named})
    if not isinstance(value, torch.Tensor) or value.ndim:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
        raise ContractError(f"returned a {type(value).__name__}{shape}, expected a tensor with one number")
    if not torch.isfinite(value):
        raise ContractError(f"returned {value.item()}, expected a finite number")


def _try_loss_scale(loss_scale: Any) -> None:
    for context, kind in ((_CONTEXT, ContextType.RESPONSE), ("<|im_end|>\n", ContextType.SUFFIX)):
        returned = loss_scale.get_loss_scale(context, kind, True, query="What is 2 + 2?")
        try:
            parts, weights = (list(each) for each in returned)
            joined = "".join(parts)
        except (TypeError, ValueError):
            raise ContractError(f"returned {returned!r:.60}, expected a list of texts and a list of weights") from None
        if joined != context or len(parts) != len(weights):
            found = f"{len(parts)} parts that join to {joined!r:.60}, and {len(weights)} weights"
            raise ContractError(f"returned {found}; expected parts that join to {context!r}, and a weight for each")
        if wrong := [each for each in weights if not isinstance(each, Real) or not 0 <= float(each) < math.inf]:
            raise ContractError(f"returned the weight {wrong[0]!r}, expected a finite number of at least 0")


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
    if not isinstance(result, dict):
        raise ContractError(f"returned a {type(result).__name__}, expected a dict of numbers")
    for name, value in result.items():
        if not isinstance(name, str) or not (isinstance(value, Real) or hasattr(value, "item")):
            raise ContractError(f"returned {name!r}: {value!r:.60}, expected a name and a number")


def _try_optimizer(make: Callable[..., Any]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    with TemporaryDirectory() as folder:
        args = RunArguments()
        args.config, args.num_training_steps = _NoConfig(), 10
        args.training_args = TrainingArguments(output_dir=folder, use_cpu=True, report_to=[])
        made = make(args, LlamaForCausalLM(config), [{"input_ids": [1, 2]}])
    if not isinstance(made, tuple) or len(made) != 2:
        raise ContractError(f"returned a {type(made).__name__}, expected a pair (optimizer, scheduler)")
    if not isinstance(made[0], torch.optim.Optimizer | None):
        raise ContractError(f"returned a {type(made[0]).__name__} first, expected a torch.optim.Optimizer or None")


def _try_tools(tools_format: Callable[..., Any]) -> None:
    text = tools_format(["add"], [_TOOL])
    if not isinstance(text, str | None):
        raise ContractError(f"returned a {type(text).__name__}, expected text, or None for the chat template's own")


def _try_scorer(scorer: BoundScorer) -> None:
    if scorer.needed_columns:
        return
    messages = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": r"It is \boxed{4}."}]
    returned = scorer([InferRequest(messages), InferRequest(messages)], ["4", "4"])
    if inspect.isawaitable(returned):
        returned = asyncio.run(_await(returned))
    if hasattr(returned, "tolist"):
        returned = returned.tolist()
    if not isinstance(returned, list | tuple) or len(returned) != 2:
        found = f"{len(returned)} rewards" if isinstance(returned, list | tuple) else f"a {type(returned).__name__}"
        raise ContractError(f"returned {found} for 2 answers, expected a list of 2")
    steps = [each for reward in returned for each in (reward if isinstance(reward, list | tuple) else [reward])]
    rewards = steps if scorer.kind == "prm" else returned
    for reward in rewards:
        is_number = isinstance(reward, Real) or hasattr(reward, "item")
        if not isinstance(reward, Unscored | None) and not (is_number and math.isfinite(float(reward))):
            raise ContractError(f"returned the reward {reward!r:.60}, expected a finite number")


async def _await(awaitable: Any) -> Any:
    return await awaitable


_TRIALS: dict[str, Callable[[Any], None]] = {
    "loss": _try_loss,
    "loss_scale": _try_loss_scale,
    "metric": _try_metric,
    "optimizer": _try_optimizer,
    "tools": _try_tools,
    "prm": _try_scorer,
    "orm": _try_scorer,
}
