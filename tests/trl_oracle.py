"""TRL as an independent source: the tokens, the loss and the gradients of the first step of one of its trainers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

IGNORED = -100


class Step(NamedTuple):
    """A training step on one batch, before the weights change.

    Attributes:
        texts: For each conversation of the batch its token ids and its labels, without padding, in sorted order.
        loss: The loss.
        gradients: The gradient of each trained parameter, by name.
    """

    texts: list[tuple[list[int], list[int]]]
    loss: float
    gradients: dict[str, torch.Tensor]


def texts_of(input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> list[Any]:
    """The conversations of a padded batch; the label of a first token, which nothing predicts, does not count."""
    labels = labels.clone()
    labels[:, 0] = IGNORED
    rows = zip(input_ids, attention_mask.bool(), labels, strict=True)
    return sorted((ids[mask].tolist(), targets[mask].tolist()) for ids, mask, targets in rows)


def trl_step(
    trainer: str,
    model_dir: Path,
    rows: Sequence[dict[str, Any]],
    folder: Path,
    adapter: Mapping[str, torch.Tensor] | None = None,
    lora: Mapping[str, Any] | None = None,
    **options: Any,
) -> Step:
    """The first step of a TRL trainer on all rows at once, without dropout, in float32.

    Args:
        trainer: `DPO`, `KTO`, `CPO`, `ORPO` or `Reward`, whose texts have no labels.
        model_dir: The model.
        rows: The dataset, in TRL's format.
        folder: Where TRL may write.
        adapter: The weights at the start, by parameter name: those of a LoRA adapter (its base model is the
            reference) or, without `lora`, of the whole model. None leaves them as they are.
        lora: The fields of the adapter's `LoraConfig`; None trains the whole model.
        **options: Of the trainer's config.
    """
    config_class, trainer_class = _classes(trainer)
    is_reward = trainer == "Reward"
    auto, head = (AutoModelForSequenceClassification, {"num_labels": 1}) if is_reward else (AutoModelForCausalLM, {})
    model: Any = auto.from_pretrained(model_dir, dtype=torch.float32, **head)
    args = config_class(
        output_dir=str(folder),
        per_device_train_batch_size=len(rows),
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        **options,
    )
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    made = trainer_class(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        peft_config=None if lora is None else LoraConfig(task_type="SEQ_CLS" if is_reward else "CAUSAL_LM", **lora),
    )
    if adapter is not None:
        assert not made.model.load_state_dict(dict(adapter), strict=False).unexpected_keys
    made.model.train()
    batch = next(iter(made.get_train_dataloader()))
    loss = made.compute_loss(made.model, batch)
    loss.backward()
    gradients = {name: it.grad for name, it in made.model.named_parameters() if it.grad is not None}
    return Step(_texts(batch), loss.item(), gradients)


class Drawn(NamedTuple):
    """What a model drew for some prompts, as many candidates for each, and what they earned.

    Attributes:
        prompts: The token ids of each candidate's prompt; candidates to one prompt follow each other.
        answers: The token ids of each candidate, the end of the turn too unless it was cut off.
        rewards: Their rewards, nan where one is missing.
        sampler_logps: The log-probability of each token as another engine gives it; None without such an engine.
    """

    prompts: list[list[int]]
    answers: list[list[int]]
    rewards: list[float]
    sampler_logps: list[list[float]] | None = None


def trl_policy_step(
    trainer: str,
    model_dir: Path,
    drawn: Drawn,
    folder: Path,
    weights: tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]],
    **options: Any,
) -> Step:
    """The loss of TRL on candidates that it did not draw itself, all of them one batch, in float32.

    Args:
        trainer: `GRPO` or `RLOO`.
        model_dir: The reference model.
        drawn: The candidates.
        folder: Where TRL may write.
        weights: Those of the model when it drew, and those that it has now.
        **options: Of the trainer's config, `num_generations` among them.
    """
    config_class, trainer_class = _classes(trainer)
    count = len(drawn.answers)
    made = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        reward_funcs=lambda **_: [0.0] * count,
        args=config_class(
            output_dir=str(folder),
            per_device_train_batch_size=count,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to=[],
            **options,
        ),
        train_dataset=Dataset.from_list([{"prompt": "?"}] * count),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    texts = [""] * count
    logps = drawn.sampler_logps
    found = (drawn.prompts, drawn.answers, None, texts, logps, {}, None, None)
    made._generate = lambda _: found if trainer == "GRPO" else (drawn.prompts, drawn.answers, texts)
    made._calculate_rewards = lambda *_: torch.tensor(drawn.rewards)[:, None]
    made.use_vllm = logps is not None  # what it does with the probabilities of another engine
    made.model.train()
    before, now = weights
    made.model.load_state_dict(dict(before))
    batch = made._generate_and_score_completions([{"prompt": "?"}] * count)
    made.model.load_state_dict(dict(now))
    made.current_gradient_accumulation_steps = 1
    loss = made.compute_loss(made.model, batch)
    loss.backward()
    gradients = {name: it.grad for name, it in made.model.named_parameters() if it.grad is not None}
    ids, mask = (torch.cat([batch[f"prompt_{it}"], batch[f"completion_{it}"]], dim=1) for it in ("ids", "mask"))
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, : batch["prompt_ids"].shape[1]] = IGNORED
    return Step(texts_of(ids, mask, labels), loss.item(), gradients)


def _classes(trainer: str) -> tuple[Any, Any]:
    if trainer in ("DPO", "KTO", "Reward", "GRPO", "RLOO"):
        import trl

        return getattr(trl, f"{trainer}Config"), getattr(trl, f"{trainer}Trainer")
    if trainer == "CPO":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOConfig, ORPOTrainer


def _texts(batch: Mapping[str, Any]) -> list[Any]:
    """The conversations of a batch of TRL's, whose trainers name columns in three ways."""
    if "chosen_input_ids" in batch:
        columns = ("input_ids", "attention_mask", "labels")
        answers = [texts_of(*(batch[f"{it}_{column}"] for column in columns)) for it in ("chosen", "rejected")]
        return sorted(answers[0] + answers[1])
    if "completion_mask" not in batch:
        rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        return sorted((ids[mask].tolist(), []) for ids, mask in rows)
    prefixes = ["", "KL_"] if "KL_input_ids" in batch else [""]
    texts = []
    for prefix in prefixes:
        ids, trained = batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"]
        texts += texts_of(ids, batch[f"{prefix}attention_mask"], ids.masked_fill(trained == 0, IGNORED))
    return sorted(texts)


def assert_same(found: Step, expected: Step, terms: float = 0.1) -> None:
    """The same tokens, and the same loss and gradients to 1e-5 of the largest.

    The loss is a sum of terms of the size `terms`, which may cancel.
    """
    assert found.texts == expected.texts
    assert found.loss == pytest.approx(expected.loss, rel=1e-5, abs=1e-5 * terms), (found.loss, expected.loss)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        largest = float(gradient.abs().max())
        assert largest > 0
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-5, atol=1e-5 * largest)
