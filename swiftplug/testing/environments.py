"""The contract of environments."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from swiftplug.errors import ContractError
from swiftplug.plugin.environment import Environment, Message
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.registry.returns import check_messages, check_reward
from swiftplug.plugin.rewards import InferRequest
from swiftplug.testing.inputs import TEXTS, on

_TURNS = 20  # of an episode, at most
_PROMPTS: tuple[list[Message], ...] = (
    [{"role": "user", "content": "What is 2 + 2?"}],
    [{"role": "system", "content": "Be brief. 简短。"}, {"role": "user", "content": "二加三等于多少?👍"}],
)

_Episode = list[Any]  # what an environment returned, one call after the other


def check(plugin: LoadedPlugin, columns: Mapping[str, Any]) -> None:
    """Play episodes with answers of every sort, each twice, and all of them at the same time.

    Raises:
        ContractError: It breaks the contract.
    """
    texts = list(TEXTS.values())
    for prompt in _PROMPTS:
        row = InferRequest(prompt, {"reference": "4", **columns})
        answers = {name: [text, *texts] for name, text in TEXTS.items()}
        alone = {
            name: list(_play(plugin, row, its, f"an episode that begins with {name}")) for name, its in answers.items()
        }
        starts = {name: episode[0] for name, episode in alone.items()}
        if other := next((name for name in starts if starts[name] != starts["an empty text"]), None):
            raise ContractError(
                f"begins with {starts[other]!r:.60}, and for the same row with {starts['an empty text']!r:.60}; let "
                "reset depend on the row alone"
            )
        together = _play_together(plugin, row, answers)
        for name, episode in alone.items():
            if together[name] != episode:
                raise ContractError(
                    f"returns {_difference(episode, together[name])} in an episode that begins with {name}, played "
                    "again beside others; keep all that changes in the instance, and seed random numbers by the row"
                )


def _play_together(
    plugin: LoadedPlugin, row: InferRequest, answers: Mapping[str, Sequence[str]]
) -> dict[str, _Episode]:
    """The episodes, a turn of each at a time."""
    going = {name: _play(plugin, row, its, f"an episode that begins with {name}") for name, its in answers.items()}
    played: dict[str, _Episode] = {name: [] for name in going}
    while going:
        for name, episode in [*going.items()]:
            try:
                played[name].append(next(episode))
            except StopIteration:
                del going[name]
    return played


def _play(plugin: LoadedPlugin, row: InferRequest, answers: Sequence[str], what: str) -> Iterator[Any]:
    """What an environment returns, one call after the other."""
    with on(what):
        environment: Environment = plugin.bound()
        given = deepcopy(row)
        start = check_messages(environment.reset(given))
        if given != row:
            raise ContractError("changes the row that reset gets; work on a copy")
    yield start
    messages = [*row.messages, *start]
    for text in answers[:_TURNS]:
        messages = [*messages, {"role": "assistant", "content": text}]
        with on(what):
            copied = deepcopy(messages)
            reply = check_messages(environment.step(copied))
            if copied != messages:
                raise ContractError("changes the messages that step gets; work on a copy")
        yield reply
        if not reply:
            break
        messages = [*messages, *reply]
    with on(what):
        reward = environment.reward()
        yield None if reward is None else check_reward("environment", reward)


def _difference(episode: _Episode, other: _Episode) -> str:
    pairs = zip(episode, other, strict=False)
    before, after = next((pair for pair in pairs if pair[0] != pair[1]), (episode[-1], other[-1]))
    return f"{before!r:.60} and then {after!r:.60}"
