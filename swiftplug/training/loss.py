"""The loss of one micro-batch, from a model and a plugin to a checked scalar, and the means of what is logged of it."""

import inspect
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import TrainingArguments

from swiftplug.errors import ContractError, UserError
from swiftplug.plugin.loss import IGNORED_LABEL, TokenLoss
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.registry.returns import check_loss
from swiftplug.plugin.task import Batch, row_count
from swiftplug.training.chunked_losses import KnownHead, token_loss_sum
from swiftplug.training.head import LabelledForward

_MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")

Counts = Mapping[str, torch.Tensor]
"""What the parts of a loss are divided by, by their names."""

_UNCOUNTED = "uncounted"  # marks a batch that is there only for the sake of other processes


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


class Means:
    """Means of what is added, by name, over batches and processes."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # and the numbers of values

    def add(self, name: str, total: float, count: float) -> None:
        """Add the sum of `count` values."""
        sums = self._sums[name]
        sums[0] += total
        sums[1] += count

    def add_all(self, logged: Mapping[str, torch.Tensor]) -> None:
        """Add values by name; a name that has none, such as of good answers, is left out."""
        for name, values in logged.items():
            if values.numel():
                self.add(name, values.sum().item(), values.numel())

    def gather(self) -> dict[str, float]:
        """The means over all processes; nan of nothing."""
        everywhere = Means()
        for sums in gather_object([dict(self._sums)]):
            for name, (total, count) in sums.items():
                everywhere.add(name, total, count)
        means = everywhere._sums.items()
        return {name: total / count if count else float("nan") for name, (total, count) in means}


def model_inputs(batch: Batch) -> dict[str, Any]:
    """What a model takes of a batch."""
    return {name: batch[name] for name in _MODEL_INPUTS if name in batch}


def optional_arguments(loss: Callable[..., Any]) -> set[str]:
    """Which of `loss_scale` and `num_items_in_batch` a loss plugin accepts."""
    # A module's own signature is that of any call; its `forward` shows what it takes.
    parameters = inspect.signature(getattr(loss, "forward", loss)).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name for name in ("loss_scale", "num_items_in_batch") if takes_any or name in parameters}


class LossComputer(ABC):
    """Runs a model for the loss of a batch, and checks the loss.

    Args:
        plugin: The plugin that computes it.
        model: The model to train, not wrapped for several processes.
        accelerator: The trainer's.

    Attributes:
        adds_up: Whether the losses of an accumulation step add up to the step's; else each is a mean.
    """

    adds_up = True

    def __init__(self, plugin: LoadedPlugin, model: torch.nn.Module, accelerator: Accelerator) -> None:
        self.plugin = plugin
        self.accelerator = accelerator
        self.aux_coefficient = _aux_coefficient(model)
        self.is_counted = True

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What the parts of the loss are divided by; zeros where no row counts."""
        device, counts = batch["input_ids"].device, self._counts(_without_mark(batch))
        return {
            name: torch.as_tensor(count, device=device) * (_UNCOUNTED not in batch) for name, count in counts.items()
        }

    def first_rows(self, batch: Batch, rows: int) -> dict[str, Any]:
        """A batch of the first rows; for none, one row that does not count, so that the model still runs."""
        before, kept = row_count(batch), max(rows, 1)
        if "position_ids" in batch:  # packed into one row, of as many tokens as the lengths add up to
            tokens = int(batch["length"][:kept].sum())
            cut = {name: value[:kept] if value.ndim == 1 else value[:, :tokens] for name, value in batch.items()}
        else:
            cut = {
                name: value.reshape(-1, before, *value.shape[1:])[:, :kept].reshape(-1, *value.shape[1:])
                for name, value in batch.items()
            }
        return cut if rows else {**cut, _UNCOUNTED: torch.ones(1)}

    def __call__(self, model: torch.nn.Module, batch: Batch, totals: Counts, need_logits: bool = False) -> BatchLoss:
        """The loss of a batch.

        Args:
            model: The model, wrapped for several processes or not.
            batch: A batch of the collator.
            totals: The counts of the whole accumulation step, each at least 1.
            need_logits: Whether `outputs.logits` must be whole.

        Raises:
            UserError: The plugin returned something other than its contract says.
        """
        self.is_counted, counts = _UNCOUNTED not in batch, self.counts(batch)
        computed = self._compute(model, _without_mark(batch), counts, totals, need_logits)
        if not self.is_counted:
            sums = {name: part * 0 for name, part in computed.sums.items()}
            computed = BatchLoss(computed.loss * 0, computed.outputs, sums, {})
        # In training only: it depends on how rows are batched, and `eval_loss` must not.
        aux_loss = getattr(computed.outputs, "aux_loss", None)
        if self.aux_coefficient and model.training and aux_loss is not None:
            name = next(iter(computed.sums))
            share = counts[name] / totals[name] if self.adds_up else 1.0
            loss = computed.loss + self.aux_coefficient * share * aux_loss.to(computed.loss.device)
            computed = computed._replace(loss=loss)
        return computed

    @abstractmethod
    def _counts(self, batch: Batch) -> Mapping[str, Any]:
        """What the parts of the loss are divided by, for a batch whose rows count."""

    @abstractmethod
    def _compute(
        self, model: torch.nn.Module, batch: Batch, counts: Counts, totals: Counts, need_logits: bool
    ) -> BatchLoss:
        """The loss of a batch whose rows count, without that of the router of a mixture of experts."""


class PluginLossComputer(LossComputer):
    """Runs a model and its loss plugin.

    A loss that is a sum over tokens (`TokenLoss`) gets logits at labelled positions only: in chunks where the head is
    of a known form, else by the model's own `logits_to_keep`. Any other loss, and whoever needs the logits, gets
    them whole.

    Args:
        plugin: The loss plugin.
        model: The model to train, not wrapped for several processes.
        accelerator: The trainer's.
        args: The run's `TrainingArguments`.
    """

    def __init__(
        self, plugin: LoadedPlugin, model: torch.nn.Module, accelerator: Accelerator, args: TrainingArguments
    ) -> None:
        super().__init__(plugin, model, accelerator)
        self.name = f"loss {plugin.found.qualified_name!r} {plugin.found.version}".rstrip()
        self.function = plugin.bound
        self.takes = optional_arguments(self.function)
        self.adds_up = "num_items_in_batch" in self.takes
        loss_class = type(self.function)
        self.is_token_loss = issubclass(loss_class, TokenLoss) and loss_class.__call__ is TokenLoss.__call__
        self.forward = LabelledForward(model, args) if self.is_token_loss else None

    def _counts(self, batch: Batch) -> Mapping[str, Any]:
        return {"tokens": (batch["labels"][:, 1:] != IGNORED_LABEL).sum()}

    def _compute(
        self, model: torch.nn.Module, batch: Batch, counts: Counts, totals: Counts, need_logits: bool
    ) -> BatchLoss:
        labels, scale, inputs = batch["labels"], batch.get("loss_scale"), model_inputs(batch)
        if self.forward is not None and not need_logits:
            outputs, states, trained = self.forward(model, inputs, labels)
            loss = self._token_loss_sum(self.forward.head, states, labels, scale, trained) / totals["tokens"]
        else:
            outputs = model(**inputs)
            # Virtual tokens that a tuner put in front have no labels.
            outputs.logits = outputs.logits[:, -labels.shape[1] :]
            optional = {"loss_scale": scale, "num_items_in_batch": totals["tokens"]}
            loss = self.function(outputs, labels, **{name: optional[name] for name in self.takes})
            try:
                check_loss(loss)
            except ContractError as error:
                raise UserError(f"{self.name}: {error}") from None
        return BatchLoss(loss, outputs, {"tokens": loss.detach() * counts["tokens"]}, {})

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


def _without_mark(batch: Batch) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != _UNCOUNTED}


def _aux_coefficient(model: torch.nn.Module) -> float:
    """The weight of a mixture-of-experts' load-balancing loss; 0 where the model has none or does not return it."""
    config = getattr(model, "config", None)
    if config is None or not getattr(config, "output_router_logits", False):
        return 0.0
    return float(getattr(config, "router_aux_loss_coef", 0.0))
