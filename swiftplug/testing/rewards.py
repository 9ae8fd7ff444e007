"""The contract of ORMs and PRMs."""

import pickle
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from swiftplug.errors import ContractError, UserError
from swiftplug.plugin.registry import REFERENCE_NAMES, BoundScorer, LoadedPlugin
from swiftplug.plugin.registry.returns import check_reward, check_rewards, check_step_ends
from swiftplug.plugin.rewards import InferRequest, Unscored
from swiftplug.testing.inputs import TEXTS, load, on

_QUESTION = {"role": "user", "content": "What is 2 + 2?"}
_DIGITS = 6  # beyond them, a model's result depends on the batch
_REFERENCES = ("4", "Step 1: 2 + 2 = 4\n\\boxed{4}", "四👍", None)


def check(plugin: LoadedPlugin, columns: Mapping[str, Any]) -> None:
    """Score answers of every sort, together, alone and in another order."""
    scorer: BoundScorer = plugin.bound
    for name in scorer.needed_columns:
        if name not in REFERENCE_NAMES and name not in columns:
            raise UserError(f"needs the column {name!r}: check_plugin({scorer.kind!r}, ..., columns={{{name!r}: ...}})")
    names, requests, truths = [], [], []
    for index, (name, text) in enumerate(TEXTS.items()):
        names.append(name)
        requests.append(_request(text, columns, index))
        truths.append(_REFERENCES[index % len(_REFERENCES)])
    before = deepcopy(requests)
    rewards = _score(scorer, requests, truths, f"{len(requests)} answers")
    if requests != before:
        raise ContractError("changes the requests that it gets, which other scorers get too; work on a copy")
    what = "let a reward depend on its own answer and row alone"
    _compare(names, rewards, _score(scorer, requests, truths, "the same answers once more"), "the second time", what)
    backwards = _score(scorer, requests[::-1], truths[::-1], "the answers in another order")
    _compare(names, rewards, backwards[::-1], "in another order", what)
    alone = [
        _score(scorer, [request], [truth], f"{name} alone, with the reference {truth!r}")[0]
        for name, request, truth in zip(names, requests, truths, strict=True)
    ]
    _compare(names, rewards, alone, "alone", what)
    _check_elsewhere(plugin, names, requests, truths, rewards)
    if scorer.kind == "orm":
        _check_answers(scorer)
    if scorer.places_steps:
        for (name, text), reward in zip(TEXTS.items(), rewards, strict=True):
            if isinstance(reward, list):
                with on(f"{name} (step_ends)"):
                    check_step_ends(scorer.step_ends(text), len(reward), text)


def _request(text: str, columns: Mapping[str, Any], index: int) -> InferRequest:
    system = [{"role": "system", "content": "Be brief. 简短。"}] if index % 3 == 2 else []
    return InferRequest([*system, dict(_QUESTION), {"role": "assistant", "content": text}], deepcopy(dict(columns)))


def _score(scorer: BoundScorer, requests: Sequence[InferRequest], truths: Sequence[str | None], what: str) -> list[Any]:
    with on(what):
        return [
            _rounded(check_reward(scorer.kind, it)) for it in check_rewards(scorer(requests, truths), len(requests))
        ]


def _rounded(reward: Any) -> Any:
    if isinstance(reward, Unscored):
        return reward
    return [round(step, _DIGITS) for step in reward] if isinstance(reward, list) else round(reward, _DIGITS)


def _compare(names: Sequence[str], rewards: Sequence[Any], others: Sequence[Any], when: str, what: str) -> None:
    for name, reward, other in zip(names, rewards, others, strict=True):
        if reward != other and not (isinstance(reward, Unscored) and isinstance(other, Unscored)):
            raise ContractError(f"gives {name} {_describe(reward)}, and {_describe(other)} {when}; {what}")


def _describe(reward: Any) -> str:
    return f"no reward ({reward.reason})" if isinstance(reward, Unscored) else f"{reward!r:.60}"


def _check_elsewhere(
    plugin: LoadedPlugin,
    names: Sequence[str],
    requests: Sequence[InferRequest],
    truths: Sequence[str | None],
    rewards: Sequence[Any],
) -> None:
    """Check that one made anew, as in another process, and a pickled one score as the first did."""
    others = {"from a new instance": load(plugin.found, plugin.options).bound}
    try:
        pickled = pickle.dumps(plugin.bound)
    except Exception:  # any __reduce__ may raise anything; another process then makes the scorer anew
        pass
    else:
        with on("pickle.loads"):
            others["from a pickled copy"] = pickle.loads(pickled)
    for when, other in others.items():
        scored = _score(other, requests, truths, f"{len(requests)} answers, {when}")
        _compare(names, rewards, scored, when, "keep no state between calls, and build all of it from the options")


def _check_answers(scorer: BoundScorer) -> None:
    """Check the answers that a majority vote counts, and the reward from which one is right."""
    for name, text in TEXTS.items():
        with on(f"{name} (answer_of)"):
            found = getattr(scorer.scorer, "answer_of", lambda text: text)(text)
            if not isinstance(found, str | None):
                raise ContractError(f"returned a {type(found).__name__} from answer_of, expected text or None")
    right_from = scorer.right_from
    if right_from is not None and (isinstance(right_from, bool) or not isinstance(right_from, int | float)):
        raise ContractError(f"has right_from = {right_from!r}, expected a number, or None if it does not judge")
