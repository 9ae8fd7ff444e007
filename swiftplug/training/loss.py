"""The loss of one micro-batch: from a model and a loss plugin to a checked scalar, by the leanest exact path."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from transformers import TrainingArguments

from swiftplug.errors import ContractError, UserError
from swiftplug.plugin.loss import IGNORED_LABEL, TokenLoss
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.registry.returns import check_loss
from swiftplug.plugin.task import Batch
from swiftplug.training.head import KnownHead, LabelledForward, token_loss_sum

_MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")


class BatchLoss(NamedTuple):
    """The loss of a batch.

    Attributes:
        loss: The loss: a scalar with a gradient, divided by the counts of the accumulation step.
        outputs: The model's output.
        sums: The parts of the loss before that division, without gradients, by what they are divided by.
        logged: What is logged of it besides; see `TaskLoss`.
    """

    loss: torch.Tensor
    outputs: Any
    sums: dict[str, torch.Tensor]
    logged: dict[str, torch.Tensor]


def model_inputs(batch: Batch) -> dict[str, Any]:
    """What a model takes of a batch."""
    return {name: batch[name] for name in _MODEL_INPUTS if name in batch}


def optional_arguments(loss: Callable[..., Any]) -> set[str]:
    """Which of `loss_scale` and `num_items_in_batch` a loss plugin accepts."""
    # A module's own signature is that of any call; its `forward` shows what it takes.
    parameters = inspect.signature(getattr(loss, "forward", loss)).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name for name in ("loss_scale", "num_items_in_batch") if takes_any or name in parameters}


class LossComputer:
    """Runs a model and its loss plugin.

    A loss that is a sum over tokens (`TokenLoss`) gets logits at labelled positions only: in chunks where the head is
    of a known form, else by the model's own `logits_to_keep`. Any other loss, and whoever needs the logits, gets
    them whole.

    Args:
        plugin: The loss plugin.
        model: The model to train, not wrapped for several processes.
        accelerator: The trainer's.
        args: The run's `TrainingArguments`.

    Attributes:
        adds_up: Whether the losses of an accumulation step add up to the step's; else each is a mean.
    """

    def __init__(
        self, plugin: LoadedPlugin, model: torch.nn.Module, accelerator: Accelerator, args: TrainingArguments
    ) -> None:
        self.plugin = plugin
        self.name = f"loss {plugin.found.qualified_name!r} {plugin.found.version}".rstrip()
        self.function = plugin.bound
        self.takes = optional_arguments(self.function)
        self.adds_up = "num_items_in_batch" in self.takes
        loss_class = type(self.function)
        self.is_token_loss = issubclass(loss_class, TokenLoss) and loss_class.__call__ is TokenLoss.__call__
        self.accelerator = accelerator
        self.aux_coefficient = aux_coefficient(model)
        self.forward = LabelledForward(model, args) if self.is_token_loss else None

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The trained tokens of a batch, by which the loss is divided."""
        return {"tokens": (batch["labels"][:, 1:] != IGNORED_LABEL).sum()}

    def first_rows(self, batch: Batch, rows: int) -> dict[str, Any]:
        """A batch of which only the first rows count."""
        labels = batch["labels"].clone()
        labels[rows:] = IGNORED_LABEL
        return {**batch, "labels": labels}

    def __call__(
        self, model: torch.nn.Module, batch: Batch, totals: Mapping[str, torch.Tensor] | None, need_logits: bool = False
    ) -> BatchLoss:
        """The loss of a batch.

        Args:
            model: The model, wrapped for several processes or not.
            batch: A batch of the collator.
            totals: The counts of the whole accumulation step, by which the sum is divided, if the plugin takes them;
                None: those of the batch.
            need_logits: Whether `outputs.logits` must be whole.

        Raises:
            UserError: The plugin returned something other than a scalar tensor with a gradient.
        """
        labels, scale = batch["labels"], batch.get("loss_scale")
        inputs, count = model_inputs(batch), self.counts(batch)["tokens"]
        num_items = totals["tokens"] if totals is not None else None
        if self.forward is not None and not need_logits:
            outputs, states, trained = self.forward(model, inputs, labels)
            total = self._token_loss_sum(self.forward.head, states, labels, scale, trained)
            loss = total / (count.clamp(min=1) if num_items is None else num_items)
        else:
            outputs = model(**inputs)
            # Virtual tokens that a tuner put in front have no labels.
            outputs.logits = outputs.logits[:, -labels.shape[1] :]
            optional = {"loss_scale": scale, "num_items_in_batch": num_items}
            loss = self.function(outputs, labels, **{name: optional[name] for name in self.takes})
            try:
                check_loss(loss)
            except ContractError as error:
                raise UserError(f"{self.name}: {error}") from None
        # In training only: it depends on how rows are batched, and `eval_loss` must not.
        if self.aux_coefficient and model.training and outputs.aux_loss is not None:
            share = count / num_items if num_items is not None and self.adds_up else 1.0
            loss = loss + self.aux_coefficient * share * outputs.aux_loss.to(loss.device)
        return BatchLoss(loss, outputs, {"tokens": loss.detach() * count}, {})

    def _token_loss_sum(
        self,
        head: KnownHead | None,
        states: torch.Tensor,
        labels: torch.Tensor,
        scale: torch.Tensor | None,
        trained: torch.Tensor,
    ) -> torch.Tensor:
        targets = labels[:, 1:][trained[:, :-1]]
        weights = None if scale is None else scale[:, 1:][trained[:, :-1]]
        if head is None:
            losses = self._token_loss(states, targets)
            return (losses if weights is None else losses * weights).sum()
        with self.accelerator.autocast():
            return token_loss_sum(self._token_loss, head, states, targets, weights)

    def _token_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses = self.function.token_loss(logits, targets)
        if not isinstance(losses, torch.Tensor):
            raise UserError(
                f"{self.name}: returned a {type(losses).__name__} from token_loss, expected one loss per position"
            )
        if losses.shape != targets.shape:
            raise UserError(
                f"{self.name}: returned shape {tuple(losses.shape)} from token_loss, expected one loss per position, "
                f"{tuple(targets.shape)}"
            )
        return losses


def aux_coefficient(model: torch.nn.Module) -> float:
    """The weight of a mixture-of-experts' load-balancing loss; 0 where the model has none or does not return it."""
    config = getattr(model, "config", None)
    if config is None or not getattr(config, "output_router_logits", False):
        return 0.0
    return float(getattr(config, "router_aux_loss_coef", 0.0))
