"""The rewards of an answer's steps, at the tokens where the steps end."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from swiftplug.errors import ContractError, UserError
from swiftplug.plugin import OnlineTask
from swiftplug.plugin.registry.returns import check_step_ends
from swiftplug.runs.errors import naming_plugins
from swiftplug.sampling.rows import Row
from swiftplug.sampling.scoring import Scorer
from swiftplug.training.online.record import DrawnCandidate


def rewards_steps(task: OnlineTask, scorer: Scorer) -> bool:
    """Whether a task gives what a scorer rewards at the last tokens of steps."""
    return scorer.kind == "prm" and task.rewards_steps


def token_rewards(
    group: Row,
    candidate: DrawnCandidate,
    scorers: Sequence[Scorer],
    decode: Callable[[Sequence[int]], str],
) -> list[float]:
    """The weighted rewards of each token of a candidate.

    Args:
        group: The row of the candidate.
        candidate: The candidate, with its rewards.
        scorers: The process reward models. One that gave a single reward gave it for the last step, the whole answer.
        decode: The text of tokens.

    Raises:
        UserError: A scorer has not as many ends of steps as rewards, or one is not in the text of the tokens.
    """
    summed, trains, opened = [0.0] * len(candidate.ids), candidate.trains, candidate.opened
    for scorer in scorers:
        reward = (candidate.rewards or {}).get(scorer.name)
        if reward is None or not summed:
            continue
        if not isinstance(reward, list):
            summed[_trained(trains, len(summed) - 1)] += scorer.weight * reward
            continue
        where = f"candidate {candidate.index} of {group.origin}"
        try:
            with naming_plugins([scorer.plugin]):
                ends = check_step_ends(scorer.bound.step_ends(candidate.text), len(reward), candidate.text)
        except ContractError as error:
            raise UserError(f"{scorer.plugin.found} {error} ({where})") from None
        own = candidate.text[len(opened) :]
        for step, end in zip(reward, ends, strict=True):
            text = own[: max(end - len(opened), 0)]
            token = bisect_left(
                range(len(summed)),
                True,
                lo=candidate.answer_start,
                key=lambda last: decode(candidate.ids[candidate.answer_start : last + 1]).startswith(text),
            )
            if token == len(summed):
                raise UserError(f"the tokens of {where} have other text, so no step of {scorer.plugin.found} is found")
            summed[_trained(trains, token)] += scorer.weight * step
    return summed


def _trained(trains: Sequence[bool], token: int) -> int:
    """The last token up to this one that trains."""
    return next((place for place in range(token, -1, -1) if trains[place]), token)
