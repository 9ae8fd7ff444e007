"""Which candidates of a row are kept, and why the others are not.

    score = sum of weight x reward over the scorers / sum of weights        (a PRM's steps first become one reward)

Candidates are ranked by score, and those of one score by their index. One is right when, of the ORMs that judge, more
than half by weight say so. Only right ones are kept, where anything judges.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swiftplug.config.sample_schema import SampleConfig
from swiftplug.sampling.ledger import Reward, StoredCandidate, StoredRow
from swiftplug.sampling.plugins import Scorer
from swiftplug.sampling.records import Candidate, Row

ALL_WRONG = "all wrong"
TOO_EASY = "too easy"
BELOW_THRESHOLD = "below the PRM threshold"
WRONG = "wrong"
EMPTY = "empty"
DUPLICATE = "same answer as a better one"
NOTHING_LEFT = "no candidate to keep"


@dataclass(frozen=True)
class Selection:
    """How candidates are chosen.

    Attributes:
        scorers: The ORMs and PRMs.
        n_best_to_keep: The most candidates of one row to keep.
        prm_threshold: What the weighted mean of the PRMs must reach, or None.
        prm_reduce: How the rewards of an answer's steps become one: `min`, `mean`, `last` or `prod`.
        easy_query_threshold: A row is too easy when a larger share of its sampled candidates is right, or None.
    """

    scorers: Sequence[Scorer]
    n_best_to_keep: int
    prm_threshold: float | None
    prm_reduce: str
    easy_query_threshold: float | None

    @classmethod
    def of(cls, config: SampleConfig, scorers: Sequence[Scorer]) -> "Selection":
        """What a config asks for."""
        return cls(scorers, config.n_best_to_keep, config.prm_threshold, config.prm_reduce, config.easy_query_threshold)

    def select(self, row: StoredRow, stored: Sequence[StoredCandidate]) -> Row:
        """Judge the candidates of a row and choose among them.

        Args:
            row: The row.
            stored: Its candidates, scored.
        """
        candidates = [self._judge(candidate, row.problem) for candidate in stored]
        left_out = self._left_out(candidates) if candidates and not row.problem else ""
        eligible = sorted((it for it in candidates if not it.reasons), key=_rank)
        kept: list[Candidate] = []
        for candidate in eligible:
            if left_out:
                candidate.reasons.append(left_out)
            elif any(candidate.text.strip() == other.text.strip() for other in kept):
                candidate.reasons.append(DUPLICATE)
            elif len(kept) == self.n_best_to_keep:
                candidate.reasons.append(f"not among the best {self.n_best_to_keep}")
            else:
                kept.append(candidate)
        return Row(
            id=row.id,
            position=row.position,
            origin=row.origin,
            prompt=row.prompt,
            reference=None if row.reference is None else str(row.reference),
            candidates=candidates,
            problem=row.problem or row.failure,
            left_out=left_out,
        )

    def _judge(self, stored: StoredCandidate, problem: str) -> Candidate:
        rewards = stored.rewards or {}
        unscored = stored.unscored or {}
        is_scored = not unscored and not problem  # a candidate that exists may be of a row that cannot be scored
        scores = {name: self._reduced(reward) for name, reward in rewards.items() if reward is not None}
        right = self._is_right(scores) if is_scored else None
        candidate = Candidate(
            index=stored.number,
            text=stored.text,
            finish_reason=stored.finish_reason,
            scores=scores,
            steps={name: reward for name, reward in rewards.items() if isinstance(reward, list)},
            score=self._mean(self.scorers, scores) if is_scored else None,
            right=right,
            answer=self._answer(stored.text),
            reasons=[*([problem] if problem else []), *(f"{name}: {reason}" for name, reason in unscored.items())],
        )
        process = self._mean([scorer for scorer in self.scorers if scorer.kind == "prm"], scores)
        if right is False:
            candidate.reasons.append(WRONG)
        if self.prm_threshold is not None and is_scored and process < self.prm_threshold:
            candidate.reasons.append(BELOW_THRESHOLD)
        if not stored.text.strip():
            candidate.reasons.append(EMPTY)
        return candidate

    def _reduced(self, reward: float | list[float]) -> float:
        if not isinstance(reward, list):
            return reward
        match self.prm_reduce:
            case "min":
                return min(reward)
            case "mean":
                return math.fsum(reward) / len(reward)
            case "last":
                return reward[-1]
            case _:
                return math.prod(reward)

    def _mean(self, scorers: Sequence[Scorer], scores: dict[str, float]) -> float:
        """The mean of the scores by weight; 0 where there is no scorer."""
        weights = _weights(scorers)
        weighted = math.fsum(weight * scores[name] for name, weight in weights.items() if name in scores)
        return weighted / math.fsum(weights.values()) if weights else 0.0

    def _is_right(self, scores: dict[str, float]) -> bool | None:
        judges = [scorer for scorer in self.scorers if scorer.right_from is not None]
        weights = _weights(judges)
        said = [it.name for it in judges if it.right_from is not None and scores[it.name] >= it.right_from]
        return sum(weights[name] for name in said) > sum(weights.values()) / 2 if judges else None

    def _answer(self, text: str) -> str | None:
        judges = [scorer for scorer in self.scorers if scorer.right_from is not None and scorer.needs_reference]
        return judges[0].answer_of(text) if judges else (text.strip() or None)

    def _left_out(self, candidates: Sequence[Candidate]) -> str:
        """Why nothing of a row is kept; empty if something is."""
        judged = [it for it in candidates if it.right is not None]
        if judged and not any(it.right for it in judged):
            return ALL_WRONG
        sampled = [it.right for it in judged if it.sampled]
        threshold = self.easy_query_threshold
        if threshold is not None and sampled and sum(map(bool, sampled)) / len(sampled) > threshold:
            return TOO_EASY
        if all(it.reasons for it in candidates):
            below = any(BELOW_THRESHOLD in it.reasons for it in candidates)
            return BELOW_THRESHOLD if below else NOTHING_LEFT
        return ""


def _weights(scorers: Sequence[Scorer]) -> dict[str, float]:
    """The weight of each scorer by its name; those that only record count alike where none of them ranks."""
    weights = {scorer.name: scorer.weight for scorer in scorers}
    return weights if any(weights.values()) else dict.fromkeys(weights, 1.0)


def rejected_of(row: Row, kept: Candidate) -> Candidate | None:
    """The worst of the candidates that are worse than a kept one: a wrong one, where anything judges."""
    worse = [
        it
        for it in row.candidates
        if it.score is not None
        and it.text.strip()
        and it.text.strip() != kept.text.strip()
        and (it.right is False or (it.right is None and kept.score is not None and it.score < kept.score))
    ]
    return min(worse, key=lambda it: (it.score, it.index), default=None)


def reward_of(candidate: Candidate, name: str) -> Any:
    """What a scorer gave: a number, or one a step; None if nothing."""
    reward: Reward = candidate.steps.get(name, candidate.scores.get(name))
    return reward


def _rank(candidate: Candidate) -> tuple[float, int]:
    assert candidate.score is not None  # what has no score has a reason not to be kept
    return -candidate.score, candidate.index
