"""A reward checkpoint, loaded: conversations in, rewards out, in batches."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from swiftplug.builtin.hardware import pick_device, pick_dtype
from swiftplug.builtin.reward_model import Head
from swiftplug.errors import UserError
from swiftplug.plugin.rewards import InferRequest, Unscored
from swiftplug.plugin.tokenizer import set_chat_template


class _Text(NamedTuple):
    """What the model reads.

    Attributes:
        ids: The tokens of a conversation.
        ends: Where its steps end, as positions in `ids`; empty for a model that scores the whole.
    """

    ids: list[int]
    ends: list[int]


class RewardCheckpoint:
    """A model with a head that scores.

    Args:
        model: A folder, or an id of the hub.
        head: What the checkpoint ends in.
        batch_size: Conversations that are scored at once.
        step_separator: What stands between the steps of an answer.
        dtype: Of the weights, or `auto`.

    Raises:
        UserError: The checkpoint cannot be loaded.
    """

    def __init__(self, model: str, head: Head, batch_size: int, step_separator: str, dtype: str) -> None:
        self._head, self._batch_size, self._separator = head, batch_size, step_separator
        self._device = pick_device()
        auto: Any = AutoModelForTokenClassification if head.by_step else AutoModelForSequenceClassification
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
            self._model: Any = (
                auto.from_pretrained(model, dtype=pick_dtype(dtype, self._device)).to(self._device).eval()
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"reward_model: cannot load {model!r}: {reason}") from error
        set_chat_template(self._tokenizer, None)
        self._config = self._model.config.get_text_config()
        self._pads = self._config.pad_token_id is not None

    def score(self, requests: list[InferRequest]) -> list[list[float] | Unscored]:
        """Score the last message of each request, conversations of about one length together.

        Args:
            requests: The conversations, answer last.

        Returns:
            For each the rewards of its steps, at least one, or the reward of the whole as the only one.

        Raises:
            UserError: A batch does not fit into the GPU's memory.
        """
        read = [self._read(request) for request in requests]
        results: list[list[float] | Unscored] = [Unscored("")] * len(requests)
        texts: dict[int, _Text] = {}
        for index, text in enumerate(read):
            if isinstance(text, Unscored):
                results[index] = text
            else:
                texts[index] = text
        order = sorted(texts, key=lambda index: -len(texts[index].ids))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            for index, rewards in zip(batch, self._run([texts[index] for index in batch]), strict=True):
                results[index] = rewards
        return results

    def _read(self, request: InferRequest) -> _Text | Unscored:
        """The tokens of a conversation; why there are none where it cannot be scored."""
        try:
            text = self._steps(request) if self._head.by_step else _Text(self._render(request, whole=True), [])
        except Exception as error:  # a template is a program, and raises what it likes
            return Unscored(f"the reward model's chat template refuses it: {' '.join(str(error).split())}")
        longest = getattr(self._config, "max_position_embeddings", None)
        if longest is not None and len(text.ids) > longest:
            return Unscored(f"it has {len(text.ids):,} tokens, the reward model reads at most {longest:,}")
        if self._head.by_step and not text.ends:
            return Unscored("it has no step")
        return text

    def _render(self, request: InferRequest, *, whole: bool) -> list[int]:
        ids: list[int] = self._tokenizer.apply_chat_template(
            request.messages if whole else request.messages[:-1],
            tools=request.columns.get("tools"),
            add_generation_prompt=not whole,
            return_dict=True,
        )["input_ids"]
        return ids

    def _steps(self, request: InferRequest) -> _Text:
        """The prompt, then each step with the separator behind it."""
        ids, ends = self._render(request, whole=False), []
        for step in request.messages[-1]["content"].split(self._separator):
            if step.strip():
                ids = [*ids, *self._plain(step), *self._plain(self._separator)]
                ends.append(len(ids) - 1)
        return _Text(ids, ends)

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @torch.inference_mode()
    def _run(self, texts: list[_Text]) -> Iterator[list[float]]:
        width = max(len(text.ids) for text in texts)
        pad = self._padding(texts)
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
        rewards = (logits[..., 0] if self._head.labels == 1 else logits.softmax(dim=-1)[..., 1]).cpu()
        for text, row in zip(texts, rewards, strict=True):
            yield row[text.ends].tolist() if self._head.by_step else [row.item()]

    def _padding(self, texts: list[_Text]) -> int:
        """The padding token, by which a sequence classifier finds the end of a text.

        One whose config names none is used with texts one by one, and ends them at the last token, whatever that is; so
        its padding is a token that no text has.
        """
        if not self._pads:
            used = {token for text in texts for token in text.ids}
            self._config.pad_token_id = next(token for token in range(len(used) + 1) if token not in used)
        pad: int = self._config.pad_token_id
        return pad
