"""One small broken plugin for each way of being wrong: the message says what was seen and what to change."""

import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.trainer_callback import ExportableState

from swiftplug.builtin.engines.transformers import TransformersEngine
from swiftplug.plugin import (
    IGNORED_LABEL,
    ORM,
    Answered,
    Completion,
    Engine,
    Environment,
    LossScale,
    OnlineTask,
    PreferenceTask,
    Rows,
    Task,
    TaskLoss,
    TokenLoss,
    Tuner,
    row_count,
)
from swiftplug.testing import ContractBroken, check_plugin

CASES: list[Any] = []


def broken(kind: str, words: str) -> Callable[[Any], Any]:
    """Mark a plugin as one that must be refused with these words; `...` stands for any."""

    def mark(plugin: Any) -> Any:
        CASES.append(pytest.param(kind, plugin, words, id=f"{kind} {plugin.__name__}"))
        return plugin

    return mark


# Losses


def tokens(outputs: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each position, 0 where there is no label, and where there is one."""
    targets = labels[:, 1:]
    losses = cross_entropy(outputs.logits[:, :-1].float().mT, targets.clamp(min=0), reduction="none")
    trained = targets != IGNORED_LABEL
    return losses * trained, trained


@broken("loss", "returned a float, expected a scalar tensor")
def as_float(outputs: Any, labels: Any) -> Any:
    return tokens(outputs, labels)[0].mean().item()


@broken("loss", "returned a tensor of shape (3,), expected a scalar tensor")
def per_row(outputs: Any, labels: Any) -> Any:
    return tokens(outputs, labels)[0].mean(dim=1)


@broken("loss", "returned a tensor without a gradient")
def detached(outputs: Any, labels: Any) -> Any:
    return tokens(outputs, labels)[0].mean().detach()


@broken("loss", "sends no gradient to the logits: it is 0 everywhere")
def constant(outputs: Any, labels: Any) -> Any:
    return 0 * tokens(outputs, labels)[0].sum() + 1


@broken("loss", "raised KeyError: 'targets' (...test_broken.py:...) for plain input")
def raises(outputs: Any, labels: Any) -> Any:
    return {}["targets"]


@broken("loss", "compares the logits at a position with the label of the same position... labels[:, 1:]")
def not_shifted(outputs: Any, labels: Any) -> Any:
    return cross_entropy(outputs.logits.float().mT, labels)


@broken("loss", "depends on the logits at row 0, position 0, although the next label is -100")
def all_positions(outputs: Any, labels: Any) -> Any:
    losses, trained = tokens(outputs, labels)
    return losses.sum() / trained.sum() + 1e-3 * outputs.logits.logsumexp(-1).square().mean()


@broken("loss", "changes with padding: ... without, ... with 3 padded columns; divide ... not by labels.numel()")
def by_all_positions(outputs: Any, labels: Any) -> Any:
    return tokens(outputs, labels)[0].mean()


@broken("loss", "changes with padding: ... with 2 rows without a label")
def by_rows(outputs: Any, labels: Any) -> Any:
    losses, trained = tokens(outputs, labels)
    return (losses.sum(dim=1) / trained.sum(dim=1).clamp(min=1)).mean()


@broken("loss", "is nan, expected a finite number (for a batch without a trained token)")
def mean_of_nothing(outputs: Any, labels: Any) -> Any:
    losses, trained = tokens(outputs, labels)
    return losses.sum() / trained.sum()


@broken("loss", "is inf, expected a finite number (for logits of up to ")
def log_of_softmax(outputs: Any, labels: Any) -> Any:
    targets = labels[:, 1:]
    trained = targets != IGNORED_LABEL
    chosen = outputs.logits[:, :-1].float().softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return -chosen[trained].log().sum() / trained.sum().clamp(min=1)


@broken("loss", "its gradient is not finite (for logits of up to ")
def root(outputs: Any, labels: Any) -> Any:
    losses, trained = tokens(outputs, labels)
    return (losses[trained].sqrt()).sum() / trained.sum().clamp(min=1)


@broken("loss", "loses precision: ... for bfloat16 logits")
def in_half(outputs: Any, labels: Any) -> Any:
    losses, trained = tokens(outputs, labels)
    shifted = losses.to(outputs.logits.dtype) + 1000  # rounds to whole numbers in bfloat16
    return ((shifted - 1000) * trained).sum().float() / trained.sum().clamp(min=1)


@broken("loss", "ignores num_items_in_batch: ... divide the sum over tokens by it")
def ignores_count(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    losses, trained = tokens(outputs, labels)
    return losses.sum() / trained.sum().clamp(min=1)


@broken("loss", "does not add up over micro-batches: ... for 3 rows, ... + ... for 2 and 1")
def mean_twice(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    losses, trained = tokens(outputs, labels)
    count = trained.sum().clamp(min=1)
    return losses.sum() / count * 12 / (count if num_items_in_batch is None else num_items_in_batch)


def weighted(outputs: Any, labels: Any, weights: Any, divisor: Any) -> Any:
    """The weighted sum over positions, divided by a number."""
    losses, trained = tokens(outputs, labels)
    return (losses * (trained if weights is None else weights)).sum() / (
        trained.sum().clamp(min=1) if divisor is None else divisor
    )


@broken("loss", "ignores loss_scale: ... multiply each token's loss by its weight, or drop the parameter")
def ignores_weights(outputs: Any, labels: Any, loss_scale: Any = None, num_items_in_batch: Any = None) -> Any:
    return weighted(outputs, labels, None, num_items_in_batch)


@broken("loss", "divides by the weights: ... not by loss_scale.sum()")
def normalised(outputs: Any, labels: Any, loss_scale: Any = None) -> Any:
    weights = None if loss_scale is None else loss_scale[:, 1:]
    return weighted(outputs, labels, weights, None if weights is None else weights.sum().clamp(min=1e-6))


@broken("loss", "is not linear in loss_scale")
def squared(outputs: Any, labels: Any, loss_scale: Any = None) -> Any:
    return weighted(outputs, labels, None if loss_scale is None else loss_scale[:, 1:] ** 2, None)


@broken("loss", "lays the weight of the label at position 5 on the logits at position 5, but those at 4 predict it")
def weights_not_shifted(outputs: Any, labels: Any, loss_scale: Any = None) -> Any:
    trained = labels[:, 1:] != IGNORED_LABEL
    return weighted(outputs, labels, None if loss_scale is None else loss_scale[:, :-1] * trained, None)


@broken("loss", "is ... without loss_scale and ... with weights of 1; None stands for weights of 1")
def none_is_a_half(outputs: Any, labels: Any, loss_scale: Any = None) -> Any:
    loss = weighted(outputs, labels, None if loss_scale is None else loss_scale[:, 1:], None)
    return loss / 2 if loss_scale is None else loss


@broken("loss", "changes the labels that it gets, which metrics read too")
def writes_labels(outputs: Any, labels: Any) -> Any:
    losses, trained = tokens(outputs, labels)
    labels[labels == IGNORED_LABEL] = 0
    return losses.sum() / trained.sum().clamp(min=1)


@broken("loss", "has the wrong signature (outputs, targets, weights), expected (outputs, labels")
def other_names(outputs: Any, targets: Any, weights: Any) -> Any:
    return tokens(outputs, targets)[0].mean()


@broken("loss", "depending on the positions beside it in token_loss; each must depend on its own logits")
class Centred(TokenLoss):
    def token_loss(self, logits: Any, targets: Any) -> Any:
        losses = cross_entropy(logits, targets, reduction="none")
        return losses - losses.mean() / 2


@broken("loss", "returned () from token_loss, expected one loss per position")
class Summed(TokenLoss):
    def token_loss(self, logits: Any, targets: Any) -> Any:
        return cross_entropy(logits, targets, reduction="sum")


# Loss scales


@broken("loss_scale", "its parts do not join to the response they were cut from: at character")
class Strips(LossScale):
    def get_loss_scale(self, context: str, context_type: Any, is_last_round: bool, **kwargs: Any) -> Any:
        return [context.strip()], [1.0]


@broken("loss_scale", "found the weight -1.0, expected a finite number of at least 0")
class Negative(LossScale):
    def get_loss_scale(self, context: str, context_type: Any, is_last_round: bool, **kwargs: Any) -> Any:
        return [context], [-1.0 if "action" in context.lower() else 1.0]


@broken("loss_scale", "found 2 parts and 1 weights")
class OneWeight(LossScale):
    def get_loss_scale(self, context: str, context_type: Any, is_last_round: bool, **kwargs: Any) -> Any:
        return [context[:1], context[1:]], [1.0]


@broken("loss_scale", "raised IndexError: ... for an empty text as a response")
class NeedsText(LossScale):
    def get_loss_scale(self, context: str, context_type: Any, is_last_round: bool, **kwargs: Any) -> Any:
        return [context], [float(context[0] != "<")]


@broken("loss_scale", "raised UnicodeEncodeError: ... for ...")
class AsciiOnly(LossScale):
    def get_loss_scale(self, context: str, context_type: Any, is_last_round: bool, **kwargs: Any) -> Any:
        return [context], [float(len(context.encode("ascii")) > 0)]


@broken("loss_scale", "raised error: ... for the signs of a pattern")
class Unescaped(LossScale):
    def get_loss_scale(self, context: str, context_type: Any, is_last_round: bool, **kwargs: Any) -> Any:
        return [context], [float(bool(re.match(context[:40], "So")) if "c[d" in context else 1)]


@broken("loss_scale", "gives every text the weight 0, so that nothing trains")
class NeverTrains(LossScale):
    def get_loss_scale(self, context: str, context_type: Any, is_last_round: bool, **kwargs: Any) -> Any:
        return [context], [float(context_type == "RESPONSE")]


@broken("loss_scale", "and then ...; let them depend on the arguments alone")
class Drawn(LossScale):
    def get_loss_scale(self, context: str, context_type: Any, is_last_round: bool, **kwargs: Any) -> Any:
        return [context], [random.random()]


@broken("loss_scale", "that does not define get_loss_scale")
class NoMethod:
    pass


# Tools formats


@broken("tools", "returned a list, expected text, or None")
def as_list(tool_names: Any, tool_descs: Any) -> Any:
    return [*tool_names]


@broken("tools", "raised KeyError: 'parameters' ... for a tool without parameters")
def needs_parameters(tool_names: Any, tool_descs: Any) -> Any:
    return "".join(f"{name}{desc['parameters']}" for name, desc in zip(tool_names, tool_descs, strict=True))


@broken("tools", "as an ASCII escape; use json.dumps(..., ensure_ascii=False)")
def escapes(tool_names: Any, tool_descs: Any) -> Any:
    return json.dumps(tool_descs)


@broken("tools", "leaves 'now' out of")
def first_only(tool_names: Any, tool_descs: Any) -> Any:
    return f"Use {tool_names[0]}." if tool_names[0] != "now" else "Use a tool."


@broken("tools", "changes the descriptions that it gets")
def pops(tool_names: Any, tool_descs: Any) -> Any:
    return "".join(f"{name}: {desc.pop('description', '')}" for name, desc in zip(tool_names, tool_descs, strict=True))


class Described:
    def __call__(self, tool_names: Any, tool_descs: Any) -> Any:
        return ", ".join(tool_names)


@broken("tools", "has format_calls alone, which is not used")
class CallsOnly(Described):
    def format_calls(self, calls: Any) -> Any:
        return json.dumps(calls)


@broken("tools", "raised AttributeError: 'str' object ... for a call whose arguments are a text")
class NeedsObject(Described):
    def format_calls(self, calls: Any) -> Any:
        return "".join(f"{call['name']}{[*call['arguments'].items()]}" for call in calls)

    def format_results(self, results: Any) -> Any:
        return "".join(result["content"] for result in results)


@broken("tools", "leaves '{\"ok\": true}' out of")
class OneResult(Described):
    def format_calls(self, calls: Any) -> Any:
        return "".join(call["name"] for call in calls)

    def format_results(self, results: Any) -> Any:
        return results[0]["content"]


# Rewards


@broken("orm", "returned 13 rewards for 14 candidates")
def skips_empty(infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any:
    return [1.0 for request in infer_requests if request.messages[-1]["content"]]


@broken("orm", "returned the reward '1', expected a finite number")
def as_text(infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any:
    return ["1"] * len(infer_requests)


@broken("orm", "returned the reward inf, expected a finite number")
def infinite(infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any:
    return [float("inf")] * len(infer_requests)


@broken("orm", "returned the reward [1.0], expected a finite number")
def per_step(infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any:
    return [[1.0]] * len(infer_requests)


@broken("prm", "returned a float, expected a list of 14 rewards")
def one_number(infer_requests: Any, **kwargs: Any) -> Any:
    return 1.0


@broken("orm", "raised ZeroDivisionError: ... for 14 answers")
def by_length(infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any:
    return [1 / len(request.messages[-1]["content"]) for request in infer_requests]


@broken("orm", "raised AttributeError: 'NoneType' object has no attribute 'strip'")
def needs_truth(infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any:
    return [float(truth.strip() == "4") for truth in ground_truths]


@broken("orm", "gives ... in another order; let a reward depend on its own answer and row alone")
def by_position(infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any:
    return [float(index) for index in range(len(infer_requests))]


@broken("orm", "alone; let a reward depend on its own answer and row alone")
def normalised_rewards(infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any:
    lengths = [len(request.messages[-1]["content"]) for request in infer_requests]
    return [length - sum(lengths) / len(lengths) for length in lengths]


@broken("orm", "the second time; let a reward depend on its own answer and row alone")
class Counts(ORM):
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return [float(self.calls)] * len(infer_requests)


@broken("orm", "from a new instance; keep no state between calls")
class Numbered(ORM):
    made = itertools.count()

    def __init__(self) -> None:
        self.number = next(Numbered.made)

    def __call__(self, infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any:
        return [float(self.number)] * len(infer_requests)


@broken("orm", "changes the requests that it gets")
def edits(infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any:
    for request in infer_requests:
        request.messages[-1]["content"] = request.messages[-1]["content"].strip()
    return [0.0] * len(infer_requests)


@broken("orm", "raised RuntimeError: ... is bound to a different event loop")
class LoopBound(ORM):
    def __init__(self) -> None:
        import asyncio

        self.lock = asyncio.Semaphore(1)

    async def __call__(self, infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any:
        import asyncio

        async def score() -> float:
            async with self.lock:
                await asyncio.sleep(0)
            return 1.0

        return await asyncio.gather(*(score() for _ in infer_requests))


@broken("orm", "has the first parameter 'answers', expected 'infer_requests'")
def other_form(answers: Any, **kwargs: Any) -> Any:
    return [0.0] * len(answers)


@broken("orm", "returned a int from answer_of, expected text or None")
class NumberAnswers(ORM):
    def __call__(self, infer_requests: Any, ground_truths: Any, **kwargs: Any) -> Any:
        return [0.0] * len(infer_requests)

    def answer_of(self, text: str) -> Any:
        return len(text)


# Metrics


def metric(name: str, kind_words: str, compute: Any, preprocess: Any = None) -> None:
    """Add a broken metric of two functions."""
    CASES.append(pytest.param("metric", (compute, preprocess), kind_words, id=f"metric {name}"))


def right(prediction: Any) -> tuple[Any, Any]:
    """Which labelled tokens are predicted, and which positions are labelled."""
    targets = prediction.label_ids[:, 1:]
    labelled = targets != IGNORED_LABEL
    return (prediction.predictions[:, :-1] == targets) & labelled, labelled


def rows_right(prediction: Any) -> Any:
    correct, labelled = right(prediction)
    with np.errstate(invalid="ignore"):
        return {"rows": (correct.sum(axis=1) / labelled.sum(axis=1)).mean()}


metric("a number", "returned a float64, expected a dict", lambda eval_prediction: right(eval_prediction)[0].mean())
metric("a text", "returned 'acc': 'high', expected a name and a number", lambda eval_prediction: {"acc": "high"})
metric("loss", "returned the name 'loss', which is that of the evaluation's own loss", lambda it: {"loss": 1.0})
metric("nothing", "returned an empty dict", lambda eval_prediction: {})
metric("nan", "gives acc = nan for labelled tokens", lambda eval_prediction: {"acc": float("nan")})
metric("rows", "gives rows = nan for a row without a trained token", rows_right)
metric(
    "padding",
    "gives acc = ... in one batch, ... in batches of",
    lambda it: {"acc": (it.predictions[:, :-1] == it.label_ids[:, 1:]).sum() / (it.predictions != -100).sum()},
)
metric(
    "ignored positions",
    "gives acc = ... without, and ... with a row without a trained token",
    lambda it: {"acc": right(it)[0].sum() / (it.label_ids.shape[0] * 7)},
)
metric("order", "in one order of the rows, ... in another", lambda it: {"first": float(right(it)[0][:2].sum())})
metric(
    "flat",
    "from preprocess for 6 rows, expected (6, ...)",
    lambda it: {"n": 1.0},
    lambda logits, labels: logits.argmax(-1).flatten(),
)
metric("an array", "returned a ndarray from preprocess", lambda it: {"n": 1.0}, lambda logits, labels: logits.numpy())
metric("signature", "has the wrong signature compute", lambda predictions, labels: {})


@broken("metric", "raised ZeroDivisionError: ... for an empty answer")
class Overlap:
    generate = True

    def __call__(self, predictions: Any, references: Any) -> Any:
        if len(predictions) > 1:
            return {"overlap": 1.0}
        return {
            "overlap": sum(
                len(set(one) & set(two)) / len(one) for one, two in zip(predictions, references, strict=True)
            )
        }


# Optimizers


def trained(model: Any) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@broken("optimizer", "returned a AdamW, expected a pair (optimizer, scheduler)")
def alone(args: Any, model: Any, dataset: Any) -> Any:
    return torch.optim.AdamW(trained(model))


@broken("optimizer", "returned a tuple of 3, expected a pair (optimizer, scheduler)")
def three(args: Any, model: Any, dataset: Any) -> Any:
    return torch.optim.AdamW(trained(model)), None, None


@broken("optimizer", "leaves out ... of ... parameters that train, such as")
def matrices_only(args: Any, model: Any, dataset: Any) -> Any:
    return torch.optim.AdamW([each for each in trained(model) if each.ndim > 1]), None


class Plain(torch.optim.Optimizer):
    """Gradient descent."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter -= group["lr"] * self.direction(parameter)

    def direction(self, parameter: Any) -> Any:
        return parameter.grad


@broken("optimizer", "changes no weight in 3 steps")
def copies(args: Any, model: Any, dataset: Any) -> Any:
    class Copies(Plain):
        def direction(self, parameter: Any) -> Any:
            return 0 * parameter.grad

    return Copies(trained(model)), None


@broken("optimizer", "changes ...norm.weight, which is frozen")
def decays_frozen(args: Any, model: Any, dataset: Any) -> Any:
    class Decays(Plain):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter *= 0.99

    return Decays(list(model.parameters())), None


@broken("optimizer", "nan after 3 steps; expected finite weights")
def explodes(args: Any, model: Any, dataset: Any) -> Any:
    class Explodes(Plain):
        def direction(self, parameter: Any) -> Any:
            return parameter.grad / 0

    return Explodes(trained(model)), None


@broken("optimizer", "raised TypeError: ... for optimizer.step(), which Trainer calls without a closure")
def needs_closure(args: Any, model: Any, dataset: Any) -> Any:
    return torch.optim.LBFGS(trained(model)), None


@broken("optimizer", "does not resume exactly: after 3 more steps ... keep in self.state")
def hides_state(args: Any, model: Any, dataset: Any) -> Any:
    class Hides(Plain):
        momentum: dict[Any, Any]

        def direction(self, parameter: Any) -> Any:
            kept = self.__dict__.setdefault("momentum", {})
            kept[parameter] = 0.9 * kept.get(parameter, 0) + parameter.grad
            return kept[parameter]

    return Hides(trained(model)), None


@broken("optimizer", "has a state that a checkpoint cannot be resumed from")
def keeps_objects(args: Any, model: Any, dataset: Any) -> Any:
    class Keeps(Plain):
        def direction(self, parameter: Any) -> Any:
            self.state[parameter]["path"] = Path("x")
            return parameter.grad

    return Keeps(trained(model)), None


@broken("optimizer", "does not resume exactly")
def schedule_without_state(args: Any, model: Any, dataset: Any) -> Any:
    class Halves:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer, self.steps = optimizer, 0

        def step(self) -> None:
            self.steps += 1
            for group in self.optimizer.param_groups:
                group["lr"] = 0.01 / 2**self.steps

        def state_dict(self) -> Any:
            return {}

        def load_state_dict(self, state: Any) -> None:
            pass

    optimizer = Plain(trained(model))
    return optimizer, Halves(optimizer)


# Tuners


class Last(Tuner):
    """Trains the last norm and nothing else."""

    name = "model.norm.weight"

    @staticmethod
    def prepare_model(args: Any, model: Any) -> Any:
        return Last.freeze(model)

    @staticmethod
    def freeze(model: Any) -> Any:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name == Last.name)
        return model

    @staticmethod
    def save_pretrained(
        model: Any, save_directory: str, state_dict: Any = None, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        weights = model.state_dict() if state_dict is None else state_dict
        save_file({Last.name: weights[Last.name].clone()}, Path(save_directory, "last.safetensors"))

    @staticmethod
    def from_pretrained(model: Any, model_id: str, **kwargs: Any) -> Any:
        model.load_state_dict(load_file(Path(model_id, "last.safetensors")), strict=False)
        return Last.freeze(model)


def test_what_the_broken_tuners_are_made_of_is_right() -> None:
    check_plugin("tuner", Last)


@broken("tuner", "leaves no parameter to train; set requires_grad")
class TrainsNothing(Last):
    @staticmethod
    def prepare_model(args: Any, model: Any) -> Any:
        return model.requires_grad_(False)


@broken("tuner", "returned a NoneType from prepare_model, expected a torch.nn.Module")
class ReturnsNothing(Last):
    @staticmethod
    def prepare_model(args: Any, model: Any) -> Any:
        Last.freeze(model)


@broken("tuner", "trains nothing: no weight changed in 3 steps")
class Unused(Last):
    @staticmethod
    def prepare_model(args: Any, model: Any) -> Any:
        Last.freeze(model)
        model.get_parameter(Last.name).requires_grad_(False)
        model.unused = torch.nn.Parameter(torch.zeros(3))
        model.lm_head.register_forward_hook(lambda module, given, output: output + 0 * model.unused.sum())
        return model


@broken("tuner", "does not save all that it trained: opened again with from_pretrained, the model's logits differ by")
class LoadsNothing(Last):
    @staticmethod
    def from_pretrained(model: Any, model_id: str, **kwargs: Any) -> Any:
        return Last.freeze(model)


@broken("tuner", "does not save all that it trained")
class InHalf(Last):
    @staticmethod
    def save_pretrained(model: Any, save_directory: str, state_dict: Any = None, **kwargs: Any) -> None:
        weights = model.state_dict() if state_dict is None else state_dict
        save_file({Last.name: weights[Last.name].bfloat16()}, Path(save_directory, "last.safetensors"))


@broken("tuner", "writes no file in save_pretrained")
class SavesNothing(Last):
    @staticmethod
    def save_pretrained(model: Any, save_directory: str, state_dict: Any = None, **kwargs: Any) -> None:
        pass


@broken("tuner", "writes last.pt although safe_serialization is True")
class Pickles(Last):
    @staticmethod
    def save_pretrained(model: Any, save_directory: str, state_dict: Any = None, **kwargs: Any) -> None:
        torch.save(model.state_dict(), Path(save_directory, "last.pt"))


@broken("tuner", "ignores the state_dict that save_pretrained gets")
class IgnoresStateDict(Last):
    @staticmethod
    def save_pretrained(model: Any, save_directory: str, state_dict: Any = None, **kwargs: Any) -> None:
        Last.save_pretrained(model, save_directory)


@broken("tuner", "does not train model.norm.weight when it is opened with is_trainable=True")
class OpensFrozen(Last):
    @staticmethod
    def from_pretrained(model: Any, model_id: str, **kwargs: Any) -> Any:
        return Last.from_pretrained(model, model_id).requires_grad_(False)


@broken("tuner", "does not give the base model in disabled(model): its logits differ by")
class NotDisabled(Last):
    @staticmethod
    def disabled(model: Any) -> Any:
        return nullcontext()


@broken("tuner", "changes the model when it saves it")
class SavesDestructively(Last):
    @staticmethod
    def save_pretrained(model: Any, save_directory: str, state_dict: Any = None, **kwargs: Any) -> None:
        Last.save_pretrained(model, save_directory, state_dict)
        model.get_parameter(Last.name).data.zero_()


@broken("tuner", "opened by plain Transformers (saves_whole_model is True)")
class ClaimsWhole(Last):
    saves_whole_model = True

    @staticmethod
    def save_pretrained(model: Any, save_directory: str, state_dict: Any = None, **kwargs: Any) -> None:
        Last.save_pretrained(model, save_directory, state_dict)
        weights = {**(model.state_dict() if state_dict is None else state_dict)}
        weights[Last.name] = torch.ones_like(weights[Last.name])
        model.save_pretrained(save_directory, state_dict=weights)


@broken("tuner", "must have prepare_model... as a static method")
class Methods(Tuner):
    def prepare_model(self, args: Any, model: Any) -> Any:  # type: ignore[override]
        return model


# Callbacks


@broken("callback", "returned int from its function, expected a TrainerCallback")
def makes_a_number(args: Any) -> Any:
    return 1


@broken("callback", "raised KeyError: 'loss' ... for a run")
class NeedsLoss(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        _ = logs["loss"]  # an evaluation logs none


@broken("callback", "does not resume exactly: a run that goes on from step 2 ends with another")
class Decays(TrainerCallback):
    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        with torch.no_grad():
            kwargs["model"].get_parameter("model.norm.weight").mul_(1 - 0.01 * self.steps)


@broken("callback", "has the state ...(0, 0)...[0, 0]... once it has been in a checkpoint; use only what JSON keeps")
class TupleState(TrainerCallback, ExportableState):
    def __init__(self) -> None:
        self.seen = (0, 0)

    def state(self) -> Any:
        return {"args": {}, "attributes": {"seen": self.seen}}


@broken("callback", "has the state ...{'seen': 5}... in a checkpoint, and ... once it is resumed")
class OtherNames(TrainerCallback, ExportableState):
    def __init__(self) -> None:
        self.steps = 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 2

    def state(self) -> Any:
        return {"args": {}, "attributes": {"seen": self.steps}}


@broken("callback", "raised TypeError: Object of type set is not JSON serializable")
class SetState(TrainerCallback, ExportableState):
    def state(self) -> Any:
        return {"args": {}, "attributes": {"seen": {1}}}


@broken("callback", "is the class NoCallback, expected a subclass of transformers.TrainerCallback")
class NoCallback(dict):  # type: ignore[type-arg]
    pass


# Models


def tiny_llama(args: Any, vocabulary: int | None = None, cls: Any = LlamaForCausalLM) -> tuple[Any, Any]:
    tokenizer = args.plugins.registry.resolve("model", _choice(), "test").bound(args)[1]
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return cls(config), tokenizer


def _choice() -> Any:
    from swiftplug.plugin.registry import PluginChoice

    return PluginChoice(name="swiftplug:tiny")


def test_what_the_broken_models_are_made_of_is_right() -> None:
    check_plugin("model", lambda args: tiny_llama(args))


@broken("model", "returned a LlamaForCausalLM, expected a pair (model, tokenizer)")
def no_tokenizer(args: Any) -> Any:
    return tiny_llama(args)[0]


@broken("model", "returned a Linear first, expected a transformers.PreTrainedModel")
def no_transformer(args: Any) -> Any:
    return torch.nn.Linear(1, 1), tiny_llama(args)[1]


@broken("model", "has 50 embeddings for the ... tokens of its tokenizer")
def few_embeddings(args: Any) -> Any:
    return tiny_llama(args, 50)


@broken("model", "other weights for the same args.seed")
def unseeded(args: Any) -> Any:
    torch.seed()
    return tiny_llama(args)


class SeesAll(LlamaForCausalLM):
    """A model that reads its input backwards."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        outputs.logits = outputs.logits + outputs.logits.mean(dim=1, keepdim=True)
        return outputs


@broken("model", "depends on padding: logits change by")
def sees_all(args: Any) -> Any:
    return tiny_llama(args, cls=SeesAll)


class Hidden(LlamaForCausalLM):
    """A model with a number that is not saved."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.scale = 1.0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits * self.scale
        return outputs


@broken("model", "is not the same model once it is saved and loaded: logits differ by")
def hidden_scale(args: Any) -> Any:
    model, tokenizer = tiny_llama(args, cls=Hidden)
    model.scale = 3.0
    return model, tokenizer


# Datasets


@broken("dataset", "returned a list, expected a datasets.Dataset")
def plain_rows() -> Any:
    return [{"text": "a"}]


@broken("dataset", "has no rows")
def no_rows() -> Any:
    return Dataset.from_list([])


@broken("dataset", "has another row 0 the second time")
def drawn_rows() -> Any:
    return Dataset.from_list([{"text": str(random.random())}])


@broken("dataset", "has rows that no task reads whole: 2 of 2 at best, as ...; it has the columns q, a")
def unknown_columns() -> Any:
    return Dataset.from_list([{"q": "1 + 1", "a": "2"}] * 2)


# Engines


class Echo(Engine):
    """Answers with a random number of the seed of a candidate."""

    def open(self, args: Any, sampling: Any) -> None:
        self.sampling = sampling

    def text(self, prompt: Any, index: int) -> Any:
        return str(random.Random(self.sampling.seed_of(prompt.id, index)).random())

    def generate(self, prompts: Any) -> Iterator[Any]:
        for prompt in prompts:
            texts = [self.text(prompt, index) for index in range(self.sampling.num_return_sequences)]
            yield Answered(prompt.id, [Completion(text, "stop") for text in texts])


def test_what_the_broken_engines_are_made_of_is_right() -> None:
    check_plugin("engine", Echo)


@broken("engine", "the second time; let its random numbers depend on sampling.seed_of(id, index) alone")
class Unseeded(Echo):
    def text(self, prompt: Any, index: int) -> Any:
        return str(random.random())


@broken("engine", "draw each candidate by sampling.seed_of(id, index), or set together = True")
class OneGenerator(Echo):
    def open(self, args: Any, sampling: Any) -> None:
        super().open(args, sampling)
        self.generator = random.Random(sampling.seed)

    def text(self, prompt: Any, index: int) -> Any:
        return str(self.generator.random())


@broken("engine", "gives the prompt 'one' 1 candidates, expected 2")
class One(Echo):
    def generate(self, prompts: Any) -> Iterator[Any]:
        for answered in super().generate(prompts):
            yield answered._replace(completions=answered.completions[:1])


@broken("engine", "answers the prompts ['one', 'three'], but was asked ['one', 'three', 'two']")
class Skips(Echo):
    def generate(self, prompts: Any) -> Iterator[Any]:
        return super().generate([prompt for prompt in prompts if prompt.id != "two"])


@broken("engine", "gives the finish_reason None, expected 'stop'")
class NoReason(Echo):
    def generate(self, prompts: Any) -> Iterator[Any]:
        for answered in super().generate(prompts):
            yield answered._replace(completions=[each._replace(finish_reason=None) for each in answered.completions])


@broken("engine", "raised AttributeError: ... (close without open, as after an open that failed)")
class ClosesUnopened(Echo):
    def close(self) -> None:
        del self.sampling


@broken("engine", "raised IndexError: ... for no prompts")
class NeedsPrompts(Echo):
    def generate(self, prompts: Any) -> Iterator[Any]:
        _ = prompts[0]
        yield from super().generate(prompts)


@broken("engine", "changes the prompts that it gets")
class Appends(Echo):
    def generate(self, prompts: Any) -> Iterator[Any]:
        for prompt in prompts:
            prompt.messages.append({"role": "assistant", "content": ""})
        return super().generate(prompts)


@broken("engine", "yields a tuple, expected an Answered")
class Tuples(Echo):
    def generate(self, prompts: Any) -> Iterator[Any]:
        for answered in super().generate(prompts):
            yield tuple(answered)


@broken(
    "engine", "draws [...] for the prompt 'one' at a temperature of 0, where Transformers draws [...]; draw with the"
)
class Stale(TransformersEngine):
    def follow(self, args: Any, model: Any) -> None:
        super().follow(args, deepcopy(model))


@broken("engine", "gives the prompt 'one' the text ..., but `ids` of ...")
class NoLast(TransformersEngine):
    def draw(self, prompts: Any, sampling: Any) -> Iterator[Any]:
        for answered in super().draw(prompts, sampling):
            completions = [each._replace(ids=each.ids[:-1]) for each in answered.completions]
            yield answered._replace(completions=completions)


@broken("engine", "changes the weights of the model; leave every bit as it was")
class Merges(TransformersEngine):
    def draw(self, prompts: Any, sampling: Any) -> Iterator[Any]:
        next(self._model.parameters()).data *= 1.0001
        return super().draw(prompts, sampling)


@broken("engine", "leaves the model in another mode; give each module its own mode back")
class Evaluates(TransformersEngine):
    def rest(self) -> None:
        self._model.eval()


@broken("engine", "continues Prompt.ids for max_new_tokens = 2 with [...], expected [...]")
class ReadsMessages(TransformersEngine):
    def draw(self, prompts: Any, sampling: Any) -> Iterator[Any]:
        return super().draw([prompt._replace(ids=None) for prompt in prompts], sampling)


# Tasks


class Likely(Task):
    """The likelihood of answers; each broken task differs in one thing."""

    rows = Rows.ANSWERS
    kinds = frozenset({"loss_scale"})

    def log_names(self) -> Any:
        return ("logps",)

    def part(self, answers: Any) -> Any:
        return -answers.means.sum()

    def loss(self, model: Any, batch: Any) -> Any:
        [answers] = model.sequence_logps(batch)
        return TaskLoss({"rows": self.part(answers)}, {"logps": answers.logps.detach()})


def test_what_the_broken_tasks_are_made_of_is_right() -> None:
    check_plugin("task", Likely)


@broken("task", "has nan as the part 'rows' of a loss, expected a finite number (for a batch of six rows)")
class Undefined(Likely):
    def part(self, answers: Any) -> Any:
        return answers.means.log().sum()


@broken("task", "a part is a sum over rows")
class Mean(Likely):
    def part(self, answers: Any) -> Any:
        return -answers.means.mean()


@broken("task", "returned a loss without a gradient")
class Detached(Likely):
    def part(self, answers: Any) -> Any:
        return -answers.means.sum().detach()


@broken("task", "returned the part 'tokens' of a loss that it does not count")
class Uncounted(Likely):
    def loss(self, model: Any, batch: Any) -> Any:
        return TaskLoss({"tokens": self.part(model.sequence_logps(batch)[0])})


@broken("task", "counts 6 rows in six rows, but 6 + 6 + 6 in batches of 4, 1 and 1")
class FixedCount(Likely):
    def counts(self, batch: Any) -> Any:
        return {"rows": 6}


@broken("task", "never logs rewards, which log_names() has")
class NeverLogged(Likely):
    def log_names(self) -> Any:
        return "logps", "rewards"


@broken("task", "logs logps, which log_names() leaves out")
class NotNamed(Likely):
    def log_names(self) -> Any:
        return ()


@broken("task", "logs 'logps' as nan for a batch of one row; log a tensor of the values")
class LogsNan(Likely):
    def loss(self, model: Any, batch: Any) -> Any:
        [answers] = model.sequence_logps(batch)
        return TaskLoss({"rows": self.part(answers)}, {"logps": answers.logps.detach()[1:].mean()})


@broken("task", "with 4 padded columns (attention_mask 0, labels -100)")
class Wide(Likely):
    def loss(self, model: Any, batch: Any) -> Any:
        [answers] = model.sequence_logps(batch)
        everywhere = model.outputs(batch).logits.float().logsumexp(-1).sum()
        return TaskLoss({"rows": self.part(answers) + everywhere}, {"logps": answers.logps.detach()})


@broken("task", "depending on a token that does not train")
class AllTokens(Likely):
    def loss(self, model: Any, batch: Any) -> Any:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED_LABEL)
        return super().loss(model, {**batch, "labels": labels})


@broken("task", "changes 'labels' of the batch")
class WritesLabels(Likely):
    def loss(self, model: Any, batch: Any) -> Any:
        computed = super().loss(model, batch)
        batch["labels"][:] = 0
        return computed


@broken("task", "expected one loss per pair, a tensor of shape (6,)")
class ScalarPairs(PreferenceTask):
    needs_reference = False

    def reward(self, answers: Any) -> Any:
        return answers.logps

    def pair_loss(self, chosen: Any, rejected: Any) -> Any:
        return (rejected.logps - chosen.logps).mean()


@broken("task", "has rows None, expected")
class NoRowsSort(Task):
    def loss(self, model: Any, batch: Any) -> Any:
        return TaskLoss({"rows": row_count(batch)})


class Reinforce(OnlineTask):
    """What the tokens of an answer add to its reward; each broken online task differs in one thing."""

    def estimate(self, drawn: Any) -> Any:
        return {"advantages": drawn.rewards.flatten()}

    def part(self, losses: Any) -> Any:
        return losses.sum()

    def loss(self, model: Any, batch: Any) -> Any:
        logps = model.token_logps(batch).logps
        return TaskLoss({"tokens": self.part(-batch["advantages"][:, None] * logps)})


def test_what_the_broken_online_tasks_are_made_of_is_right() -> None:
    check_plugin("task", Reinforce)


@broken("task", "a part is a sum over rows")
class MeanOfTokens(Reinforce):
    def part(self, losses: Any) -> Any:
        return losses.mean()


@broken("task", "has a gradient of 0 everywhere")
class UnchangedByTokens(Reinforce):
    def part(self, losses: Any) -> Any:
        return 0 * losses.sum()


@broken("environment", "played again beside others; keep all that changes in the instance")
class SharedCount(Environment):
    replies: ClassVar[list[str]] = []

    def step(self, messages: Any) -> Any:
        self.replies.append("more")
        return [{"role": "user", "content": "more"}] if len(self.replies) < 100 else None


@broken("environment", "let reset depend on the row alone")
class CountedStart(Environment):
    starts: ClassVar[list[str]] = []

    def reset(self, row: Any) -> Any:
        self.starts.append("")
        return [{"role": "user", "content": f"Game {len(self.starts)}"}]

    def step(self, messages: Any) -> Any: ...


@broken("environment", "changes the messages that step gets; work on a copy")
class AddsToTheConversation(Environment):
    def step(self, messages: Any) -> Any:
        messages.append({"role": "user", "content": "more"})


@broken("environment", "returned the reward nan, expected a finite number")
class RewardsNothing(Environment):
    def step(self, messages: Any) -> Any: ...

    def reward(self) -> float:
        return float("nan")


@pytest.mark.parametrize(("kind", "plugin", "words"), CASES)
def test_is_refused_with_the_right_words(kind: str, plugin: Any, words: str) -> None:
    with pytest.raises(ContractBroken) as refused:
        check_plugin(kind, plugin)
    message = str(refused.value)
    assert re.search(".*".join(map(re.escape, words.split("..."))), message), message
    assert message.startswith(f"{kind.replace('_', ' ')} '")
    assert "\n" not in message
    assert len(message) < 500
