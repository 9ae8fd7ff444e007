"""Metrics at evaluation: several at once, on predicted tokens or on generated answers."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import EvalPrediction, GenerationConfig, TrainingArguments
from transformers.trainer_pt_utils import nested_numpify

from swiftplug.errors import ContractError, UserError
from swiftplug.plugin import Chat, Labels, Rows, Task
from swiftplug.plugin.loss import IGNORED_LABEL
from swiftplug.plugin.registry import BoundMetric, LoadedPlugin
from swiftplug.plugin.registry.errors import one_line
from swiftplug.plugin.registry.returns import check_metrics
from swiftplug.runs.console import RunProgress
from swiftplug.training.confusion import ConfusionMatrix


class Metrics:
    """All metric plugins of a run behind the one `compute_metrics` and `preprocess_logits_for_metrics` of Trainer.

    Args:
        plugins: The metric plugins.
        labels: The labels of rows, if they have any.

    Attributes:
        confusion: The confusion matrix; None unless each row has one class.
        of_tokens: Those that read logits, and the confusion matrix.
        of_texts: Those that read generated answers.
    """

    def __init__(self, plugins: Sequence[LoadedPlugin], labels: Labels | None = None) -> None:
        bound: list[BoundMetric] = [plugin.bound for plugin in plugins]
        self.confusion: ConfusionMatrix | None = None
        if labels is not None and labels.problem_type == "single_label_classification":
            self.confusion = ConfusionMatrix(labels.names)
            bound.append(BoundMetric("confusion matrix", self.confusion.compute, None))
        self.of_tokens = [metric for metric in bound if not metric.generate]
        self.of_texts = [metric for metric in bound if metric.generate]
        # Metrics that read the same thing share one copy of it.
        self._preprocessors = list(dict.fromkeys(metric.preprocess or predictions_of for metric in self.of_tokens))

    @property
    def max_new_tokens(self) -> int:
        """The longest answer that a metric asked for."""
        return max(metric.max_new_tokens for metric in self.of_texts)

    def preprocess(self, logits: torch.Tensor, labels: torch.Tensor) -> Any:
        """What the metrics keep of a batch's logits, `(B, T, V)` or `(B, C)`; the logits themselves are let go."""
        return tuple(preprocess(logits, labels) for preprocess in self._preprocessors)

    def compute(self, prediction: EvalPrediction) -> dict[str, float]:
        """The metrics of the whole evaluation set, from what `preprocess` kept of it."""
        kept = dict(zip(self._preprocessors, prediction.predictions, strict=True))
        return _merged(
            self.of_tokens,
            lambda metric: metric.compute(
                EvalPrediction(predictions=kept[metric.preprocess or predictions_of], label_ids=prediction.label_ids)
            ),
        )

    def compute_on_texts(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        """The metrics that read generated answers."""
        return _merged(self.of_texts, lambda metric: metric.compute(predictions, references))


def made_up_examples(task: Task, labels: Labels | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits and labels as an evaluation may have them; of labels that are not known yet, all sorts."""
    if task.rows is not Rows.LABELLED:
        return [(torch.eye(4)[None], torch.tensor([[IGNORED_LABEL, 1, 2, 3]]))]
    sorts = {
        "single_label_classification": (torch.eye(2), torch.tensor([0, 1])),
        "multi_label_classification": (torch.eye(2) - 0.5, torch.eye(2)),
        "regression": (torch.tensor([[0.0], [2.0]]), torch.tensor([0.0, 1.0])),
    }
    return [*sorts.values()] if labels is None else [sorts[str(labels.problem_type)]]


def measured_names(
    plugins: Sequence[LoadedPlugin], task: Task, labels: Labels | None
) -> tuple[frozenset[str], list[str]]:
    """What an evaluation gives, without `eval_`, found by computing the metrics of made-up examples.

    Args:
        plugins: The metrics.
        task: The task of the run.
        labels: The labels of its rows, if they are known.

    Returns:
        The names, and of each metric that fails on such examples, how: it may still be right about real ones.

    Raises:
        UserError: A metric refuses rows of this task, or two return the same name.
    """
    bound: list[BoundMetric] = [plugin.bound for plugin in plugins]
    examples = made_up_examples(task, labels)
    names, failed, refusals = {"loss"}, dict[str, str](), defaultdict[str, list[UserError]](list)
    for logits, targets in examples:

        def attempt(metric: BoundMetric, logits: torch.Tensor = logits, targets: torch.Tensor = targets) -> Any:
            try:
                if metric.generate:
                    return metric.compute(["1"], ["1"])
                kept = nested_numpify((metric.preprocess or predictions_of)(logits, targets))
                return metric.compute(EvalPrediction(predictions=kept, label_ids=targets.numpy()))
            except UserError as error:
                refusals[metric.name].append(error)
            except Exception as error:
                failed[metric.name] = f"{metric.name} fails on a made-up example ({one_line(error)})"
            return {}

        names |= _merged(bound, attempt).keys()
    for errors in refusals.values():
        if len(errors) == len(examples):
            raise errors[0]
    return frozenset(names), [*failed.values()]


def generate_answers(
    accelerator: Accelerator,
    model: Any,
    tokenizer: Any,
    chat: Chat,
    prompts: Sequence[Sequence[int]],
    opened: Sequence[str],
    max_new_tokens: int,
    args: TrainingArguments,
    progress: RunProgress,
) -> list[str]:
    """The greedy answer to each prompt, by left-padded batches of `per_device_eval_batch_size`, over all processes.

    `opened` has of each prompt the end of its text that belongs to the answer.
    """
    model = accelerator.unwrap_model(model)
    prompts = [list(map(int, ids)) for ids in prompts]
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=chat.end_ids or None,
        stop_strings=[chat.stop_text] if chat.stop_text else None,
    )
    # Longest first: prompts of about one length share a batch, and what does not fit into memory fails at once.
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    sharded = bool(args.fsdp or args.deepspeed)
    if sharded:  # each process needs the others for every token, so all have as many batches
        order += order[:1] * (-len(order) % args.world_size)
    mine = order[args.process_index :: args.world_size]
    batches = [mine[start : start + args.eval_batch_size] for start in range(0, len(mine), args.eval_batch_size)]
    answered: list[tuple[int, str]] = []
    with progress.start("generating answers", "batch", len(batches)) as activity:
        for rows in batches:
            batch = {"input_ids": [prompts[row] for row in rows]}
            padded = tokenizer.pad(batch, padding_side="left", return_attention_mask=True, return_tensors="pt")
            with torch.no_grad(), accelerator.autocast():
                output = model.generate(
                    **padded.to(accelerator.device),
                    generation_config=greedy,
                    tokenizer=tokenizer,
                    synced_gpus=sharded and args.world_size > 1,
                )
            drawn = output[:, padded["input_ids"].shape[1] :].tolist()
            answered += [(row, chat.answer(ids, opened[row])) for row, ids in zip(rows, drawn, strict=True)]
            activity.advance(answer=len(rows))
    by_row = dict(gather_object(answered))
    return [by_row[row] for row in range(len(prompts))]


def predictions_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What the model predicts: tokens or classes by their numbers, `(N, C)` 0 or 1 of several classes, or numbers."""
    if not labels.is_floating_point():
        return logits.argmax(dim=-1)
    return logits.squeeze(-1) if labels.dim() == 1 else (logits > 0).int()


def _merged(metrics: list[BoundMetric], compute: Callable[[BoundMetric], Any]) -> dict[str, float]:
    """The results of several metrics as one dictionary.

    Raises:
        UserError: One returned something other than named numbers, or two returned the same name.
    """
    merged: dict[str, float] = {}
    owner: dict[str, str] = {}
    for metric in metrics:
        try:
            result = check_metrics(compute(metric))
        except ContractError as error:
            raise UserError(f"metric {metric.name!r}: {error}") from None
        for name, value in result.items():
            if name in merged:
                raise UserError(f"metrics {owner[name]!r} and {metric.name!r} both return {name!r}; use one of them")
            merged[name], owner[name] = value, metric.name
    return merged
