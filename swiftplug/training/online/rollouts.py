"""The candidates of a step of an online task, from its prompts to their rewards.

1. The engine draws G candidates for each prompt, turn by turn if an environment answers them.
2. The run's scorers score them; groups that teach nothing may be replaced by others.
3. They become batches (`DrawnBatches`).

A candidate's seed comes from the run's seed, the drawing, the place of its prompt in it, its row, its index, and its
turn: neither a resumed run nor one with other processes draws others.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import set_seed

from swiftplug.data.weights import combine
from swiftplug.errors import ContractError, UserError
from swiftplug.plugin import Answered, Engine, OnlineTask, Prompt, Sampling
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import RunProgress
from swiftplug.runs.errors import naming_plugins
from swiftplug.sampling.rows import Row, is_cut_off
from swiftplug.sampling.scoring import Scorer, resolve_scorers
from swiftplug.sampling.selection import reduced
from swiftplug.sampling.statistics import pass_at
from swiftplug.sampling.worker import failure_of
from swiftplug.training.loss import Means
from swiftplug.training.online.batches import Batch, DrawnBatches
from swiftplug.training.online.episodes import Environments, Episode, gives_reward
from swiftplug.training.online.record import CandidateRecord, DrawnCandidate, Lost, drawn_candidates
from swiftplug.training.online.steps import rewards_steps, token_rewards
from swiftplug.training.online.values import without_value_head
from swiftplug.training.online.weights import left_out_tokens
from swiftplug.training.task_loss import TaskLossComputer

_REPLACED = "another prompt was drawn in place of this one, or this one in vain: all its rewards are equal"


def reward_names(args: Arguments) -> list[str]:
    """What rewards are called: the scorers, and the environment if it gives one."""
    scorers = [scorer.name for scorer in resolve_scorers(args.config, args.plugins)]
    return [*scorers, *(args.config.environment.name for it in args.plugins.of("environment") if gives_reward(it))]


def evaluated_names(args: Arguments) -> frozenset[str]:
    """What an evaluation gives."""
    rewards = [f"rewards/{name}" for name in reward_names(args)]
    turns = ["turns"] if args.plugins.of("environment") else []
    judged = any(scorer.bound.right_from is not None for scorer in resolve_scorers(args.config, args.plugins))
    passes = [f"pass@{k}" for k in (1, args.config.num_return_sequences)] if judged else []
    return frozenset(["reward", *rewards, "length", *turns, "cut_off", "missing_rewards", *passes])


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
        self.args, self.model, self.accelerator, self.progress = args, model, accelerator, progress
        self.prompts, self.eval_prompts = prompts, eval_prompts
        self.engine: Engine = args.plugins.one("engine").bound
        self.scorers: list[Scorer] = resolve_scorers(self.config, args.plugins)
        self.judges = {it.name: it.bound.right_from for it in self.scorers if it.bound.right_from is not None}
        self.reward_names = reward_names(args)
        self.sampling = Sampling(**{name: getattr(self.config, name) for name in Sampling._fields})
        self.chat = args.load_chat(model)
        self.environments = Environments(args, self.chat, model) if args.plugins.of("environment") else None
        config: Any = model.config
        self.vocabulary: int = config.get_text_config().vocab_size
        self.record = CandidateRecord(args.training_args.output_dir, accelerator)
        pad_token_id = int(args.load_tokenizer().pad_token_id or 0)
        self.drawn = DrawnBatches(self.task, accelerator, progress, self.sampling.num_return_sequences, pad_token_id)
        self.loss_scale = combine(args.plugins.of("loss_scale"))
        self.logged: dict[str, torch.Tensor] = {}
        self.lost = Lost()  # in all, as far as it was reported
        self._lost_here = Lost()  # since, in this process
        with without_value_head(model):
            self.engine.follow(args, model)

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
                groups, replaced = self._draw(drawing, rows)
                try:
                    self.drawn.make(groups, len(slots), step, loss)
                except ContractError as error:
                    raise UserError(f"{self.args.plugins.one('task').found} {error}") from None
            self.logged = self._figures([*groups, *replaced])
            self.record.add([*groups, *replaced], step + 1)
        return self.drawn.batches

    def _draw(self, drawing: int, rows: Sequence[int]) -> tuple[list[Row], list[Row]]:
        """The groups of a step, and those drawn besides: replaced as they teach nothing, or in vain in their place."""
        first = self.accelerator.process_index * len(rows)
        groups = [_as_group(self.prompts[row], place) for place, row in enumerate(rows, first)]
        self._sample(groups, str(drawing), "drawing")
        replaced: list[Row] = []
        for attempt in range(1, self.task.filter_groups + 1):
            poor = [group.position for group in groups if not _teaches(group)]
            if not any(gather_object([len(poor)])):
                break
            # Another prompt, a function of the seed, the drawing and the place alone.
            seeds = {place: self.sampling.seed_of(f"{drawing}/{attempt}", place) for place in poor}
            others = [_as_group(self.prompts[seed % len(self.prompts)], place) for place, seed in seeds.items()]
            self._sample(others, f"{drawing}/{attempt}", "drawing again")
            for other in others:
                if _teaches(other):
                    place = other.position - first
                    groups[place], other = other, groups[place]
                    self._lost_here.counts["replaced"] += 1
                for candidate in other.candidates:
                    candidate.reasons.append(_REPLACED)
                replaced.append(other)
        return groups, replaced

    def _sample(self, groups: Sequence[Row], drawing: str, doing: str) -> None:
        """Give each group its candidates with their rewards, or the reason why it has none."""
        size = self.sampling.num_return_sequences
        episodes = self.environments.begin(groups, size) if self.environments else [[] for _ in groups]
        asked: dict[str, tuple[Prompt, Row]] = {}
        opened: dict[str, str] = {}
        of_prompt: dict[str, list[Episode]] = {}
        for group, own in zip(groups, episodes, strict=True):
            begun = replace(group, prompt=[*group.prompt, *(own[0].start if own else [])])
            name = f"{drawing}/{group.position}/{group.id}"
            prompt = begun.as_prompt(self.args.plugins.one("tools").bound)._replace(id=name)
            ids, opened[name] = self.chat.encode(prompt)
            asked[name] = prompt._replace(ids=ids), group
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
                        rewards={},
                        prompt_ids=list(prompt.ids or ()),
                        ids=list(completion.ids),
                        drawn=[True] * len(completion.ids),
                        opened=opened[answered.id],
                        asked=[[*group.prompt, *(own[0].start if own else [])]],
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
        self._score(groups)

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
        """What the engine draws for prompts, which are given by their ids, each with its row; all candidates or none.

        Raises:
            UserError: It leaves a prompt or a candidate out, or gives no tokens, or some that the model does not have.
        """
        plugin, waiting = self.args.plugins.one("engine"), dict(asked)
        with naming_plugins([plugin]), without_value_head(self.model):
            for answered in self.engine.draw([prompt for prompt, _ in asked.values()], sampling):
                if not isinstance(answered, Answered):
                    raise UserError(f"{plugin.found} returned a {type(answered).__name__}, expected an Answered")
                if answered.id not in waiting:
                    continue
                _, row = waiting.pop(answered.id)
                if failure := failure_of(answered, row, sampling.num_return_sequences, plugin):
                    yield Answered(answered.id, failure=failure)
                    continue
                for completion in answered.completions:
                    if not completion.ids:
                        raise UserError(f"{plugin.found} returned a candidate without its tokens, expected `ids`")
                    if min(completion.ids) < 0 or max(completion.ids) >= self.vocabulary:
                        raise UserError(
                            f"{plugin.found} returned tokens that the model does not have, for {row.origin}"
                        )
                    if len(completion.logps) not in (0, len(completion.ids)):
                        ids, logps = len(completion.ids), len(completion.logps)
                        raise UserError(f"{plugin.found} returned {logps} `logps` for {ids} `ids`, expected as many")
                yield answered
        for _, row in waiting.values():
            raise UserError(f"{plugin.found} returned no result for {row.origin}")

    def _score(self, groups: Sequence[Row]) -> None:
        """Give the candidates of groups their rewards."""
        for failure in filter(None, (group.failure for group in groups)):
            self._lost_here.add("prompt", failure)
        for scorer in self.scorers:
            if any(group.candidates for group in groups):
                with self.progress.start(f"scoring with {scorer.name}") as activity:
                    activity.postpone_line()
                    scorer.score(groups, self.config.score_timeout)
        of_steps = [each for each in self.scorers if rewards_steps(self.task, each)]
        weights = {each.name: each.weight for each in self.scorers if each not in of_steps}
        tokenizer: Any = self.args.load_tokenizer()
        decode = partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if self.environments:
            weights[self.environments.name] = self.environments.weight
        for group, candidate in ((row, it) for row in groups for it in drawn_candidates([row])):
            if self.environments:
                self.environments.record(candidate)
            candidate.scores = {
                name: reduced(reward, self.config.prm_reduce) for name, reward in (candidate.rewards or {}).items()
            }
            candidate.reasons = [f"{name}: {why}" for name, why in candidate.unscored.items()]
            if candidate.reasons:
                self._lost_here.add("candidate", candidate.reasons[0])
            else:
                try:
                    candidate.left_out = left_out_tokens(candidate, self.loss_scale, self.task, self.chat, decode)
                except UserError as error:
                    raise UserError(f"candidate {candidate.index} of {group.origin}: {error}") from None
                if of_steps:
                    candidate.token_rewards = token_rewards(group, candidate, of_steps, decode)
                of_answer = (weights.get(name, 0) * score for name, score in candidate.scores.items())
                candidate.reward = math.fsum([*of_answer, *candidate.token_rewards])

    def _figures(self, groups: Sequence[Row]) -> dict[str, torch.Tensor]:
        """What is logged of the candidates, one value for each."""
        candidates = list(drawn_candidates(groups))
        scores = {name: [it.scores[name] for it in candidates if name in it.scores] for name in self.reward_names}
        logged = {
            "reward": [each.reward for each in candidates if each.reward is not None],
            **{f"rewards/{name}": values for name, values in scores.items()},
            "length": [sum(each.drawn) for each in candidates],
            **({"turns": [each.count_turns() for each in candidates]} if self.environments else {}),
            "cut_off": [float(is_cut_off(each.finish_reason)) for each in candidates],
            "missing_rewards": [float(each.reward is None) for each in candidates],
            "teaching_groups": [float(_teaches(group)) for group in groups],
        }
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in logged.items()}

    def evaluate(self, prefix: str) -> dict[str, float]:
        """Draw for the held-out prompts: the means of rewards and lengths and, if a scorer judges, pass@k."""
        processes, own = self.accelerator.num_processes, self.accelerator.process_index
        places = range(own, len(self.eval_prompts), processes)
        groups = [_as_group(self.eval_prompts[place], place) for place in places]
        self._sample(groups, "eval", "drawing for evaluation")
        means = Means()
        for name, values in self._figures(groups).items():
            means.add(name, values.sum().item(), values.numel())
        for k in dict.fromkeys([1, self.sampling.num_return_sequences]) if self.judges else ():
            shares = [pass_at(min(k, count), count, right) for count, right in map(self._count_right, groups) if count]
            means.add(f"pass@{k}", sum(shares), len(shares))
        return {f"{prefix}_{name}": mean for name, mean in means.gather().items() if name != "teaching_groups"}

    def _count_right(self, group: Row) -> tuple[int, int]:
        """How many of a group's candidates were judged, and how many of these are right."""
        judged = [each.scores for each in group.candidates if self.judges.keys() <= each.scores.keys()]
        return len(judged), sum(all(it[name] >= least for name, least in self.judges.items()) for it in judged)

    def report_lost(self, step: int) -> None:
        """Print what was lost since the last time, if anything was; all processes take part.

        That prompts are replaced is what `filter_groups` is for: it is no news in itself.
        """
        since = Lost()
        for each in gather_object([self._lost_here]):
            since.merge(each)
        self._lost_here = Lost()
        self.lost.merge(since)
        if self.accelerator.is_main_process and since.reasons:
            self.progress.print_line(f"up to step {step}: {since}", "yellow")


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


def _as_group(row: Row, place: int) -> Row:
    """A row as the one at this place of a drawing, without candidates."""
    return replace(row, position=place, candidates=[])


def _teaches(group: Row) -> bool:
    """Whether two candidates of a group have different rewards."""
    return len({each.reward for each in drawn_candidates([group]) if each.reward is not None}) > 1
