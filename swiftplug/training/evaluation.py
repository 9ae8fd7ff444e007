"""Metrics at evaluation: several at once, on predicted tokens or on generated answers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import EvalPrediction, GenerationConfig, TrainingArguments
from transformers.trainer_pt_utils import nested_numpify

from swiftplug.errors import UserError
from swiftplug.plugin import Chat
from swiftplug.plugin.loss import IGNORED_LABEL
from swiftplug.plugin.registry import BoundMetric, LoadedPlugin
from swiftplug.plugin.registry.errors import ContractError, one_line
from swiftplug.plugin.registry.returns import check_metrics
from swiftplug.runs.console import RunProgress


class Metrics:
    """All metric plugins of a run behind the one `compute_metrics` and `preprocess_logits_for_metrics` of Trainer.

    Args:
        plugins: The metric plugins.

    Attributes:
        of_tokens: Those that read logits.
        of_texts: Those that read generated answers.
    """

    def __init__(self, plugins: Sequence[LoadedPlugin]) -> None:
        bound: list[BoundMetric] = [plugin.bound for plugin in plugins]
        self.of_tokens = [metric for metric in bound if not metric.generate]
        self.of_texts = [metric for metric in bound if metric.generate]
        # Metrics that read the same thing share one copy of it.
        self._preprocessors = list(dict.fromkeys(metric.preprocess or _argmax for metric in self.of_tokens))

    @property
    def max_new_tokens(self) -> int:
        """The longest answer that a metric asked for."""
        return max(metric.max_new_tokens for metric in self.of_texts)

    def preprocess(self, logits: torch.Tensor, labels: torch.Tensor) -> Any:
        """What the metrics keep of a batch's logits `(B, T, V)`; the logits themselves are let go."""
        return tuple(preprocess(logits, labels) for preprocess in self._preprocessors)

    def compute(self, prediction: EvalPrediction) -> dict[str, float]:
        """The metrics of the whole evaluation set, from what `preprocess` kept of it."""
        kept = dict(zip(self._preprocessors, prediction.predictions, strict=True))
        return _merged(
            self.of_tokens,
            lambda metric: metric.compute(
                EvalPrediction(predictions=kept[metric.preprocess or _argmax], label_ids=prediction.label_ids)
            ),
        )

    def compute_on_texts(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        """The metrics that read generated answers."""
        return _merged(self.of_texts, lambda metric: metric.compute(predictions, references))


def measured_names(plugins: Sequence[LoadedPlugin], notes: list[str]) -> frozenset[str] | None:
    """What an evaluation gives, without `eval_`, found by computing the metrics of a made-up example.

    None if a metric fails on it: it may still be right about real ones, so this is noted.
    """
    labels = torch.tensor([[IGNORED_LABEL, 1, 2, 3]])
    failed = []

    def attempt(metric: BoundMetric) -> Any:
        try:
            if metric.generate:
                return metric.compute(["1"], ["1"])
            kept = nested_numpify((metric.preprocess or _argmax)(torch.eye(4)[None], labels))
            return metric.compute(EvalPrediction(predictions=kept, label_ids=labels.numpy()))
        except Exception as error:
            failed.append(f"{metric.name} fails on a made-up example ({one_line(error)})")
            return {}

    names = _merged([plugin.bound for plugin in plugins], attempt)
    if failed:
        notes.append(f"metrics: {'; '.join(failed)}, so what they return is known at the first evaluation only")
        return None
    return frozenset({"loss", *names})


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
    mine = order[args.process_index :: args.world_size]
    batches = [mine[start : start + args.eval_batch_size] for start in range(0, len(mine), args.eval_batch_size)]
    answered: list[tuple[int, str]] = []
    with progress.start("generating answers", "batch", len(batches)) as activity:
        for rows in batches:
            batch = {"input_ids": [prompts[row] for row in rows]}
            padded = tokenizer.pad(batch, padding_side="left", return_attention_mask=True, return_tensors="pt")
            with torch.no_grad(), accelerator.autocast():
                output = model.generate(**padded.to(accelerator.device), generation_config=greedy, tokenizer=tokenizer)
            drawn = output[:, padded["input_ids"].shape[1] :].tolist()
            answered += [(row, chat.answer(ids, opened[row])) for row, ids in zip(rows, drawn, strict=True)]
            activity.advance(answer=len(rows))
    by_row = dict(gather_object(answered))
    return [by_row[row] for row in range(len(prompts))]


def _argmax(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


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
