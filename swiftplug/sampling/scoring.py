"""Where candidates are scored: in batches across rows, with a time limit, every reward checked."""

import asyncio
import inspect
import math
import numbers
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.rewards import ORM, InferRequest, Unscored
from swiftplug.runs.errors import naming_plugins
from swiftplug.runs.plugins import RunPlugins
from swiftplug.sampling.rows import Candidate, Row

DIGITS = 6
"""Decimal places of a reward that are kept: what a model computes differs beyond them with the batch it is in."""


@dataclass(frozen=True)
class Scorer:
    """An ORM or a PRM in use.

    Attributes:
        name: As the config names it; also the key of its rewards.
        kind: `orm` or `prm`.
        weight: Of its reward in the score that ranks.
        plugin: The plugin.
    """

    name: str
    kind: str
    weight: float
    plugin: LoadedPlugin

    @cached_property
    def needs_reference(self) -> bool:
        """Whether it compares answers with references."""
        return bool(getattr(self.plugin.bound, "needs_reference", self.kind == "orm"))

    @cached_property
    def right_from(self) -> float | None:
        """The score from which an answer counts as right; None where it does not judge."""
        return getattr(self.plugin.bound, "right_from", 0.5) if self.kind == "orm" else None

    def answer_of(self, text: str) -> str | None:
        """The final answer that a text gives, by which a majority is counted."""
        extract = getattr(self.plugin.bound, "answer_of", None)
        answer = extract(text) if extract else ORM().answer_of(text)
        return None if answer is None else str(answer)

    def score(self, rows: Sequence[Row], timeout: float) -> None:
        """Give every candidate of some rows a reward, or the reason why there is none.

        Args:
            rows: Rows whose candidates have dictionaries of rewards.
            timeout: Seconds that the scorer may take.

        Raises:
            UserError: It took longer, or did not return one finite reward per candidate (or one per step).
        """
        pairs = [(row, candidate) for row in rows for candidate in row.candidates]
        returned = self._call([_request(*pair) for pair in pairs], [row.reference for row, _ in pairs], timeout)
        if hasattr(returned, "tolist"):  # an array or a tensor
            returned = returned.tolist()
        if not isinstance(returned, list | tuple):
            found = f"a {type(returned).__name__}; expected a list of {len(pairs)} rewards"
            raise UserError(f"{self.plugin.found} returned {found}")
        if len(returned) != len(pairs):
            raise UserError(f"{self.plugin.found} returned {len(returned)} rewards for {len(pairs)} candidates")
        for (row, candidate), reward in zip(pairs, returned, strict=True):
            self._record(row, candidate, reward)

    def _call(self, requests: list[InferRequest], references: list[Any], timeout: float) -> Any:
        """What the plugin returns; it runs in a thread, as one that hangs cannot be stopped, only left behind."""
        outcome: list[Any] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                plugin = self.plugin.bound
                orm = self.kind == "orm"
                result = plugin(requests, references) if orm else plugin(requests, ground_truths=references)
                outcome.append(asyncio.run(_await(result)) if inspect.isawaitable(result) else result)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work, name=f"swiftplug-{self.name}", daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            raise UserError(
                f"{self.plugin.found} did not score {len(requests)} candidates within {timeout:g} s (score_timeout); "
                "what was sampled is kept: continue with --resume"
            )
        if errors:
            with naming_plugins([self.plugin]):
                raise errors[0]
        return outcome[0]

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
        return round(value, DIGITS)


def _request(row: Row, candidate: Candidate) -> InferRequest:
    columns = {**row.columns, **({"tools": row.tools} if row.tools else {})}
    return InferRequest([*row.prompt, {"role": "assistant", "content": candidate.text}], columns)


def resolve_scorers(config: SampleConfig, plugins: RunPlugins) -> list[Scorer]:
    """The ORMs and then the PRMs of a run, in the order of the config.

    Raises:
        UserError: Two have the same name, all have weight 0, or a threshold needs a scorer that is not there.
    """
    choices, used = [*config.orm, *config.prm], [*plugins.of("orm"), *plugins.of("prm")]
    scorers = [Scorer(it.name, plugin.found.kind, it.weight, plugin) for it, plugin in zip(choices, used, strict=True)]
    for name, count in Counter(scorer.name for scorer in scorers).items():
        if count > 1:
            raise UserError(
                f"two scorers are called {name!r}; use the qualified name of one (swiftplug:{name}), or remove it"
            )
    if scorers and not any(scorer.weight for scorer in scorers):
        raise UserError("every scorer has the weight 0, so nothing ranks the candidates; give one of them a weight")
    if config.prm_threshold is not None and not config.prm:
        raise UserError(f"{config.where('prm_threshold')}: no PRM gives a reward to reach it; name one with --prm")
    if config.easy_query_threshold is not None and not any(scorer.right_from is not None for scorer in scorers):
        raise UserError(
            f"{config.where('easy_query_threshold')}: no ORM judges which candidates are right; name one with --orm"
        )
    return scorers


async def _await(result: Any) -> Any:
    return await result
