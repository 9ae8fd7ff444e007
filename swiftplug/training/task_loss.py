"""The loss of one micro-batch of a task that computes it itself: what its `TaskModel` gives, and the checked sum."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import repeat
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainingArguments

from swiftplug.data.batching import REFERENCE_LOGPS
from swiftplug.errors import ContractError, UserError
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.registry.returns import check_task_loss
from swiftplug.plugin.task import Batch, SequenceLogps, Task, TaskLoss, TaskModel, row_count
from swiftplug.training.head import LabelledForward, sequence_logps
from swiftplug.training.loss import BatchLoss, aux_coefficient, model_inputs

_UNCOUNTED = "uncounted"  # marks a batch that is there only for the sake of other processes


class TaskLossComputer(TaskModel):
    """Runs a model for the loss of a task, and checks the loss.

    Args:
        plugin: The task plugin.
        model: The model to train, not wrapped for several processes.
        accelerator: The trainer's.
        args: The run's `TrainingArguments`.
        reference: The reference model; None if it is the model itself, in the context that `without_tuner` gives.
        without_tuner: Gives a context in which the model computes what its base model does.
    """

    adds_up = True

    def __init__(
        self,
        plugin: LoadedPlugin,
        model: torch.nn.Module,
        accelerator: Accelerator,
        args: TrainingArguments,
        reference: torch.nn.Module | None,
        without_tuner: Any,
    ) -> None:
        self.plugin = plugin
        self.task: Task = plugin.bound
        self.accelerator = accelerator
        self.aux_coefficient = aux_coefficient(model)
        self.model = self.unwrapped = model
        self.is_counted = True
        self.without_tuner = without_tuner
        self.last_outputs: Any = None
        if self.task.head == "language":
            self.forward = LabelledForward(model, args)
            self.reference = reference
            self.reference_forward = LabelledForward(reference, args) if reference is not None else self.forward

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What the parts of the task's loss are divided by; zeros where no row counts."""
        device, counts = batch["input_ids"].device, self.task.counts(_without(batch, _UNCOUNTED))
        return {
            name: torch.as_tensor(count, device=device) * (_UNCOUNTED not in batch) for name, count in counts.items()
        }

    def first_rows(self, batch: Batch, rows: int) -> dict[str, Any]:
        """A batch of the first rows; for none, one row that does not count, so that the model still runs."""
        before, kept = row_count(batch), max(rows, 1)
        cut = {
            name: value.reshape(-1, before, *value.shape[1:])[:, :kept].reshape(-1, *value.shape[1:])
            for name, value in batch.items()
        }
        return cut if rows else {**cut, _UNCOUNTED: torch.ones(1)}

    def __call__(
        self, model: torch.nn.Module, batch: Batch, totals: Mapping[str, torch.Tensor] | None, need_logits: bool = False
    ) -> BatchLoss:
        """The loss of a batch.

        Args:
            model: The model, wrapped for several processes or not.
            batch: A batch of the collator.
            totals: The counts of the whole accumulation step; None: those of the batch.
            need_logits: Whether a metric reads the logits.

        Raises:
            UserError: The task returned something other than its contract says.
        """
        self.model, self.is_counted, counts = model, _UNCOUNTED not in batch, self.counts(batch)
        try:
            computed = check_task_loss(self.task.loss(self, _without(batch, _UNCOUNTED)), counts)
        except ContractError as error:
            raise UserError(f"{self.plugin.found} {error}") from None
        if not self.is_counted:
            computed = TaskLoss({name: part * 0 for name, part in computed.sums.items()})
        totals = counts if totals is None else totals
        parts = [part / totals[name].clamp(min=1) for name, part in computed.sums.items()]
        loss = torch.stack([part.float() for part in parts]).sum()
        # In training only: it depends on how rows are batched, and `eval_loss` must not.
        aux_loss = getattr(self.last_outputs, "aux_loss", None)
        if self.aux_coefficient and model.training and aux_loss is not None:
            name = next(iter(computed.sums))
            loss = loss + self.aux_coefficient * counts[name] / totals[name] * aux_loss.to(loss.device)
        sums = {name: part.detach() for name, part in computed.sums.items()}
        return BatchLoss(loss, self.last_outputs, sums, dict(computed.logged))

    def outputs(self, batch: Batch) -> Any:
        """The model's output; see `TaskModel.outputs`."""
        self.last_outputs = self.model(**model_inputs(batch))
        return self.last_outputs

    def sequence_logps(self, batch: Batch, conversations: Sequence[int] | None = None) -> list[SequenceLogps]:
        """The log-probabilities of the batch's trained tokens; see `TaskModel.sequence_logps`."""
        rows = row_count(batch)
        chosen = range(len(batch["labels"]) // rows) if conversations is None else conversations
        picked = torch.cat([torch.arange(number * rows, (number + 1) * rows) for number in chosen])
        inputs = {name: value[picked] for name, value in model_inputs(batch).items()}
        labels = batch["labels"][picked]
        # The reference first: what the model keeps for its gradient is not there yet.
        references = self._reference_logps(batch, chosen, inputs, labels) if self.task.needs_reference else None
        computed = sequence_logps(self.forward, self.model, inputs, labels, self.accelerator.autocast)
        self.last_outputs, logps, lengths = computed
        split = zip(logps.split(rows), lengths.split(rows), references or repeat(None), strict=False)
        return [SequenceLogps(*each) for each in split]

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the rows of all processes; see `TaskModel.mean`."""
        values = values.detach().float() * self.is_counted
        total: Any = torch.stack([values.sum(), values.new_tensor(len(values) * self.is_counted)])
        total, count = self.accelerator.reduce(total)
        mean: torch.Tensor = total / count.clamp(min=1)
        return mean

    def _reference_logps(
        self, batch: Batch, conversations: Sequence[int], inputs: dict[str, Any], labels: torch.Tensor
    ) -> list[torch.Tensor]:
        """The reference's log-probabilities of these conversations, each `(B,)`."""
        if REFERENCE_LOGPS in batch:
            return [batch[REFERENCE_LOGPS][:, number] for number in conversations]
        with torch.no_grad(), self.accelerator.autocast(), ExitStack() as stack:
            model = self.reference
            if model is None:
                model = self.unwrapped
                stack.enter_context(self.without_tuner(model))
                stack.enter_context(_evaluating(model))
            logps = sequence_logps(self.reference_forward, model, inputs, labels)[1]
        return list(logps.split(row_count(batch)))


def _without(batch: Batch, name: str) -> dict[str, Any]:
    return {each: value for each, value in batch.items() if each != name}


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout; each module returns to the mode in which it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
