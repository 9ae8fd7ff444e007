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
from swiftplug.plugin.task import Batch, SequenceLogps, Task, TaskModel, TokenLogps, row_count
from swiftplug.training.head import LabelledForward
from swiftplug.training.loss import BatchLoss, Counts, LossComputer, model_inputs
from swiftplug.training.online.values import ValueHead, value_head_of


class TaskLossComputer(LossComputer, TaskModel):
    """Runs a model for the loss of a task that computes it itself.

    Args:
        plugin: The task plugin.
        model: The model to train, not wrapped for several processes.
        accelerator: The trainer's.
        args: The run's `TrainingArguments`.
        reference: The reference model; None if it is the model itself, in the context that `without_tuner` gives.
        without_tuner: Gives a context in which the model computes what its base model does.
        temperature: The temperature at which an online task draws.
    """

    def __init__(
        self,
        plugin: LoadedPlugin,
        model: torch.nn.Module,
        accelerator: Accelerator,
        args: TrainingArguments,
        reference: torch.nn.Module | None,
        without_tuner: Any,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(plugin, model, accelerator)
        self.temperature = temperature
        self.task: Task = plugin.bound
        self.model = self.unwrapped = model
        self.without_tuner = without_tuner
        self.last_outputs: Any = None
        if self.task.head == "language":
            self.forward = LabelledForward(model, args)
            self.value_head = value_head_of(model)
            self.reference = reference
            self.reference_forward = LabelledForward(reference, args) if reference is not None else self.forward

    def _counts(self, batch: Batch) -> Mapping[str, Any]:
        return self.task.counts(batch)

    def _compute(
        self, model: torch.nn.Module, batch: Batch, counts: Counts, totals: Counts, need_logits: bool
    ) -> BatchLoss:
        self.model = model
        try:
            computed = check_task_loss(self.task.loss(self, batch), counts)
        except ContractError as error:
            raise UserError(f"{self.plugin.found} {error}") from None
        loss = torch.stack([(part / totals[name]).float() for name, part in computed.sums.items()]).sum()
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
        computed = self.forward.sequence_logps(self.model, inputs, labels, self.accelerator.autocast)
        self.last_outputs, logps, lengths = computed
        split = zip(logps.split(rows), lengths.split(rows), references or repeat(None), strict=False)
        return [SequenceLogps(*each) for each in split]

    def token_logps(self, batch: Batch) -> TokenLogps:
        """The log-probability of each trained token of the batch; see `TaskModel.token_logps`."""
        return self._token_logps(self.forward, self.model, batch, self.value_head)

    def drawn_logps(self, batch: Batch, *, of_reference: bool = False) -> TokenLogps:
        """The same without a gradient and without dropout, of the model or of its reference, which has no values."""
        with self._evaluated(of_reference) as (forward, model):
            return self._token_logps(forward, model, batch, None if of_reference else self.value_head)

    def _token_logps(
        self, forward: LabelledForward, model: torch.nn.Module, batch: Batch, value_head: ValueHead | None
    ) -> TokenLogps:
        self.last_outputs, tokens, states = forward.token_logps(
            model, model_inputs(batch), batch["labels"], self.accelerator.autocast, self.temperature
        )
        if value_head is None:
            return tokens
        values = torch.zeros_like(tokens.logps).masked_scatter(tokens.trains, value_head(states))
        return tokens._replace(values=values)

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
        with self._evaluated(of_reference=True) as (forward, model):
            logps = forward.sequence_logps(model, inputs, labels)[1]
        return list(logps.split(row_count(batch)))

    @contextmanager
    def _evaluated(self, of_reference: bool) -> Iterator[tuple[LabelledForward, torch.nn.Module]]:
        """The model, or its reference, and what runs it, without a gradient and without dropout."""
        with torch.no_grad(), self.accelerator.autocast(), ExitStack() as stack:
            if of_reference and self.reference is not None:
                yield self.reference_forward, self.reference
                return
            if of_reference:
                stack.enter_context(self.without_tuner(self.unwrapped))
            stack.enter_context(_evaluating(self.unwrapped))
            yield self.forward, self.unwrapped


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
