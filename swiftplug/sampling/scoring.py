"""Scores candidates in batches across rows, with a time limit, and checks every reward."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from swiftplug.config.schema import DrawConfig, SampleConfig
from swiftplug.errors import ContractError, UserError, nearest
from swiftplug.formatting import format_count
from swiftplug.plugin.registry import REFERENCE_NAMES, BoundScorer, LoadedPlugin
from swiftplug.plugin.registry.returns import check_reward, check_rewards
from swiftplug.plugin.rewards import InferRequest, Unscored
from swiftplug.runs.errors import naming_plugins
from swiftplug.runs.plugins import RunPlugins
from swiftplug.runs.time_limit import call_within
from swiftplug.sampling.rows import REFERENCE, Candidate, Row

DIGITS = 6
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
        checked = [self._check(it, f"reference of {row.origin}") for (row, _), it in zip(answers, rewards, strict=True)]
        least = self.bound.right_from
        return [isinstance(it, float) and least is not None and it >= least for it in checked]

    def _rewards(self, pairs: Sequence[tuple[Row, Candidate]], timeout: float) -> Sequence[Any]:
        """What the plugin returns for these candidates, one value for each."""
        requests = [as_request(row, [*row.prompt, *candidate.messages]) for row, candidate in pairs]
        references = [row.ground_truth for row, _ in pairs]
        late = (
            f"{self.plugin.found} did not score {format_count(len(pairs), 'candidate')} within {timeout:g} s "
            "(score_timeout); what is saved is kept: continue with --resume"
        )
        with naming_plugins([self.plugin]):  # in the main thread: libraries that use signals need that
            returned = call_within(timeout, partial(self.bound, requests, references), late)
        try:
            return check_rewards(returned, len(pairs))
        except ContractError as error:
            raise UserError(f"{self.plugin.found} {error}") from None

    def _record(self, row: Row, candidate: Candidate, reward: Any) -> None:
        assert candidate.rewards is not None
        checked = self._check(reward, f"candidate {candidate.index} of {row.origin}")
        if isinstance(checked, Unscored):
            candidate.unscored[self.name] = checked.reason
        elif isinstance(checked, list):
            candidate.rewards[self.name] = [round(step, DIGITS) for step in checked]
        else:
            candidate.rewards[self.name] = round(checked, DIGITS)

    def _check(self, reward: Any, where: str) -> float | list[float] | Unscored:
        try:
            return check_reward(self.kind, reward)
        except ContractError as error:
            raise UserError(f"{self.plugin.found} {error} ({where})") from None


def as_request(row: Row, messages: Sequence[dict[str, Any]]) -> InferRequest:
    """A conversation that begins with the prompt of a row, and the row's columns."""
    return InferRequest([*messages], {**row.columns, **({"tools": row.tools} if row.tools else {})})


def resolve_scorers(config: DrawConfig, plugins: RunPlugins) -> list[Scorer]:
    """The ORMs and then the PRMs of a run, in the order of the config."""
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
    return scorers


def check_thresholds(config: SampleConfig, scorers: Sequence[Scorer]) -> None:
    """Refuse a threshold for what no scorer of a run gives."""
    if config.prm_threshold is not None and not config.prm:
        raise UserError(f"{config.where('prm_threshold')}: it needs a PRM; name one with --prm")
    if config.easy_query_threshold is not None and not any(scorer.bound.right_from is not None for scorer in scorers):
        raise UserError(
            f"{config.where('easy_query_threshold')}: it needs an ORM that judges what is right; name one with --orm"
        )


def check_references(needing: Sequence[Scorer], has_references: bool, needed_by: str = "") -> None:
    """Refuse a run whose scorers (or what `needed_by` names) need references, and whose rows have none."""
    if (needing or needed_by) and not has_references:
        raise UserError(
            f"{needing[0].plugin.found if needing else needed_by} needs references, and no row has one: a last message "
            "with role 'assistant', or a column 'reference', 'solution' or 'answer' (data.columns renames columns)"
        )


def check_parameters(scorers: Sequence[Scorer], columns: Iterable[str], has_references: bool) -> None:
    """Refuse a scorer with a parameter for which no row has a value."""
    known = [*columns, "tools", *(REFERENCE_NAMES if has_references else ())]
    for scorer in scorers:
        for name in scorer.bound.needed_columns:
            if name not in known:
                raise UserError(
                    f"{scorer.plugin.found} has the parameter {name!r}, and no row has such a column (data.columns "
                    f"renames columns){nearest(name, known)}"
                )
