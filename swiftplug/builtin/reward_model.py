"""Reward models: checkpoints that score an answer, or every step of it."""

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from swiftplug.plugin import ORM, PRM, InferRequest, Unscored, UserError

if TYPE_CHECKING:
    from swiftplug.builtin.reward_checkpoint import RewardCheckpoint

ADAPTER_CONFIG = "adapter_config.json"
_SEQUENCE, _TOKEN = "ForSequenceClassification", "ForTokenClassification"


class _RewardModel:
    """A reward checkpoint: its config is checked when a run begins, its weights are loaded at the first call.

    Args:
        model: A folder, also of a run of task `rm` or `prm` or of a PEFT adapter; or a hub id.
        batch_size: Conversations scored at once.
        step_separator: The text between the steps of an answer, which followed each step in training; None: that of
            the run whose folder it is, else a line break. For token classification only.
        dtype: The data type of the weights; `auto` is the best one for the device.
        revision: Branch, tag or commit on the hub; None is the main branch.

    Raises:
        UserError: There is no such checkpoint, it is not a reward model, or it was trained with another separator.
    """

    def __init__(
        self,
        model: str,
        batch_size: PositiveInt = 16,
        step_separator: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        revision: str | None = None,
    ) -> None:
        if step_separator == "":
            raise UserError("reward_model.step_separator: is empty, expected the text between steps")
        self._model, self._revision, self._batch_size, self._dtype = model, revision, batch_size, dtype
        trained_with = _run_separator(model)
        if step_separator and trained_with and step_separator != trained_with:
            raise UserError(
                f"reward_model.step_separator: found {step_separator!r}, but {model!r} was trained with "
                f"{trained_with!r}; drop it"
            )
        self._step_separator = step_separator or trained_with or "\n"
        self._by_step = _scores_steps(model, revision)
        if step_separator and not self._by_step:
            raise UserError(f"reward_model.step_separator: {model!r} scores whole answers, not steps; drop it")

    @cached_property
    def _checkpoint(self) -> "RewardCheckpoint":
        from swiftplug.builtin.reward_checkpoint import RewardCheckpoint  # imports torch

        return RewardCheckpoint(
            self._model, self._revision, self._by_step, self._batch_size, self._step_separator, self._dtype
        )


class RewardModel(_RewardModel, ORM):
    """Scores answers with a reward checkpoint.

    One for sequence classification scores the conversation as its chat template renders it: with one label the logit is
    the reward, with two the probability of label 1. One for token classification scores steps as `ProcessRewardModel`
    does, and an answer gets the reward of its worst step.
    """

    needs_reference = False
    right_from = None

    def __call__(
        self, infer_requests: list[InferRequest], ground_truths: list[Any], **kwargs: Any
    ) -> list[float | Unscored]:
        """Score the last message of each request; see `ORM.__call__`. References are ignored.

        Raises:
            UserError: The checkpoint cannot be loaded, or a batch does not fit into the GPU's memory.
        """
        scored = self._checkpoint.score(infer_requests)
        return [rewards if isinstance(rewards, Unscored) else min(rewards) for rewards in scored]


class ProcessRewardModel(_RewardModel, PRM):
    """Scores the steps of answers with a checkpoint for token classification, in the form of TRL's PRMTrainer.

    The model reads the prompt, then every step followed by the separator. A step's reward is the probability of label 1
    at the last token of its separator (Uesato et al., arXiv 2211.14275). A checkpoint for sequence classification
    scores the whole answer, as in `RewardModel`.
    """

    def __call__(self, infer_requests: list[InferRequest], **kwargs: Any) -> list[float | list[float] | Unscored]:
        """Reward each step or each answer, depending on the checkpoint; see `PRM.__call__`. References are ignored.

        Raises:
            UserError: The checkpoint cannot be loaded, or a batch does not fit into the GPU's memory.
        """
        scored = self._checkpoint.score(infer_requests)
        return [rewards if self._by_step or isinstance(rewards, Unscored) else rewards[0] for rewards in scored]

    def step_ends(self, text: str) -> list[int]:
        """See `PRM.step_ends`; the separators are behind the ends."""
        ends, end = [], -len(self._step_separator)
        for step in text.split(self._step_separator):
            end += len(self._step_separator) + len(step)
            if step.strip():
                ends.append(end)
        return ends


def _scores_steps(model: str, revision: str | None) -> bool:
    """Whether a checkpoint scores steps, not whole answers. Only its `config.json` or `adapter_config.json` is read."""
    if (adapter := Path(model).expanduser() / ADAPTER_CONFIG).is_file() and not adapter.with_name(
        "config.json"
    ).exists():
        task_type = json.loads(adapter.read_text(encoding="utf-8")).get("task_type")
        if task_type not in ("SEQ_CLS", "TOKEN_CLS"):
            raise UserError(f"reward_model: {model!r} is an adapter of type {task_type}; expected SEQ_CLS or TOKEN_CLS")
        return bool(task_type == "TOKEN_CLS")
    config = json.loads(_config_file(model, revision).read_text(encoding="utf-8"))
    architecture = str((config.get("architectures") or ["model of no named architecture"])[0])
    num_labels = len(config["id2label"]) if "id2label" in config else 2  # Transformers' default is not written
    by_step = architecture.endswith(_TOKEN)
    if not (by_step or architecture.endswith(_SEQUENCE)):
        raise UserError(f"reward_model: {model!r} is a {architecture}; expected one {_SEQUENCE} or {_TOKEN}")
    if num_labels not in ((2,) if by_step else (1, 2)):
        expected = "2, the second for a right step" if by_step else "1, or 2, the second for a right answer"
        raise UserError(f"reward_model: {model!r} has {num_labels} labels; expected {expected}")
    return by_step


def _run_separator(model: str) -> str | None:
    """The separator of steps of the training run whose folder it is; None if it is no such folder."""
    marker = Path(model).expanduser() / "swiftplug.json"
    task = json.loads(marker.read_text(encoding="utf-8")).get("task") if marker.is_file() else None
    return task and task.get("step_separator")  # files of older versions lack it


def _config_file(model: str, revision: str | None) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"reward_model: the folder {model!r} has no config.json; expected a checkpoint")
        return folder / "config.json"
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json", revision=revision))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"reward_model: {model!r} is not a folder, and cannot be loaded from the hub: {reason}"
        ) from error
