"""The candidates of a step of an online task, from its prompts to the batches that train.

1. The engine draws G candidates for each prompt, turn by turn if an environment answers them.
2. The run's scorers score them; groups that teach nothing may be replaced by others.
3. The task's estimator makes advantages of the rewards.
4. The candidates with an advantage become batches, sorted by length.

A candidate's seed comes from the run's seed, the drawing, the place of its prompt in it, its row, its index, and its
turn: neither a resumed run nor one with other processes draws others.
"""

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import set_seed

from swiftplug.errors import UserError
from swiftplug.formatting import format_count
from swiftplug.plugin import IGNORED_LABEL, Answered, Drawn, Engine, OnlineTask, Prompt, Sampling
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import RunProgress
from swiftplug.runs.errors import naming_plugins
from swiftplug.sampling.rows import Row, is_cut_off
from swiftplug.sampling.scoring import Scorer, resolve_scorers
from swiftplug.sampling.selection import reduced
from swiftplug.sampling.statistics import pass_at
from swiftplug.training.online.episodes import Environments, Episode
from swiftplug.training.online.record import CandidateRecord, DrawnCandidate, drawn_candidates
from swiftplug.training.online.steps import rewards_steps, token_rewards
from swiftplug.training.online.values import without_value_head
from swiftplug.training.task_loss import TaskLossComputer

Batch = dict[str, Any]


_REPLACED = "another prompt was drawn in place of this one, or this one in vain: all its rewards are equal"


def evaluated_names(scorers: Sequence[Scorer], candidates: int) -> frozenset[str]:
    """What an evaluation gives, by so many candidates to each prompt."""
    judged = any(scorer.bound.right_from is not None for scorer in scorers)
    passes = [f"pass@{k}" for k in (1, candidates)] if judged else []
    return frozenset(
        ["reward", *(f"rewards/{each.name}" for each in scorers), "length", "cut_off", "missing_rewards", *passes]
    )


@dataclass
class Lost:
    """What drawing has cost: candidates without a reward, prompts without candidates, and prompts replaced.

    Attributes:
        counts: Their numbers, by `candidate`, `prompt` and `replaced`.
        reasons: Of the first two, the first reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, reason: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        self.reasons.setdefault(kind, reason)

    def merge(self, other: "Lost") -> None:
        """Add the counts of another."""
        self.counts.update(other.counts)
        self.reasons = other.reasons | self.reasons

    def __str__(self) -> str:
        """All of it in one line; empty if nothing was lost."""
        endings = {"candidate": "without a reward", "prompt": "without candidates"}
        parts = [
            f"{format_count(self.counts[kind], kind)} {ending} ({self.reasons[kind]})"
            for kind, ending in endings.items()
            if self.counts[kind]
        ]
        if replaced := self.counts["replaced"]:
            parts.append(f"{format_count(replaced, 'prompt')} replaced, as all their rewards were equal")
        return ", ".join(parts)


class Rollouts:
    """Draws and scores candidates with the model in training.

    Args:
        args: The run's arguments.
        model: The model as the tuner prepared it, not wrapped for several processes.
        accelerator: The trainer's.
        progress: Shows what it is doing.
        prompts: The rows to train on.
        eval_prompts: The rows to evaluate on.
    """

    def __init__(
        self,
        args: Arguments,
        model: torch.nn.Module,
        accelerator: Accelerator,
        progress: RunProgress,
        prompts: Sequence[Row],
        eval_prompts: Sequence[Row] = (),
    ) -> None:
        self.config: Any = args.config
        self.task: OnlineTask = args.task
        self.args = args
        self.model = model
        self.accelerator = accelerator
        self.progress = progress
        self.prompts, self.eval_prompts = prompts, eval_prompts
        self.engine: Engine = args.plugins.one("engine").bound
        self.scorers: list[Scorer] = resolve_scorers(self.config, args.plugins)
        self.sampling = Sampling(**{name: getattr(self.config, name) for name in Sampling._fields})
        self.chat = args.load_chat(model)
        used = args.plugins.of("environment")
        self.environments = Environments(args, self.chat, model) if used else None
        self.pad_token_id = int(args.load_tokenizer().pad_token_id or 0)
        self.record = CandidateRecord(args.training_args.output_dir, accelerator)
        self.replaced: list[Row] = []  # groups of the last drawing, or those in their stead, that teach nothing
        self.batches: list[Batch] = []  # of the last drawing
        self.idle: list[Batch] = []  # its candidates that have no gradient, but count
        self.logged: dict[str, torch.Tensor] = {}
        self.lost = Lost()  # in all, as far as it was reported
        self._lost_here = Lost()  # since, in this process
        with without_value_head(model):
            self.engine.follow(args, model)

    @property
    def reward_names(self) -> list[str]:
        """What rewards are called: the scorers, and the environment if it gives one."""
        names = [scorer.name for scorer in self.scorers]
        return names if not (self.environments and self.environments.gives_reward) else [*names, self.environments.name]

    def step(self, slots: Sequence[Batch], step: int, loss: TaskLossComputer) -> list[Batch]:
        """The batches of an optimizer step.

        Args:
            slots: The micro-batches of the step, whose `row` has the index of each candidate's prompt.
            step: The number of steps before it.
            loss: Computes log-probabilities.

        Returns:
            As many micro-batches.

        Raises:
            UserError: No candidate of any process can train.
        """
        self.logged = {}
        drawing, iteration = divmod(step, self.task.num_iterations)
        if iteration == 0:
            rows = torch.cat([each["row"] for each in slots])[:: self.sampling.num_return_sequences].tolist()
            with _random_numbers_of(self.sampling.seed_of(f"drawing {drawing}", self.accelerator.process_index)):
                groups = self._draw(drawing, rows)
                self.batches = self._make_batches(groups, len(slots), step, loss)
            self.logged = self._figures([*groups, *self.replaced])
            self.record.add([*groups, *self.replaced], step + 1)
        if len(self.batches) != len(slots):
            raise UserError(
                f"training.gradient_accumulation_steps: step {step + 1} goes on with what was drawn for "
                f"{len(self.batches)} micro-batches, found {len(slots)}"
            )
        return self.batches

    def save(self, checkpoint: Path, step: int) -> None:
        """Write the batches of this process into a checkpoint if its next step takes them again."""
        if step % self.task.num_iterations:
            kept = [*self.batches, *self.idle]
            tensors = {f"{index}.{name}": it for index, batch in enumerate(kept) for name, it in batch.items()}
            tensors = {name: it.clone(memory_format=torch.contiguous_format) for name, it in tensors.items()}
            save_file(tensors, self._saved_in(checkpoint), {"batches": str(len(self.batches))})

    def load(self, checkpoint: Path, step: int) -> None:
        """Read what `save` has written.

        Raises:
            UserError: It is not there.
        """
        if step % self.task.num_iterations:
            saved = self._saved_in(checkpoint)
            if not saved.is_file():
                raise UserError(f"--resume: {checkpoint} has no {saved.name}, which its next step takes up again")
            kept: defaultdict[int, Batch] = defaultdict(dict)
            with safe_open(saved, "pt", device=str(self.accelerator.device)) as file:
                count = int(file.metadata()["batches"])
                for name in file.keys():  # noqa: SIM118  # it is no mapping
                    index, _, column = name.partition(".")
                    kept[int(index)][column] = file.get_tensor(name)
            in_order = [kept[index] for index in sorted(kept)]
            self.batches, self.idle = in_order[:count], in_order[count:]

    def _saved_in(self, checkpoint: Path) -> Path:
        return checkpoint / f"drawn-{self.accelerator.process_index}.safetensors"

    def evaluate(self, prefix: str) -> dict[str, float]:
        """Draw for the held-out prompts: the means of rewards and lengths and, if a scorer judges, pass@k."""
        processes, own = self.accelerator.num_processes, self.accelerator.process_index
        places = range(own, len(self.eval_prompts), processes)
        groups = [replace(self.eval_prompts[place], position=place, candidates=[]) for place in places]
        self._sample(groups, "eval", "drawing for evaluation")
        self._score(groups)
        figures = {name: (values.sum().item(), values.numel()) for name, values in self._figures(groups).items()}
        right = [self._count_right(group) for group in groups]
        everywhere: list[tuple[Any, Any]] = gather_object([(figures, right)])
        values: dict[str, float] = {}
        for name in figures:
            count = sum(each[name][1] for each, _ in everywhere)
            values[name] = sum(each[name][0] for each, _ in everywhere) / count if count else math.nan
        counts = [count for _, each in everywhere for count in each if count is not None]
        largest = self.sampling.num_return_sequences
        for k in dict.fromkeys([1, largest]) if counts else ():
            values[f"pass@{k}"] = fmean(pass_at(min(k, n), n, right_ones) for n, right_ones in counts)
        return {f"{prefix}_{name}": value for name, value in values.items() if name != "teaching_groups"}

    def report_lost(self, step: int) -> None:
        """Print what was lost since the last time, if anything was; all processes take part."""
        since = Lost()
        for each in gather_object([self._lost_here]):
            since.merge(each)
        self._lost_here = Lost()
        self.lost.merge(since)
        if self.accelerator.is_main_process and str(since):
            self.progress.print_line(f"up to step {step}: {since}", "yellow")

    # Drawing

    def _draw(self, drawing: int, rows: Sequence[int]) -> list[Row]:
        """Draw and score the candidates of a step; replace groups that teach nothing, as often as the task says."""
        first = self.accelerator.process_index * len(rows)
        places = range(first, first + len(rows))
        groups = [
            replace(self.prompts[row], position=place, candidates=[]) for row, place in zip(rows, places, strict=True)
        ]
        self._sample(groups, str(drawing), "drawing")
        self._score(groups)
        self.replaced = []
        for attempt in range(1, self.task.filter_groups + 1):
            poor = [place for place, group in enumerate(groups) if not _teaches(group)]
            if not any(gather_object([len(poor)])):
                break
            # Another prompt, a function of the seed, the drawing and the place alone.
            others = [
                replace(
                    self.prompts[self.sampling.seed_of(f"{drawing}/{attempt}", places[place]) % len(self.prompts)],
                    position=places[place],
                    candidates=[],
                )
                for place in poor
            ]
            self._sample(others, f"{drawing}/{attempt}", "drawing again")
            self._score(others)
            for place, other in zip(poor, others, strict=True):
                if _teaches(other):
                    groups[place], other = other, groups[place]
                    self._lost_here.counts["replaced"] += 1
                for candidate in other.candidates:
                    candidate.reasons.append(_REPLACED)
                self.replaced.append(other)
        return groups

    def _sample(self, groups: Sequence[Row], drawing: str, doing: str) -> None:
        """Give each group its candidates, or the reason why it has none."""
        size = self.sampling.num_return_sequences
        episodes = self.environments.begin(groups, size) if self.environments else [[] for _ in groups]
        asked: dict[str, tuple[Prompt, Row]] = {}
        of_prompt: dict[str, list[Episode]] = {}
        for group, own in zip(groups, episodes, strict=True):
            begun = replace(group, prompt=[*group.prompt, *(own[0].start if own else [])])
            name = f"{drawing}/{group.position}/{group.id}"
            prompt = begun.as_prompt(self.args.plugins.one("tools").bound)._replace(id=name)
            asked[name] = prompt._replace(ids=self.chat.encode(prompt)[0]), group
            of_prompt[name] = own
        activity = self.progress.start(doing, "candidate", size * len(groups))
        activity.postpone_line()  # each step draws
        with activity:
            for answered in self._answers(asked, self.sampling):
                (prompt, group), own = asked[answered.id], of_prompt[answered.id]
                group.failure = answered.failure
                for index, completion in enumerate(answered.completions):
                    candidate = DrawnCandidate(
                        index,
                        completion.text,
                        completion.finish_reason,
                        prompt_ids=list(prompt.ids or ()),
                        ids=list(completion.ids),
                        trains=[True] * len(completion.ids),
                        logps=list(completion.logps),
                    )
                    group.candidates.append(candidate)
                    if own:
                        candidate.turns = list(own[index].start)
                        own[index].candidate = candidate
                activity.advance(size)
            if self.environments:
                self._play([episode for own in episodes for episode in own], drawing, activity)
        self.engine.rest()

    def _play(self, episodes: Sequence[Episode], drawing: str, activity: Any) -> None:
        """Let candidates and their environments answer each other until all episodes have ended."""
        assert self.environments is not None
        going = list(episodes)
        single = self.sampling._replace(num_return_sequences=1)
        for turn in itertools.count(1):
            replied = [*self.environments.answer(going, f"{drawing}/{turn}")]
            if not replied:
                break
            going = [episode for episode, _ in replied]
            by_prompt = {prompt.id: episode for episode, prompt in replied}
            asked = {prompt.id: (prompt, episode.row) for episode, prompt in replied}
            for answered in self._answers(asked, single):
                episode = by_prompt[answered.id]
                activity.advance(0, turn=1)
                if answered.failure:  # a group is whole or empty
                    episode.row.failure, episode.row.candidates = answered.failure, []
                else:
                    episode.go_on(answered.completions[0])
        self.environments.end(episodes)

    def _answers(self, asked: Mapping[str, tuple[Prompt, Row]], sampling: Sampling) -> Iterator[Answered]:
        """What the engine draws for prompts, which are given by their ids, each with its row.

        Raises:
            UserError: It leaves one out, or gives no tokens.
        """
        plugin, waiting = self.args.plugins.one("engine"), dict(asked)
        with naming_plugins([plugin]), without_value_head(self.model):
            for answered in self.engine.draw([prompt for prompt, _ in asked.values()], sampling):
                del waiting[answered.id]
                if not all(completion.ids for completion in answered.completions):
                    raise UserError(f"{plugin.found} returned a candidate without its tokens, expected `ids`")
                yield answered
        for _, row in waiting.values():
            raise UserError(f"{plugin.found} returned no result for {row.origin}")

    def _score(self, groups: Sequence[Row]) -> None:
        """Give the candidates of groups their rewards."""
        for group in groups:
            if group.failure:
                self._lost_here.add("prompt", group.failure)
            for candidate in group.candidates:
                candidate.rewards, candidate.unscored = {}, {}
        for scorer in self.scorers:
            if any(group.candidates for group in groups):
                with self.progress.start(f"scoring with {scorer.name}") as activity:
                    activity.postpone_line()
                    scorer.score(groups, self.config.score_timeout)
        of_steps = [each for each in self.scorers if rewards_steps(self.task, each)]
        weights = {each.name: each.weight for each in self.scorers if each not in of_steps}
        if self.environments:
            weights[self.environments.name] = self.environments.weight
        for group, candidate in ((row, it) for row in groups for it in drawn_candidates([row])):
            candidate.token_rewards = []
            if self.environments:
                self.environments.record(candidate)
            candidate.scores = {
                name: reduced(reward, self.config.prm_reduce) for name, reward in (candidate.rewards or {}).items()
            }
            candidate.reasons = [f"{name}: {why}" for name, why in candidate.unscored.items()]
            if candidate.reasons:
                self._lost_here.add("candidate", candidate.reasons[0])
            else:
                if of_steps:
                    _, opened = self.chat.encode(group.as_prompt(self.args.plugins.one("tools").bound))
                    candidate.token_rewards = token_rewards(group, candidate, opened, of_steps, self._decode)
                of_answer = (weights.get(name, 0) * score for name, score in candidate.scores.items())
                candidate.reward = math.fsum([*of_answer, *candidate.token_rewards])

    def _decode(self, ids: Sequence[int]) -> str:
        tokenizer: Any = self.args.load_tokenizer()
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _count_right(self, group: Row) -> tuple[int, int] | None:
        """How many of a group's candidates were judged, and of them are right; None if nothing judges."""
        judges = {it.name: it.bound.right_from for it in self.scorers if it.bound.right_from is not None}
        judged = [each for each in group.candidates if judges and judges.keys() <= each.scores.keys()]
        if not judged:
            return None
        return len(judged), sum(all(each.scores[name] >= least for name, least in judges.items()) for each in judged)

    # Batches

    def _make_batches(self, groups: Sequence[Row], count: int, step: int, loss: TaskLossComputer) -> list[Batch]:
        """The candidates that train as `count` batches; sets their advantages."""
        candidates = list(drawn_candidates(groups))
        if not candidates:  # all processes compute together
            nothing = [self.pad_token_id] * 2
            candidates = [
                DrawnCandidate(0, "", "", prompt_ids=nothing) for _ in range(self.sampling.num_return_sequences)
            ]
        whole = self._tensors(candidates)
        whole |= self._log_probabilities(whole, math.ceil(len(candidates) / count), loss)
        whole |= self._estimate(whole, candidates)
        kept = [place for place, each in enumerate(candidates) if each.advantage is not None]
        skips = self.task.skips_zero_advantages and not loss.aux_coefficient
        idle = [place for place in kept if skips and not whole["advantages"][place].any()]
        self.idle = [_cut(whole, torch.tensor(idle))] if idle else []
        if not any(gather_object([len(kept)])):
            reasons = [f"{name}: {reason}" for each in candidates for name, reason in each.unscored.items()]
            reasons += [group.failure for group in groups if group.failure]
            why = f": {reasons[0]}" if reasons else ""
            raise UserError(f"no candidate of step {step + 1} has a reward to learn from{why}")
        order = sorted(set(kept).difference(idle), key=lambda place: (-int(whole["length"][place]), place))
        parts = torch.tensor_split(torch.tensor(order, dtype=torch.long), count)
        none = loss.first_rows(_cut(whole, whole["length"].argmin()[None]), 0)
        return [_cut(whole, part) if len(part) else none for part in parts]

    def _tensors(self, candidates: Sequence[DrawnCandidate]) -> Batch:
        """The tokens of candidates, padded on the right."""
        lengths = [len(each.prompt_ids) + len(each.ids) for each in candidates]
        shape = len(candidates), max(lengths)
        ids = torch.full(shape, self.pad_token_id)
        labels, sampler = torch.full(shape, IGNORED_LABEL), torch.zeros(shape)
        for row, each in enumerate(candidates):
            start, end = len(each.prompt_ids), lengths[row]
            ids[row, :end] = torch.tensor(each.prompt_ids + each.ids)
            if self.task.trains_cut_off or not is_cut_off(each.finish_reason):
                trains = torch.tensor(each.trains, dtype=torch.bool)
                labels[row, start:end][trains] = ids[row, start:end][trains]
            if each.logps:
                sampler[row, start:end] = torch.tensor(each.logps)
        batch = {
            "input_ids": ids,
            "attention_mask": (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long(),
            "labels": labels,
            "length": torch.tensor(lengths),
            **({"sampler_logps": sampler} if any(each.logps for each in candidates) else {}),
        }
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
        with self.progress.start("computing log-probabilities") as activity:
            activity.postpone_line()
            for name in [name for name in found if name != "values"]:
                for part in order.split(chunk):
                    tokens = loss.drawn_logps(_cut(whole, part), of_reference=name == "reference_logps")
                    found[name][part, : tokens.logps.shape[1]] = tokens.logps
                    if name == "old_logps" and tokens.values is not None:
                        found["values"][part, : tokens.logps.shape[1]] = tokens.values
        return found

    def _estimate(self, whole: Batch, candidates: Sequence[DrawnCandidate]) -> Batch:
        """What the task makes of the rewards; groups of which the engine drew nothing are not among them."""
        trains = whole["labels"] != IGNORED_LABEL
        by_token, rewards = torch.zeros(trains.shape), torch.zeros(len(candidates))
        for row, each in enumerate(candidates):
            start, summed = len(each.prompt_ids), math.fsum(each.token_rewards)
            by_token[row, start : start + len(each.token_rewards)] = torch.tensor(each.token_rewards)
            rewards[row] = math.nan if each.reward is None else each.reward - summed
        rewards = rewards.reshape(-1, self.sampling.num_return_sequences).to(self.accelerator.device)
        drawn = Drawn(
            rewards,
            trains,
            by_token.to(rewards.device),
            whole.get("old_logps"),
            whole.get("reference_logps"),
            whole.get("values"),
            lambda tensor: self.accelerator.reduce(tensor),
        )
        estimated = dict(self.task.estimate(drawn))
        advantages = estimated["advantages"].reshape(len(candidates), -1)
        for each, own, trained in zip(candidates, advantages, trains, strict=True):
            own = own[trained] if len(own) > 1 else own
            mean = own.mean().item()
            each.advantage = None if math.isnan(mean) else mean
        return {name: value.nan_to_num() for name, value in estimated.items()}  # what is left out may fill up a step

    def _figures(self, groups: Sequence[Row]) -> dict[str, torch.Tensor]:
        """What is logged of the candidates, one value for each."""
        candidates = list(drawn_candidates(groups))
        names = self.reward_names
        logged = {
            "reward": [each.reward for each in candidates if each.reward is not None],
            **{f"rewards/{name}": [each.scores[name] for each in candidates if name in each.scores] for name in names},
            "length": [sum(each.trains) for each in candidates],
            **({"turns": [each.count_turns() for each in candidates]} if self.environments else {}),
            "cut_off": [float(is_cut_off(each.finish_reason)) for each in candidates],
            "missing_rewards": [float(each.reward is None) for each in candidates],
            "teaching_groups": [float(_teaches(group)) for group in groups],
        }
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in logged.items()}


@contextmanager
def _random_numbers_of(seed: int) -> Iterator[None]:
    """Give whoever draws random numbers those of a seed: training goes on with its own, in a resumed run too."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        set_seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _teaches(group: Row) -> bool:
    """Whether two candidates of a group have different rewards."""
    return len({each.reward for each in drawn_candidates([group]) if each.reward is not None}) > 1


def _cut(whole: Batch, rows: torch.Tensor) -> Batch:
    """Some rows of a batch, without the padding that all of them have."""
    rows = rows.to(whole["length"].device)
    width, longest = whole["labels"].shape[1], int(whole["length"][rows].max())
    cut = {name: value[rows] for name, value in whole.items()}
    return {
        name: value[:, :longest] if value.dim() > 1 and value.shape[1] == width else value
        for name, value in cut.items()
    }
