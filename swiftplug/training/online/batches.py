"""The candidates of a drawing as tensors: what is known of their tokens, their advantages, and their batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.nn.utils.rnn import pad_sequence

from swiftplug.errors import UserError
from swiftplug.plugin import IGNORED_LABEL, Drawn, OnlineTask
from swiftplug.plugin.registry.returns import check_estimate
from swiftplug.runs.console import RunProgress
from swiftplug.sampling.rows import Row, is_cut_off
from swiftplug.training.online.record import DrawnCandidate, drawn_candidates
from swiftplug.training.task_loss import TaskLossComputer

Batch = dict[str, Any]


@dataclass
class DrawnBatches:
    """The batches of the last drawing, which each of its steps takes.

    Attributes:
        task: The run's task.
        accelerator: The trainer's.
        progress: Shows what it is doing.
        group_size: The candidates to each prompt.
        pad_token_id: Fills up rows.
        batches: Those that train.
        idle: Candidates that have no gradient, but count.
    """

    task: OnlineTask
    accelerator: Accelerator
    progress: RunProgress
    group_size: int
    pad_token_id: int
    batches: list[Batch] = field(default_factory=list)
    idle: list[Batch] = field(default_factory=list)

    def make(self, groups: Sequence[Row], count: int, step: int, loss: TaskLossComputer) -> None:
        """Make `count` batches, sorted by length, of the candidates that train; sets their advantages.

        Raises:
            UserError: No candidate of any process can train.
            ContractError: The task returns something else than it should.
        """
        candidates = list(drawn_candidates(groups))
        if not candidates:  # all processes compute together
            nothing = DrawnCandidate(0, "", "", prompt_ids=[self.pad_token_id] * 2)
            candidates = [replace(nothing) for _ in range(self.group_size)]
        whole = self._tensors(candidates)
        whole |= self._log_probabilities(whole, math.ceil(len(candidates) / count), loss)
        whole |= self._estimate(whole, candidates)
        kept = [place for place, each in enumerate(candidates) if each.advantage is not None]
        if not any(gather_object([len(kept)])):
            reasons = [*(why for each in candidates for why in each.reasons), *(group.failure for group in groups)]
            why = next((f": {reason}" for reason in reasons if reason), "")
            raise UserError(f"no candidate of step {step + 1} has a reward to learn from{why}")
        skips = self.task.skips_zero_advantages and not loss.aux_coefficient
        idle = [place for place in kept if skips and not whole["advantages"][place].any()]
        self.idle = [_cut(whole, torch.tensor(idle))] if idle else []
        order = sorted(set(kept).difference(idle), key=lambda place: (-int(whole["length"][place]), place))
        parts = torch.tensor_split(torch.tensor(order, dtype=torch.long), count)
        none = loss.first_rows(_cut(whole, whole["length"].argmin()[None]), 0)
        self.batches = [_cut(whole, part) if len(part) else none for part in parts]

    def _tensors(self, candidates: Sequence[DrawnCandidate]) -> Batch:
        """The tokens of candidates, padded on the right."""
        ids = pad_sequence([torch.tensor(it.prompt_ids + it.ids) for it in candidates], True, self.pad_token_id)
        length = torch.tensor([len(it.prompt_ids) + len(it.ids) for it in candidates])
        all_train = self.task.trains_cut_off
        trains = [it.trains if all_train or not is_cut_off(it.finish_reason) else [] for it in candidates]
        batch = {
            "input_ids": ids,
            "attention_mask": (torch.arange(ids.shape[1]) < length[:, None]).long(),
            "labels": ids.where(_at_drawn(candidates, trains) > 0, IGNORED_LABEL),
            "length": length,
        }
        if any(it.logps for it in candidates):
            batch["sampler_logps"] = _at_drawn(candidates, [it.logps for it in candidates])
        return {name: value.to(self.accelerator.device) for name, value in batch.items()}

    def _log_probabilities(self, whole: Batch, chunk: int, loss: TaskLossComputer) -> Batch:
        """`old_logps`, `reference_logps` and `values`, as far as they are needed, `chunk` candidates at a time."""
        needs_own = self.task.needs_logps or self.task.needs_values or self.task.num_iterations > 1
        wanted = {
            "old_logps": needs_own or "sampler_logps" in whole,
            "values": self.task.needs_values,
            "reference_logps": self.task.needs_reference,
        }
        blank = torch.zeros(whole["labels"].shape, device=self.accelerator.device)
        found = {name: blank.clone() for name, is_wanted in wanted.items() if is_wanted}
        order = whole["length"].argsort(descending=True)
        for name in [name for name in found if name != "values"]:
            of_reference = name == "reference_logps"
            doing = f"computing log-probabilities{' of the reference' if of_reference else ''}"
            with self.progress.start(doing) as activity:
                activity.postpone_line()
                for part in order.split(chunk):
                    tokens = loss.drawn_logps(_cut(whole, part), of_reference=of_reference)
                    found[name][part, : tokens.logps.shape[1]] = tokens.logps
                    if name == "old_logps" and tokens.values is not None:
                        found["values"][part, : tokens.logps.shape[1]] = tokens.values
        return found

    def _estimate(self, whole: Batch, candidates: Sequence[DrawnCandidate]) -> Batch:
        """What the task makes of the rewards; groups of which the engine drew nothing are not among them."""
        trains = whole["labels"] != IGNORED_LABEL
        rewards = [math.nan if it.reward is None else it.reward - math.fsum(it.token_rewards) for it in candidates]
        drawn = Drawn(
            torch.tensor(rewards, device=trains.device).reshape(-1, self.group_size),
            trains,
            _at_drawn(candidates, [it.token_rewards for it in candidates]).to(trains.device),
            whole.get("old_logps"),
            whole.get("reference_logps"),
            whole.get("values"),
            lambda tensor: self.accelerator.reduce(tensor),
        )
        estimated = check_estimate(self.task.estimate(drawn), trains)
        advantages = estimated["advantages"].reshape(len(candidates), -1)
        for each, own, trained in zip(candidates, advantages, trains, strict=True):
            own = own[trained] if len(own) > 1 else own
            mean = own.sum().item() / max(len(own), 1)  # that of a candidate whose tokens do not train is 0
            each.advantage = None if each.reward is None or math.isnan(mean) else mean
        return {name: value.nan_to_num() for name, value in estimated.items()}  # what is left out may fill up a step

    def save(self, checkpoint: Path, step: int) -> None:
        """Write the batches of this process into a checkpoint if its next step takes them again."""
        if step % self.task.num_iterations:
            torch.save([self.batches, self.idle], self._saved_in(checkpoint))

    def load(self, checkpoint: Path, step: int) -> None:
        """Read what `save` has written.

        Raises:
            UserError: It is not there.
        """
        if step % self.task.num_iterations:
            saved = self._saved_in(checkpoint)
            if not saved.is_file():
                raise UserError(f"--resume: {checkpoint} has no {saved.name}, which its next step takes up again")
            self.batches, self.idle = torch.load(saved, map_location=self.accelerator.device, weights_only=True)

    def _saved_in(self, checkpoint: Path) -> Path:
        return checkpoint / f"drawn-{self.accelerator.process_index}.pt"


def _at_drawn(candidates: Sequence[DrawnCandidate], values: Sequence[Sequence[float]]) -> torch.Tensor:
    """`(N, T)` float32 values of drawn tokens; 0 elsewhere, and for candidates without values."""
    both = zip(candidates, values, strict=True)
    rows = [[0.0] * len(it.prompt_ids) + ([*map(float, own)] or [0.0] * len(it.ids)) for it, own in both]
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def _cut(whole: Batch, rows: torch.Tensor) -> Batch:
    """Some rows of a batch, without the padding that all of them have."""
    rows = rows.to(whole["length"].device)
    width, longest = whole["labels"].shape[1], int(whole["length"][rows].max())
    cut = {name: value[rows] for name, value in whole.items()}
    return {
        name: value[:, :longest] if value.dim() > 1 and value.shape[1] == width else value
        for name, value in cut.items()
    }
