"""Asking the scorers: in batches across questions, with a time limit, every answer of theirs checked."""

import asyncio
import inspect
import math
import numbers
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from swiftplug.errors import UserError
from swiftplug.plugin.rewards import InferRequest, Unscored
from swiftplug.runs.blame import blaming
from swiftplug.sampling.ledger import Reward, StoredCandidate, StoredRow
from swiftplug.sampling.plugins import Scorer

DIGITS = 6
"""Scores are kept to so many decimal places: what a model computes differs behind them with the batch it is in."""


class Judged(NamedTuple):
    """A candidate with what the scorers gave it.

    Attributes:
        row: Its row.
        candidate: The candidate.
        rewards: By scorer, what it gave.
        unscored: By scorer that gave nothing, why.
    """

    row: StoredRow
    candidate: StoredCandidate
    rewards: dict[str, Reward]
    unscored: dict[str, str]


def score(
    batch: Sequence[tuple[StoredRow, StoredCandidate]], scorers: Sequence[Scorer], timeout: float
) -> list[Judged]:
    """Let every scorer score every candidate of a batch.

    Args:
        batch: Candidates of any number of rows.
        scorers: The ORMs and PRMs.
        timeout: Seconds that one call of a scorer may take.

    Raises:
        UserError: A scorer took longer, or returned something else than one finite reward (or one a step) for each.
    """
    judged = [Judged(row, candidate, {}, {}) for row, candidate in batch]
    requests = [_request(row, candidate) for row, candidate in batch]
    truths = [row.reference for row, _ in batch]
    for scorer in scorers:
        returned = _call(scorer, requests, truths, timeout)
        for it, given in zip(judged, _each(scorer, returned, len(batch)), strict=True):
            _record(it, scorer, given)
    return judged


def _request(row: StoredRow, candidate: StoredCandidate) -> InferRequest:
    columns = {**row.columns, **({"tools": row.tools} if row.tools else {})}
    return InferRequest([*row.prompt, {"role": "assistant", "content": candidate.text}], columns)


def _call(scorer: Scorer, requests: list[InferRequest], truths: list[Any], timeout: float) -> Any:
    """What a scorer returns, waited for in a thread of its own: one that hangs cannot be stopped, but left behind."""
    outcome: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            plugin = scorer.plugin.bound
            result = plugin(requests, truths) if scorer.kind == "orm" else plugin(requests, ground_truths=truths)
            outcome.append(asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name=f"swiftplug-{scorer.name}", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise UserError(
            f"{scorer.plugin.found} gave no answer to {len(requests)} candidates within {timeout:g} s "
            "(score_timeout); what was sampled is kept: go on with --resume"
        )
    if errors:
        with blaming([scorer.plugin]):
            raise errors[0]
    return outcome[0]


async def _awaited(result: Any) -> Any:
    return await result


def _each(scorer: Scorer, returned: Any, count: int) -> Iterator[Any]:
    """What a scorer returned, candidate by candidate."""
    found = scorer.plugin.found
    if hasattr(returned, "tolist"):  # an array or a tensor
        returned = returned.tolist()
    if not isinstance(returned, list | tuple):
        raise UserError(f"{found} returned a {type(returned).__name__}; expected a list of {count} rewards")
    if len(returned) != count:
        raise UserError(f"{found} returned {len(returned)} rewards for {count} candidates")
    return iter(returned)


def _record(judged: Judged, scorer: Scorer, given: Any) -> None:
    """Check one reward and note it.

    Raises:
        UserError: It is no finite number; nor, from a PRM, a list of them.
    """
    name = scorer.name
    if isinstance(given, Unscored):
        judged.unscored[name] = given.reason
    elif given is None:
        judged.unscored[name] = "gave no score"
    elif scorer.kind == "prm" and isinstance(given, list | tuple):
        if given:
            judged.rewards[name] = [_number(judged, scorer, each) for each in given]
        else:
            judged.unscored[name] = "found no step to reward"
    else:
        judged.rewards[name] = _number(judged, scorer, given)


def _number(judged: Judged, scorer: Scorer, given: Any) -> float:
    value = float(given) if isinstance(given, numbers.Real) or hasattr(given, "item") else math.nan
    if not math.isfinite(value):
        expected = "a finite number" + (", or a list of one a step" if scorer.kind == "prm" else "")
        raise UserError(
            f"{scorer.plugin.found} returned {given!r:.60} for candidate {judged.candidate.number} of "
            f"{judged.row.origin}; expected {expected}"
        )
    return round(value, DIGITS)
