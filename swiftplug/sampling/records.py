"""What a sampling run knows of its rows and candidates; selection makes these, files and the page show them."""

from dataclasses import dataclass
from typing import Any

REFERENCE = "reference"
"""The `finish_reason` of a candidate that is the reference answer, put among the candidates on request."""


@dataclass(frozen=True)
class Candidate:
    """One answer to a row, scored and judged.

    Attributes:
        index: Its number among the row's candidates, from 0.
        text: The answer.
        finish_reason: Why it ended: `stop`, `length`, `reference`, or what an engine says.
        scores: By scorer; a PRM's steps are reduced to one number. A scorer that gave none is not in it.
        steps: By PRM that rewarded each step, the rewards.
        score: What ranks it; None where a scorer gave none.
        right: Whether the ORMs judge it right; None where none of them judges.
        answer: Its final answer, by which a majority is counted; None where it gives none.
        reasons: Why it was not kept; empty if it was.
    """

    index: int
    text: str
    finish_reason: str
    scores: dict[str, float]
    steps: dict[str, list[float]]
    score: float | None
    right: bool | None
    answer: str | None
    reasons: list[str]

    @property
    def sampled(self) -> bool:
        """Whether it was sampled; the reference among the candidates was not, and counts in no statistic."""
        return self.finish_reason != REFERENCE


@dataclass(frozen=True)
class Row:
    """One row with its candidates.

    Attributes:
        id: A hash of its content.
        position: Its number in the dataset, from 0.
        origin: Where it was read, as `file:line`.
        prompt: The messages up to the question.
        reference: The right answer; None where the dataset gives none.
        candidates: Its candidates, by index.
        problem: Why it has no candidates; empty if it has.
        left_out: Why none of its candidates was kept; empty if one was.
    """

    id: str
    position: int
    origin: str
    prompt: list[dict[str, Any]]
    reference: str | None
    candidates: list[Candidate]
    problem: str
    left_out: str


@dataclass(frozen=True)
class ScorerInfo:
    """A scorer of a run.

    Attributes:
        name: As the config names it; also the key of its scores.
        kind: `orm` or `prm`.
        weight: Its weight in the score that ranks.
    """

    name: str
    kind: str
    weight: float
