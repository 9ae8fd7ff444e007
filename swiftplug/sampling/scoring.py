"""Scores candidates in batches across rows, with a time limit, and checks every reward."""

import asyncio
import inspect
import math
import numbers
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.formatting import format_count
from swiftplug.plugin.registry import BoundScorer, LoadedPlugin
from swiftplug.plugin.rewards import InferRequest, Unscored
from swiftplug.runs.errors import naming_plugins
from swiftplug.runs.plugins import RunPlugins
from swiftplug.runs.time_limit import call_within
from swiftplug.sampling.rows import REFERENCE, Candidate, Row

_DIGITS = 6
"""Decimal places to which rewards are rounded: beyond them, a model's result depends on the batch."""


@dataclass(frozen=True)
class Scorer:
    """An ORM or a PRM in use.

    Attributes:
        name: Its name in the config, and the key of its rewards.
        kind: `orm` or `prm`.
        weight: The weight of its reward in the score that ranks candidates.
        plugin: The plugin.
    """

    name: str
    kind: str
    weight: float
    plugin: LoadedPlugin

    @property
    def bound(self) -> BoundScorer:
        """What is called."""
        bound: BoundScorer = self.plugin.bound
        return bound

    def score(self, rows: Sequence[Row], timeout: float) -> None:
        """Give every candidate of some rows its reward, or the reason why it has none; `timeout` is in seconds."""
        pairs = [(row, candidate) for row in rows for candidate in row.candidates]
        for (row, candidate), reward in zip(pairs, self._rewards(pairs, timeout), strict=True):
            self._record(row, candidate, reward)

    def find_right(self, answers: Sequence[tuple[Row, str]], timeout: float) -> list[bool]:
        """Whether each answer to a row is right; one that gets no number is not."""
        rewards = self._rewards([(row, Candidate(0, text, REFERENCE)) for row, text in answers], timeout)
        least = self.bound.right_from
        return [isinstance(it, numbers.Real) and least is not None and float(it) >= least for it in rewards]

    def _rewards(self, pairs: Sequence[tuple[Row, Candidate]], timeout: float) -> Sequence[Any]:
        """What the plugin returns for these candidates, one value for each."""
        returned = self._call([_request(*pair) for pair in pairs], [row.ground_truth for row, _ in pairs], timeout)
        if hasattr(returned, "tolist"):  # an array or a tensor
            returned = returned.tolist()
        if not isinstance(returned, list | tuple):
            expected = f"expected a list of {format_count(len(pairs), 'reward')}"
            raise UserError(f"{self.plugin.found} returned a {type(returned).__name__}; {expected}")
        if len(returned) != len(pairs):
            counted = format_count(len(pairs), "candidate")
            raise UserError(f"{self.plugin.found} returned {format_count(len(returned), 'reward')} for {counted}")
        return returned

    def _call(self, requests: list[InferRequest], references: list[str | None], timeout: float) -> Any:
        """Call the plugin in this thread, the main one: libraries that use signals need that."""

        def call() -> Any:
            result = self.bound(requests, references)
            return asyncio.run(_await(result)) if inspect.isawaitable(result) else result

        counted = format_count(len(requests), "candidate")
        late = (
            f"{self.plugin.found} did not score {counted} within {timeout:g} s (score_timeout); "
            "what was sampled is kept: continue with --resume"
        )
        with naming_plugins([self.plugin]):
            return call_within(timeout, call, late)

    def _record(self, row: Row, candidate: Candidate, reward: Any) -> None:
        assert candidate.rewards is not None
        if isinstance(reward, Unscored):
            candidate.unscored[self.name] = reward.reason
        elif reward is None:
            candidate.unscored[self.name] = "gave no score"
        elif self.kind == "prm" and isinstance(reward, list | tuple):
            if reward:
                candidate.rewards[self.name] = [self._number(row, candidate, each) for each in reward]
            else:
                candidate.unscored[self.name] = "found no step to reward"
        else:
            candidate.rewards[self.name] = self._number(row, candidate, reward)

    def _number(self, row: Row, candidate: Candidate, reward: Any) -> float:
        value = float(reward) if isinstance(reward, numbers.Real) or hasattr(reward, "item") else math.nan
        if not math.isfinite(value):
            expected = "a finite number" + (", or a list of one per step" if self.kind == "prm" else "")
            raise UserError(
                f"{self.plugin.found} returned {reward!r:.60} for candidate {candidate.index} of {row.origin}; "
                f"expected {expected}"
            )
        return round(value, _DIGITS)


def _request(row: Row, candidate: Candidate) -> InferRequest:
    columns = {**row.columns, **({"tools": row.tools} if row.tools else {})}
    return InferRequest([*row.prompt, {"role": "assistant", "content": candidate.text}], columns)


def resolve_scorers(config: SampleConfig, plugins: RunPlugins) -> list[Scorer]:
    """The ORMs and then the PRMs of a run, in the order of the config, checked against its thresholds."""
    choices, used = [*config.orm, *config.prm], [*plugins.of("orm"), *plugins.of("prm")]
    scorers = [
        Scorer(choice.name, plugin.found.kind, choice.weight, plugin)
        for choice, plugin in zip(choices, used, strict=True)
    ]
    for name, count in Counter(scorer.name for scorer in scorers).items():
        if count > 1:
            raise UserError(
                f"two scorers are called {name!r}; use the qualified name of one (swiftplug:{name}), or remove it"
            )
    if scorers and not any(scorer.weight for scorer in scorers):
        raise UserError("every scorer has the weight 0, so nothing ranks the candidates; give one of them a weight")
    if config.prm_threshold is not None and not config.prm:
        raise UserError(f"{config.where('prm_threshold')}: it needs a PRM; name one with --prm")
    if config.easy_query_threshold is not None and not any(scorer.bound.right_from is not None for scorer in scorers):
        raise UserError(
            f"{config.where('easy_query_threshold')}: it needs an ORM that judges what is right; name one with --orm"
        )
    return scorers


async def _await(result: Any) -> Any:
    return await result
