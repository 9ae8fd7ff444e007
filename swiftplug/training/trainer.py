"""Transformers' Trainer, with what it leaves to others: weighted losses, exact resume, plugins at every step.

What differs from the base class, and where:
- the loss goes through the loss plugin, on labelled positions only where that gives the same (`compute_loss`);
- `eval_loss` is the mean over the trained tokens of the whole set (`evaluation_loop`);
- the order of the data is a function of seed and epoch (`_get_train_sampler`, `_run_epoch`);
- saving and loading go through the tuner plugin, and a checkpoint appears whole or not at all (`SavingTrainer`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_utils import EvalLoopOutput

from swiftplug.data.batching import EpochSampler
from swiftplug.errors import UserError, nearest
from swiftplug.plugin.loss import IGNORED_LABEL
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.folder import Marker
from swiftplug.training.evaluation import Metrics, generate_answers
from swiftplug.training.loss import LossComputer
from swiftplug.training.optimizer import make_optimizer
from swiftplug.training.saving import SavingTrainer


class PlugTrainer(SavingTrainer):
    """Trains one model with the plugins of a run.

    Args:
        model: The model as the tuner prepared it.
        run_args: The run's arguments.
        marker: What is written beside all weights.
        tokenizer: Saved beside them, and the source of the padding token.
        reload_best: Loads the weights of a checkpoint onto a fresh base model.
        **kwargs: `train_dataset`, `eval_dataset`, `data_collator`, `callbacks`, as `Trainer` takes them.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        run_args: Arguments,
        marker: Marker,
        tokenizer: Any,
        reload_best: Callable[[str], torch.nn.Module],
        **kwargs: Any,
    ) -> None:
        self.run_args = run_args
        self.tokenizer = tokenizer
        self.plugins = run_args.plugins
        self.marker = marker
        self.reload_best = reload_best
        self.metrics = Metrics(self.plugins.of("metric"))
        self.run_dir = Path(run_args.training_args.output_dir or ".")
        self._last_step_of_epoch = -1
        super().__init__(
            model=model,
            args=run_args.training_args,
            processing_class=tokenizer,
            compute_metrics=self.metrics.compute if self.metrics.of_tokens else None,
            preprocess_logits_for_metrics=self.metrics.preprocess if self.metrics.of_tokens else None,
            **kwargs,
        )
        # Plugins add to the logs (`perf_log` does), so whoever reports them comes after all of those.
        reporters = tuple(get_reporting_integration_callbacks(self.args.report_to))
        self.callback_handler.callbacks.sort(key=lambda callback: isinstance(callback, reporters))
        self.loss_is_scaled_for_ga = True
        self._flops_per_token = _flops_per_token(model)
        self.loss_computer = LossComputer(self.plugins.one("loss"), model, self.accelerator, self.args)

    # Data

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        self._sampler = EpochSampler(
            dataset["length"],
            self._train_batch_size,
            self.args.seed,
            group_by_length=self.run_args.config.data.group_by_length,
            num_processes=self.args.world_size,
        )
        return self._sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(eval_dataset)

    def _run_epoch(self, model: torch.nn.Module, epoch: int, *args: Any, **kwargs: Any) -> None:
        # The base class reaches a sampler through accelerate's wrappers, of which there may be three when resuming.
        self._sampler.set_epoch(epoch)
        if self._already_ended or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(model, epoch, *args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, evaluate and save; what the last step of an epoch has to save waits for the end of the epoch.

        That may evaluate too: a checkpoint from before it would let a resumed run miss the evaluation.
        """
        ends_epoch = float(self.state.epoch or 0).is_integer() or self.control.should_training_stop
        if not ends_epoch or self._last_step_of_epoch == self.state.global_step:
            super()._maybe_log_save_evaluate(*args, **kwargs)
            return
        self._last_step_of_epoch = self.state.global_step  # the next call is that of the epoch
        wants_save, self.control.should_save = self.control.should_save, False
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.control.should_save = wants_save

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, but no mean loss of no steps, which a run has that was resumed at its end."""
        if self.state.global_step == self._initial_global_step:
            logs.pop("train_loss", None)
        super().log(logs, start_time)

    # Optimizer

    def _prepare_for_training(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        self.run_args.num_training_steps = max_steps
        return super()._prepare_for_training(max_steps, *args, **kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Ask the optimizer plugin for an optimizer and scheduler; what it leaves out is the base class's own."""
        if self.optimizer is None:
            whole: Any = self.model if model is None else model
            made = make_optimizer(self.plugins.one("optimizer"), self.run_args, whole, self.train_dataset)
            self.optimizer, self.lr_scheduler = made
        return super().create_optimizer(model)

    # Loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The plugin's loss of one micro-batch, scaled so that those of an accumulation step add up to the step's.

        Args:
            model: The model, wrapped for several processes or not.
            inputs: A batch of the collator.
            return_outputs: Whether the model's whole output is wanted too.
            num_items_in_batch: Trained tokens of the accumulation step, over all processes.
        """
        result = self.loss_computer(model, dict(inputs), num_items_in_batch, need_logits=return_outputs)
        loss = result.loss
        if not self.loss_computer.contract.takes_num_items:
            loss = loss / self.current_gradient_accumulation_steps
        elif self.args.average_tokens_across_devices:
            # Gradients are averaged over processes, but the tokens were counted over all of them.
            loss = loss * self.accelerator.num_processes
        self.loss_computer.check_finite(loss, self.state.global_step + 1)
        return (loss, result.outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        if not batch_samples:
            return None
        count = sum((batch["labels"][:, 1:] != IGNORED_LABEL).sum() for batch in batch_samples)
        total = torch.as_tensor(count, device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total.clamp(min=1)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As the base class has it, which goes through all modules again for each batch."""
        return self._flops_per_token * int(inputs["input_ids"].numel())

    # Evaluation

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        """The loss of an evaluation batch, added up by tokens, and its logits where a metric reads them."""
        inputs = self._prepare_inputs(inputs)
        labels = self._labels_of_real_rows(inputs["labels"])
        count = (labels[:, 1:] != IGNORED_LABEL).sum()
        with torch.no_grad(), self.compute_loss_context_manager():
            batch = {**inputs, "labels": labels}
            result = self.loss_computer(model, batch, count.clamp(min=1), need_logits=not prediction_loss_only)
        loss = result.loss.detach()
        self._eval_sums += np.array([loss.item() * count.item(), count.item()])
        if prediction_loss_only:
            return loss, None, None
        return loss, result.outputs.logits.detach(), inputs["labels"]

    def _labels_of_real_rows(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels without the rows that accelerate repeats to give every process a last batch of the same size."""
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return labels
        real = state.remainder - self.args.process_index * labels.shape[0]
        labels = labels.clone()
        labels[max(real, 0) :] = IGNORED_LABEL
        return labels

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        if skip_scheduler and self.state.global_step:
            return {}  # this is for `eval_on_start`, and a resumed run was evaluated at its start
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate; the loss is the mean over all trained tokens, and metrics that generate are added."""
        self._eval_sums = np.zeros(2)  # the loss over all trained tokens, and their number
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        metrics = output.metrics or {}
        total, count = np.sum(gather_object([self._eval_sums]), axis=0).tolist()
        metrics[f"{metric_key_prefix}_loss"] = total / count if count else float("nan")
        if self.metrics.of_texts:
            answers = generate_answers(
                self.accelerator,
                self.model,
                self.tokenizer,
                self.eval_dataset,
                self.metrics.max_new_tokens,
                self.args,
            )
            for name, value in self.metrics.compute_on_texts(answers).items():
                metrics[f"{metric_key_prefix}_{name}"] = value
        wanted = self.args.metric_for_best_model
        if wanted is not None and f"eval_{wanted.removeprefix('eval_')}" not in metrics:
            raise UserError(f"training.metric_for_best_model: no evaluation gives {wanted!r}{nearest(wanted, metrics)}")
        return output._replace(metrics=metrics)

    # Loading

    def _load_best_model(self) -> None:
        self.model = self.model_wrapped = self.reload_best(str(self.state.best_model_checkpoint))
        self._move_model_to_device(self.model, self.args.device)
        self.callback_handler.model = self.model
        self.loss_computer = LossComputer(self.plugins.one("loss"), self.model, self.accelerator, self.args)


def _flops_per_token(model: Any) -> int:
    """Six for each parameter outside the embeddings (Kaplan et al., arXiv 2001.08361); 0 for a stranger's module."""
    return 6 * int(model.num_parameters(exclude_embeddings=True)) if hasattr(model, "num_parameters") else 0
