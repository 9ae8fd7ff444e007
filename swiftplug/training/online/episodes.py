"""Candidates of several turns: an environment answers what the model writes, and the model goes on.

All candidates of a drawing take a turn together. The next turn continues the very tokens that were drawn: behind them
come those that the chat template writes between the end of an answer and the next one, which do not train.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from swiftplug.data.chat.calls import CallReader
from swiftplug.data.chat.render import ChatRenderer
from swiftplug.data.read.conversation import RowError
from swiftplug.errors import ContractError, UserError
from swiftplug.formatting import format_count
from swiftplug.plugin import Chat, Completion, Environment, InferRequest, Message, Prompt, Unscored
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.registry.returns import check_messages, check_reward
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.errors import naming_plugins
from swiftplug.runs.time_limit import call_within
from swiftplug.sampling.rows import Row, is_cut_off
from swiftplug.sampling.scoring import DIGITS, as_request
from swiftplug.training.online.record import DrawnCandidate

T = TypeVar("T")

_QUESTION, _ANSWER = {"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"}


@dataclass
class Episode:
    """A candidate with the environment that answers it.

    Attributes:
        row: The row of its prompt.
        index: Its number among the row's candidates.
        environment: The environment, its own.
        start: The messages that the environment put behind the prompt.
        candidate: What was drawn so far, if the engine has not failed at its row.
    """

    row: Row
    index: int
    environment: Environment
    start: list[Message]
    candidate: DrawnCandidate = field(init=False)

    def go_on(self, completion: Completion) -> None:
        """Add the turn that continues it."""
        self.candidate.text, self.candidate.finish_reason = completion.text, completion.finish_reason
        self._append(completion.ids, completion.logps, drawn=True)

    def _append(self, ids: Sequence[int], logps: Sequence[float], *, drawn: bool) -> None:
        self.candidate.ids += ids
        self.candidate.drawn += [drawn] * len(ids)
        if self.candidate.logps:
            self.candidate.logps += logps

    def add_reply(self, reply: Sequence[Message], ids: Sequence[int]) -> None:
        """Add what the environment answers."""
        self.candidate.asked.append(reply)
        self.candidate.turns += [{"role": "assistant", "content": self.candidate.text}, *reply]
        self._append(ids, [0.0] * len(ids), drawn=False)

    def __str__(self) -> str:
        return f"candidate {self.index} of {self.row.origin}"


def gives_reward(environment: LoadedPlugin) -> bool:
    """Whether an environment gives rewards at all."""
    return environment.bound.func.reward is not Environment.reward


class Environments:
    """The environment plugin of a run, of which each candidate gets an instance.

    Args:
        args: The run's arguments.
        chat: How the chat template writes turns.
        model: The model in training, as the tuner prepared it; None before it is loaded.

    Raises:
        UserError: The chat template cannot go on after an answer.
    """

    def __init__(self, args: Arguments, chat: Chat, model: Any = None) -> None:
        config: Any = args.config
        self.name, self.weight = config.environment.name, config.environment.weight
        self.plugin = args.plugins.one("environment")
        self.tools_format = args.plugins.one("tools").bound
        self.call_reader = CallReader(ChatRenderer(args.load_tokenizer(), self.tools_format))
        self.chat = chat
        self.max_new_tokens: int = config.max_new_tokens
        self.timeout: float = config.score_timeout
        self.context = None if model is None else _context_of(model)
        probe = Row("", ":0", [_QUESTION, _ANSWER])
        self._tool_role = "tool" if self._writes_tools(probe) else "user"
        self._reply_ids(probe, [{"role": self._tool_role, "content": "Reply"}])

    def begin(self, groups: Sequence[Row], count: int) -> list[list[Episode]]:
        """Begin the episodes of so many candidates of each row; those of a row begin alike."""
        rows = [row for row in groups for _ in range(count)]
        environments = [self._call("begin an episode", self.plugin.bound) for _ in rows]
        resets = [partial(it.reset, _request_of(row)) for it, row in zip(environments, rows, strict=True)]
        starts = self._call_all("begin an episode", resets)
        episodes = []
        for place, (row, environment, start) in enumerate(zip(rows, environments, starts, strict=True)):
            episode = Episode(row, place % count, environment, [])
            episode.start = self._checked(start, episode)
            episodes.append(episode)
        grouped = [episodes[place : place + count] for place in range(0, len(episodes), count)]
        for group in grouped:
            if other := next((it for it in group if it.start != group[0].start), None):
                raise UserError(
                    f"{self.plugin.found} begins {other} otherwise than candidate 0; candidates of a row begin alike"
                )
        return grouped

    def answer(self, episodes: Sequence[Episode], name: str) -> Iterator[tuple[Episode, Prompt]]:
        """Let the environments answer the turns that have ended by themselves.

        Args:
            episodes: Those that may go on.
            name: The beginning of the ids of prompts.

        Yields:
            Each episode that goes on, and what is to be continued. One without room for it ends as cut off.
        """
        ended = [it for it in _drawn(episodes) if not is_cut_off(it.candidate.finish_reason)]
        steps = [partial(it.environment.step, self._with_calls(it)) for it in ended]
        for episode, returned in zip(ended, self._call_all("answer", steps), strict=True):
            if not (reply := self._checked(returned, episode)):
                continue
            candidate = episode.candidate
            row = replace(episode.row, prompt=self._conversation(episode))
            ids = self._reply_ids(row, reply)
            left = self.max_new_tokens - sum(candidate.drawn)
            known = [*candidate.prompt_ids, *candidate.ids, *ids]
            if left < 1 or (self.context is not None and len(known) > self.context):
                candidate.finish_reason = "length"
                continue
            episode.add_reply(reply, ids)
            prompt = replace(row, prompt=[*row.prompt, *reply]).as_prompt(self.tools_format)
            number = f"{name}/{row.position}/{row.id}/{episode.index}"
            yield episode, prompt._replace(id=number, ids=known, max_new_tokens=left)

    def end(self, episodes: Iterable[Episode]) -> None:
        """Take the rewards of episodes that have ended."""
        drawn = _drawn(episodes)
        rewards = self._call_all("give its reward", [episode.environment.reward for episode in drawn])
        for episode, reward in zip(drawn, rewards, strict=True):
            if reward is None:
                continue
            try:
                checked = check_reward("environment", reward)
            except ContractError as error:
                raise UserError(f"{self.plugin.found} {error} ({episode})") from None
            assert not isinstance(checked, list)
            episode.candidate.given = checked if isinstance(checked, Unscored) else round(checked, DIGITS)

    def record(self, candidate: DrawnCandidate) -> None:
        """Put the reward of an environment beside those of the scorers, which have scored before."""
        assert candidate.rewards is not None
        if isinstance(candidate.given, Unscored):
            candidate.unscored[self.name] = candidate.given.reason
        elif candidate.given is not None:
            candidate.rewards[self.name] = candidate.given
        elif not candidate.rewards and not candidate.unscored:
            candidate.unscored[self.name] = "gave no reward"

    def _conversation(self, episode: Episode) -> list[Message]:
        answer = {"role": "assistant", "content": episode.candidate.text}
        return [*episode.row.prompt, *episode.candidate.turns, answer]

    def _with_calls(self, episode: Episode) -> list[Message]:
        """A copy of the conversation, with the calls in its last answer as `tool_calls` too."""
        messages, row = deepcopy(self._conversation(episode)), episode.row
        if row.tools and (calls := self.call_reader.read(episode.candidate.text, row.tools)):
            messages[-1]["tool_calls"] = calls
        return messages

    def _reply_ids(self, answered: Row, reply: Sequence[Message]) -> list[int]:
        """The tokens between the answer with which a conversation ends and the next one.

        Raises:
            UserError: The chat template writes no such conversation, or what was before differently.
        """
        replied = replace(answered, prompt=[*answered.prompt, *reply])
        try:
            return self.chat.reply(answered.as_prompt(self.tools_format), replied.as_prompt(self.tools_format))
        except (RowError, UserError) as error:
            raise UserError(f"{self.plugin.found} cannot act in this run: {error}") from error

    def _writes_tools(self, probe: Row) -> bool:
        """Whether tools format and chat template write messages with the role `tool`."""
        replies = ({"role": "tool", "content": text} for text in ("Yes", "No"))
        rows = [replace(probe, prompt=[*probe.prompt, reply]) for reply in replies]
        try:
            yes, no = (self.chat.encode(row.as_prompt(self.tools_format))[0] for row in rows)
        except (RowError, UserError):
            return False
        return yes != no

    def _checked(self, returned: Any, episode: Episode) -> list[Message]:
        """The messages that an environment returned, with a role that the chat template writes; none for None."""
        try:
            messages = check_messages(returned)
        except ContractError as error:
            raise UserError(f"{self.plugin.found} {error} ({episode})") from None
        roles = {"tool": self._tool_role}
        return [{**message, "role": roles.get(message["role"], message["role"])} for message in messages]

    def _call_all(self, what: str, functions: Sequence[Callable[[], T]]) -> list[T]:
        return self._call(f"{what} for {format_count(len(functions), 'candidate')}", lambda: [it() for it in functions])

    def _call(self, what: str, function: Callable[[], T]) -> T:
        """Call an environment in the main thread, with a time limit; its error names it."""
        late = f"{self.plugin.found} did not {what} within {self.timeout:g} s (score_timeout)"
        with naming_plugins([self.plugin]):
            return call_within(self.timeout, function, late)


def _request_of(row: Row) -> InferRequest:
    """A row as an environment gets it, with its reference; a copy, as it may keep and change that."""
    request = deepcopy(as_request(row, row.prompt))
    request.columns.setdefault("reference", row.ground_truth)
    return request


def _drawn(episodes: Iterable[Episode]) -> list[Episode]:
    """Those at which the engine did not fail."""
    return [episode for episode in episodes if not episode.row.failure]


def _context_of(model: Any) -> int | None:
    """The most tokens that a model reads, besides a learned prompt."""
    context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    adapter = getattr(model, "active_peft_config", None)
    learned = adapter.num_virtual_tokens if adapter is not None and adapter.is_prompt_learning else 0
    return None if context is None else context - learned
