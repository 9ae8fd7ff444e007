"""Transformers' Trainer, with what it leaves to others: weighted losses, exact resume, plugins at every step.

What differs from the base class, and where:
- the order of the data is a function of seed and epoch (`EpochSampler`);
- optimizer and loss are plugins; a loss sees labelled positions only where that gives the same (`compute_loss`);
- `eval_loss` is the mean over the trained tokens of the whole set (`evaluation_loop`);
- saving and loading go through the tuner plugin (`save_model`), and a checkpoint appears whole or not at all
  (`CheckpointKeeper`); a resumed run is the same run (`train`).

Six private methods of the base class are overridden, because it has no public hook for them.
"""

import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, save_fsdp_optimizer
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from swiftplug.data.batching import Collator, DrawSampler, EpochSampler, collate_prompts
from swiftplug.data.prepare import PreparedData
from swiftplug.errors import ContractError, UserError, nearest
from swiftplug.plugin import OnlineTask
from swiftplug.plugin.registry.returns import check_optimizer
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import RunProgress
from swiftplug.runs.model import GENERATION_CONFIG
from swiftplug.training.checkpoint import FINAL_STAGING, STAGING, CheckpointKeeper, SaveAfterEpoch, marker_of, move_into
from swiftplug.training.evaluation import Metrics, generate_answers
from swiftplug.training.loss import LossComputer, Means, PluginLossComputer
from swiftplug.training.model import load_model_to_train
from swiftplug.training.online.prompts import draw_sampler
from swiftplug.training.online.rollouts import Rollouts
from swiftplug.training.online.values import save_value_head, without_value_head
from swiftplug.training.page.answers import SHOWN_ANSWERS
from swiftplug.training.page.curves import SECONDS
from swiftplug.training.task_loss import TaskLossComputer


class PlugTrainer(Trainer):
    """Trains one model with the plugins of a run.

    Args:
        args: The run's arguments, with its plugins.
        model: The model as the tuner prepared it.
        progress: Shows what it is doing.
        data: What it trains on, and is evaluated on.
        reference: The task's reference model, if it needs one and it is not the model with the tuner disabled.
        callbacks: As `Trainer` takes them.
    """

    def __init__(
        self,
        args: Arguments,
        model: torch.nn.Module,
        progress: RunProgress,
        data: PreparedData,
        reference: torch.nn.Module | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.run_args = args
        self.mixture, self.stream = data.mixture, data.stream
        if self.stream is not None:
            # Each process reads all rows and takes its own; by default the first one would send each its batches.
            args.training_args.accelerator_config.dispatch_batches = False
        self.reference = reference
        self.progress = progress
        self.plugins = args.plugins
        self.tokenizer: Any = args.load_tokenizer()
        self.metrics = Metrics(self.plugins.of("metric"), args.labels)
        self.run_dir = Path(args.training_args.output_dir)
        self.first_step = 0
        self.saved_final = False
        self.answers: list[tuple[str, str, str]] = []  # of the last evaluation: first prompts, references and answers
        super().__init__(
            model=model,
            args=args.training_args,
            processing_class=self.tokenizer,
            compute_metrics=self.metrics.compute if self.metrics.of_tokens else None,
            preprocess_logits_for_metrics=self.metrics.preprocess if self.metrics.of_tokens else None,
            train_dataset=data.stream or data.train,
            eval_dataset=data.eval,
            data_collator=collate_prompts if data.prompts else Collator(self.tokenizer.pad_token_id),
            callbacks=[*callbacks],
        )
        # What `get_batch_samples` counts is what the loss is divided by: Trainer must not divide it again.
        self.model_accepts_loss_kwargs = True
        self.rollouts: Rollouts | None = None
        if isinstance(args.task, OnlineTask):
            self.rollouts = Rollouts(args, model, self.accelerator, progress, data.prompts, data.eval_prompts)
        self.sampler = self._make_sampler(data.train["length"]) if self.stream is None else None
        if self.stream is not None:
            self.stream.batch_size = self.get_total_train_batch_size(self.args)
        self._order_callbacks()
        # Six for each parameter outside the embeddings (arXiv 2001.08361); 0 where a module cannot count them.
        num_parameters: Any = getattr(model, "num_parameters", None)
        self._flops_per_token = 6 * int(num_parameters(exclude_embeddings=True)) if num_parameters else 0
        self.loss_computer = self._make_loss_computer(model)
        self._logged = Means()  # of what the task logs, since the last log
        self._seconds: defaultdict[str, float] = defaultdict(float)  # of what an online task does, since then

    def create_accelerator_and_postprocess(self) -> None:
        """As the base class; FSDP2 also on CPUs, where PyTorch has it and accelerate does not switch it on."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and not self.is_fsdp_enabled:
            plugin = FullyShardedDataParallelPlugin(**(self.args.fsdp_plugin_args or {}))
            if self.accelerator.mixed_precision != "no":
                plugin.set_mixed_precision(self.accelerator.mixed_precision)
            self.accelerator.state.fsdp_plugin = plugin
            self.accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def _make_loss_computer(self, model: torch.nn.Module) -> LossComputer:
        """The loss plugin's in tasks that have one, else the task's own."""
        if "loss" in self.run_args.task.kinds:
            return PluginLossComputer(self.plugins.one("loss"), model, self.accelerator, self.args)
        disabled = self.plugins.one("tuner").bound.disabled
        return TaskLossComputer(
            self.plugins.one("task"),
            model,
            self.accelerator,
            self.args,
            self.reference,
            disabled,
            self.run_args.config.temperature,
        )

    def _order_callbacks(self) -> None:
        """Put our callbacks where they must be, and reporters behind all plugins that add to the logs."""
        callbacks = self.callback_handler.callbacks
        reporters = tuple(get_reporting_integration_callbacks(self.args.report_to))
        callbacks.sort(key=lambda callback: isinstance(callback, reporters))
        self.keeper = CheckpointKeeper(self.run_dir, self.accelerator, callbacks)
        order = _OrderOfEpoch(self.sampler) if self.sampler is not None else _ShareOfRun()
        callbacks[:] = [self.keeper, order, *callbacks, SaveAfterEpoch()]

    # Data

    def _make_sampler(self, lengths: Sequence[int]) -> EpochSampler | DrawSampler:
        """The order of the rows, or of the prompts that each step draws answers to."""
        rows = self.get_total_train_batch_size(self.args)
        if self.rollouts is None:
            grouped = self.run_args.config.data.group_by_length
            return EpochSampler(lengths, rows, self.args.seed, grouped, self.mixture)
        return draw_sampler(self.run_args, len(lengths))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The base class's own; a stream, which a resumed run opens anew, draws no random number where it begins."""
        loader: Any = super().get_train_dataloader()
        if self.stream is not None:
            loader.base_dataloader.generator = torch.Generator()
        return loader  # type: ignore[no-any-return]

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler | DrawSampler | None:
        return self.sampler

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of an accumulation step, and what their losses are divided by, over all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        if not batches:
            return batches, None
        if self.rollouts is not None:
            assert isinstance(self.loss_computer, TaskLossComputer)
            self.progress.seconds.clear()
            batches = self.rollouts.step(batches, self.state.global_step, self.loss_computer)
            for doing, seconds in self.progress.seconds.items():
                self._seconds[doing] += seconds
            self._logged.add_all(self.rollouts.logged)
        elif self.loss_computer.adds_up:  # the mean of none is nan
            batches[-1] = self._without_repeated_rows(batches[-1])
        idle = self.rollouts.drawn.idle if self.rollouts is not None else []
        counts = [self.loss_computer.counts(batch) for batch in [*batches, *idle]]
        totals = {name: torch.stack([count[name] for count in counts]).sum().to(device) for name in counts[0]}
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            totals = {name: self.accelerator.gather(total).sum() for name, total in totals.items()}
        return batches, {name: total.clamp(min=1) for name, total in totals.items()}

    # The run

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Train, or resume from a checkpoint exactly, as if the run had never been interrupted."""
        if resume_from_checkpoint:
            state = self.keeper.resume(Path(str(resume_from_checkpoint)), self.control)
            self.first_step = state.global_step
            if self.rollouts is not None:
                self.rollouts.drawn.load(Path(str(resume_from_checkpoint)), self.first_step)
            if self.stream is not None:
                self.stream.load(Path(str(resume_from_checkpoint)))
                self.args.ignore_data_skip = True  # it goes on where it was
            self.args.eval_on_start = False  # the run was evaluated at its start
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        except BaseException:
            if self.args.should_save:
                shutil.rmtree(self.run_dir / STAGING, ignore_errors=True)
            raise

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader[Any]) -> Any:
        """The steps and epochs of the base class, but a finished run trains no further epoch."""
        epochs, steps_per_epoch, *others, max_steps = super().set_initial_training_values(args, dataloader)
        self.run_args.num_training_steps = max_steps
        if self.control.should_training_stop:
            epochs = self.first_step // steps_per_epoch
        return epochs, steps_per_epoch, *others, max_steps

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Ask the optimizer plugin for an optimizer and scheduler; what it leaves out is the base class's own.

        Raises:
            UserError: It returned something other than its contract says.
        """
        if self.optimizer is None:
            plugin = self.plugins.one("optimizer")
            made = plugin.bound(self.run_args, self.model if model is None else model, self.train_dataset)
            try:
                self.optimizer, self.lr_scheduler = check_optimizer(made)
            except ContractError as error:
                raise UserError(f"optimizer {plugin.found.qualified_name!r}: {error}") from None
        return super().create_optimizer(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, also what the task logs, but no mean loss of no steps, which a run has that was resumed at its end."""
        if self.state.global_step == self.first_step:
            logs.pop("train_loss", None)
        if "train_loss" in logs:  # of the steps since the last log, the base class knows those of this process alone
            of_processes = Means()
            of_processes.add("train_loss", logs["train_loss"], 1)
            logs |= of_processes.gather()
        if "loss" in logs:
            logs |= self._logged.gather()
            self._logged = Means()
            logs |= {f"{SECONDS}{doing.replace(' ', '_')}": round(each, 3) for doing, each in self._seconds.items()}
            self._seconds.clear()
        super().log(logs, start_time)
        if self.rollouts is not None:
            self.rollouts.report_lost(self.state.global_step)

    # Loss

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The loss and its gradient for one micro-batch; see `Trainer.training_step`."""
        started = time.monotonic()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.rollouts is not None:
            self._seconds["training"] += time.monotonic() - started
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of one micro-batch, scaled so that those of an accumulation step add up to the step's."""
        computed = self.loss_computer(model, inputs, num_items_in_batch, need_logits=return_outputs)
        loss = computed.loss
        if not self.loss_computer.adds_up:
            loss = loss / self.current_gradient_accumulation_steps
        elif self.args.average_tokens_across_devices:
            # Gradients are averaged over processes, but the tokens were counted over all of them.
            loss = loss * self.accelerator.num_processes
        self._check_finite(loss)
        self._logged.add_all(computed.logged)
        return (loss, computed.outputs) if return_outputs else loss

    def _check_finite(self, loss: torch.Tensor) -> None:
        """Stop where a loss is not a number, before it reaches the weights.

        Raises:
            UserError: It is nan or infinite.
        """
        if not torch.isfinite(loss):
            found = self.loss_computer.plugin.found
            raise UserError(
                f"step {self.state.global_step + 1}: the loss {found.qualified_name!r} is {loss.item()}; the weights "
                f"are as they were before this step. Look at the {found.kind} plugin, or lower training.learning_rate"
            )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As the base class has it, which goes through all modules again for each batch."""
        return self._flops_per_token * int(inputs["input_ids"].numel())

    # Evaluation

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        """The parts of the loss of an evaluation batch, added up, and its logits where a metric reads them."""
        with torch.no_grad(), self.compute_loss_context_manager():
            batch = self._without_repeated_rows(inputs)
            counts = self.loss_computer.counts(batch)
            totals = {name: count.clamp(min=1) for name, count in counts.items()}
            computed = self.loss_computer(model, batch, totals, need_logits=not prediction_loss_only)
        loss = computed.loss.detach()
        for name, part in computed.sums.items():
            self._eval_parts.add(name, part.item(), counts[name].item())
        self._eval_logged.add_all(computed.logged)
        self._evaluating.advance()
        if prediction_loss_only:
            return loss, None, None
        logits, labels = computed.outputs.logits.detach(), inputs["label" if "label" in inputs else "labels"]
        # All processes must give as many rows; those that were repeated are dropped when they are gathered.
        repeated = logits[:1].expand(len(labels) - len(logits), *logits.shape[1:])
        return loss, torch.cat([logits, repeated]), labels

    def _without_repeated_rows(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch without the rows that accelerate repeats to give every process a last batch of the same size."""
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return batch
        rows = len(batch["length"])
        real = state.remainder - self.args.process_index * rows
        return self.loss_computer.first_rows(batch, min(max(real, 0), rows))

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate; the loss is the mean over all trained tokens, and metrics that generate are added."""
        if self.rollouts is not None:
            measured = self.rollouts.evaluate(metric_key_prefix)
            # The base class reads no predictions of what has none, though the type asks for them.
            return EvalLoopOutput(None, None, measured, len(self.rollouts.eval_prompts))  # type: ignore[arg-type]
        self._eval_parts, self._eval_logged = Means(), Means()  # of the whole set: parts of the loss, and the rest
        loop = super().evaluation_loop
        with self.progress.start("evaluating", "batch", len(dataloader)) as self._evaluating:
            output = loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        metrics = output.metrics or {}
        parts = self._eval_parts.gather()
        metrics[f"{metric_key_prefix}_loss"] = sum(parts.values()) if parts else float("nan")
        logged = {f"{metric_key_prefix}_{name}": mean for name, mean in self._eval_logged.gather().items()}
        if both := sorted(metrics.keys() & logged.keys()):
            raise UserError(
                f"{self.plugins.one('task').found} logs {both[0]!r}, which a metric returns too; rename one"
            )
        metrics |= logged
        if self.metrics.of_texts:
            # Of a row that was split only one example has the prompt; a row that begins with an answer has none.
            rows: Any = self.eval_dataset
            rows = rows.select([place for place, ids in enumerate(rows["prompt_ids"]) if len(ids)])
            predictions = generate_answers(
                self.accelerator,
                self.model,
                self.tokenizer,
                self.run_args.load_chat(self.accelerator.unwrap_model(self.model)),
                rows["prompt_ids"],
                [str(text) for text in rows["opened"]],
                self.metrics.max_new_tokens,
                self.args,
                self.progress,
            )
            references = [str(text) for text in rows["reference"]]
            self.answers = [
                (self.tokenizer.decode([*map(int, ids)]), reference, prediction)
                for ids, reference, prediction in islice(
                    zip(rows["prompt_ids"], references, predictions, strict=True), SHOWN_ANSWERS
                )
            ]
            with self.progress.start("computing metrics"):
                computed = self.metrics.compute_on_texts(predictions, references)
            named = {f"{metric_key_prefix}_{name}": value for name, value in computed.items()}
            if twice := named.keys() & metrics.keys():
                raise UserError(f"metrics: two results have the name {min(twice)!r}; use one of the metrics")
            metrics |= named
        wanted = self.args.metric_for_best_model
        if wanted is not None and f"eval_{wanted.removeprefix('eval_')}" not in metrics:
            raise UserError(f"training.metric_for_best_model: no evaluation gives {wanted!r}{nearest(wanted, metrics)}")
        return output._replace(metrics=metrics)

    # Saving and loading

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Let the tuner plugin write the weights; all processes take part, since sharded weights are gathered."""
        # Averaging optimizers keep other weights for use than for training; both runs, broken or not, switch here.
        use_weights = getattr(self.optimizer, "eval", None)
        if callable(use_weights):
            use_weights()
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        state_dict = self.accelerator.get_state_dict(self.model_wrapped) if sharded else None
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if state_dict is not None:  # of tied weights each name has a copy of its own
            first: dict[int, str] = {}
            for name, tensor in model.state_dict(keep_vars=True).items():
                if name in state_dict:
                    state_dict[name] = state_dict[first.setdefault(id(tensor), name)]
        tuner = self.plugins.one("tuner").bound
        with without_value_head(model):
            tuner.save_pretrained(model, str(folder), state_dict=state_dict, safe_serialization=True)
        card = folder / "README.md"
        if card.is_file() and "[More Information Needed]" in card.read_text(encoding="utf-8"):
            card.unlink()  # PEFT's form, which nobody has filled in
        if not (folder / GENERATION_CONFIG).exists() and hasattr(model, "generation_config"):  # an adapter has no own
            model.generation_config.to_json_file(folder / GENERATION_CONFIG)
        self.tokenizer.save_pretrained(folder)
        place = self.run_dir
        if folder.name.startswith("checkpoint-"):
            place = self.run_dir / folder.name
            save_value_head(model, folder)
        marker_of(self.run_args, self.run_dir, place).write(folder)

    def save_final(self) -> None:
        """Write the trained weights to the root of the run's folder, all of them or none."""
        staging = self.run_dir / FINAL_STAGING
        try:
            self.save_model(str(staging))
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        if self.args.should_save:
            move_into(self.run_dir, staging)
        self.saved_final = True

    def _get_output_dir(self, trial: Any) -> str:
        """Where Trainer writes checkpoints; `CheckpointKeeper` moves them out of there when they are whole."""
        return str(self.run_dir / STAGING)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # Not as the base class, which would write the weights too, which `save_model` has written.
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save and self.lr_scheduler is not None:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # in each process
        if self.rollouts is not None:
            self.rollouts.drawn.save(Path(output_dir), self.state.global_step)
        if self.stream is not None and self.args.should_save:
            self.stream.save(Path(output_dir), self.state.global_step * self.stream.batch_size)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Nothing: the tuner plugin has loaded the weights, before this trainer was made."""

    def _load_best_model(self) -> None:
        self.model = self.model_wrapped = load_model_to_train(
            self.run_args, Path(str(self.state.best_model_checkpoint))
        )
        if getattr(self.model, "hf_device_map", None) is None:
            self.model.to(self.args.device)
        self.callback_handler.model = self.model
        self.loss_computer = self._make_loss_computer(self.model)


class _ShareOfRun(TrainerCallback):
    """Counts as epoch of streamed data, whose end is not known, the share of the run, in a resumed run too."""

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        state.epoch = state.global_step / state.max_steps


class _OrderOfEpoch(TrainerCallback):
    """Gives each epoch its own order of the data, in a resumed run too.

    The base class looks for a sampler in accelerate's wrappers, of which a resumed run has one more than it expects.
    """

    def __init__(self, sampler: EpochSampler | DrawSampler) -> None:
        self.sampler = sampler

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.epoch = int(state.epoch or 0)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(self.epoch)
        self.epoch += 1
