"""Scores conversations with a reward checkpoint, in batches."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from swiftplug.builtin.hardware import pick_device, pick_dtype
from swiftplug.plugin import InferRequest, Unscored, UserError, set_chat_template


class _Text(NamedTuple):
    """The tokens of a conversation, and the positions at which its steps end (none if it is scored as a whole)."""

    ids: list[int]
    ends: list[int]


class RewardCheckpoint:
    """A model with a head that gives rewards.

    Args:
        model: A folder or hub id.
        revision: Branch, tag or commit on the hub; None is the main branch.
        by_step: Whether it scores the steps of an answer, not the whole.
        batch_size: Conversations scored at once.
        step_separator: What is between the steps of an answer.
        dtype: The data type of the weights, or `auto`.

    Raises:
        UserError: The checkpoint cannot be loaded.
    """

    def __init__(
        self, model: str, revision: str | None, by_step: bool, batch_size: int, step_separator: str, dtype: str
    ) -> None:
        self._by_step, self._batch_size, self._separator = by_step, batch_size, step_separator
        self._device = pick_device()
        auto: Any = AutoModelForTokenClassification if by_step else AutoModelForSequenceClassification
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, revision=revision)
            weights: Any = {"dtype": pick_dtype(dtype, self._device)}
            if (Path(model).expanduser() / "config.json").is_file() or not Path(model).expanduser().is_dir():
                loaded: Any = auto.from_pretrained(model, revision=revision, **weights)
            else:
                loaded = _load_adapter(auto, Path(model).expanduser(), weights)
                # Its base model may have none, or another one than the sequences that it was trained on.
                loaded.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(f"reward_model: cannot load {model!r}: {reason}") from error
        set_chat_template(self._tokenizer, None)
        self._model = loaded.to(self._device).eval()
        self._config = loaded.config.get_text_config()
        self._has_padding = self._config.pad_token_id is not None

    def score(self, requests: list[InferRequest]) -> list[list[float] | Unscored]:
        """Score the last message of each request; conversations of similar length form a batch.

        Returns:
            For each request the rewards of its steps, or a single reward for the whole answer.

        Raises:
            UserError: A batch does not fit into the GPU's memory.
        """
        texts: dict[int, _Text] = {}
        results: dict[int, list[float] | Unscored] = {}
        for index, request in enumerate(requests):
            text = self._tokenize(request)
            if isinstance(text, Unscored):
                results[index] = text
            else:
                texts[index] = text
        order = sorted(texts, key=lambda index: -len(texts[index].ids))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            results.update(zip(batch, self._score_batch([texts[index] for index in batch]), strict=True))
        return [results[index] for index in range(len(requests))]

    def _tokenize(self, request: InferRequest) -> _Text | Unscored:
        """The tokens of the rendered conversation; to score steps, of the prompt and each step with its separator."""
        ends: list[int] = []
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                request.messages[:-1] if self._by_step else request.messages,
                tools=request.columns.get("tools"),
                add_generation_prompt=self._by_step,
                return_dict=True,
            )["input_ids"]
            for step in request.messages[-1]["content"].split(self._separator) if self._by_step else ():
                if step.strip():
                    for text in (step, self._separator):
                        ids = [*ids, *self._tokenizer(text, add_special_tokens=False)["input_ids"]]
                    ends.append(len(ids) - 1)
        except Exception as error:  # a template is a program and may raise anything
            return Unscored(f"the reward model's chat template refuses it: {' '.join(str(error).split())}")
        longest = getattr(self._config, "max_position_embeddings", None)
        if longest is not None and len(ids) > longest:
            return Unscored(f"it has {len(ids):,} tokens, the reward model reads at most {longest:,}")
        return _Text(ids, ends) if ends or not self._by_step else Unscored("it has no step")

    @torch.inference_mode()
    def _score_batch(self, texts: list[_Text]) -> list[list[float]]:
        if not self._has_padding:
            # A sequence classifier finds the end of a text by the padding token. If its config names none, it would
            # score the last token, even padding. So pad with a token that no text contains.
            used = {token for text in texts for token in text.ids}
            self._config.pad_token_id = next(token for token in range(len(used) + 1) if token not in used)
        width, pad = max(len(text.ids) for text in texts), self._config.pad_token_id
        ids = torch.tensor([text.ids + [pad] * (width - len(text.ids)) for text in texts], device=self._device)
        lengths = torch.tensor([len(text.ids) for text in texts], device=self._device)
        mask = (torch.arange(width, device=self._device) < lengths[:, None]).long()
        try:
            logits = self._model(input_ids=ids, attention_mask=mask).logits.float()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"reward_model.batch_size: {self._batch_size} conversations at once do not fit into the GPU's memory; "
                "lower it"
            ) from error
        rewards = (logits[..., 0] if logits.shape[-1] == 1 else logits.softmax(dim=-1)[..., 1]).cpu()
        return [
            row[text.ends].tolist() if self._by_step else [row.item()] for text, row in zip(texts, rewards, strict=True)
        ]


def _load_adapter(auto: Any, folder: Path, weights: dict[str, Any]) -> PeftModel:
    """A PEFT adapter with its head, on its base model, which may have been moved together with its folder."""
    config = PeftConfig.from_pretrained(str(folder))
    base = str(config.base_model_name_or_path)
    if not Path(base).is_dir() and (beside := folder / Path(base).name).is_dir():
        base = str(beside)
    saved = load_file(folder / "adapter_model.safetensors")
    heads = [tensor for name, tensor in saved.items() if {"score", "classifier"}.intersection(name.split("."))]
    if not heads:
        raise ValueError("the adapter holds no head")
    weights |= {"num_labels": len(heads[-1]), "ignore_mismatched_sizes": True, "revision": config.revision}
    model: PeftModel = PeftModel.from_pretrained(auto.from_pretrained(base, **weights), str(folder))
    return model
