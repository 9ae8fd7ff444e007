"""What a sampling run has reached, counted row by row: pass@k, majorities, mean rewards, what was left out and why."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from swiftplug.sampling.histogram import Bin, Histogram
from swiftplug.sampling.records import Candidate, Row

_MOST_REASONS = 100
"""How many reasons are counted apart: those of a server may be different each time."""

_OTHER = "other reasons"


@dataclass(frozen=True)
class Summary:
    """The figures of a run; `dataclasses.asdict` makes them ready for JSON.

    A row without candidates counts in `rows` and `left_out` only, a reference among the candidates in `kept` only. What
    nothing in the run says (nothing judges, no candidate ranks) is None, or is not in its dictionary.

    Attributes:
        rows: All rows.
        answered: Those that have candidates.
        candidates: All that were sampled.
        kept: The candidates kept, a reference among them included.
        right_share: The share of right candidates among those judged.
        pass_at: By k (1, 2, 4, ... and N), the probability that one of k candidates is right; see `pass_at`.
        majority: The share of rows whose most frequent answer is right.
        weighted_majority: The same, each vote weighted by its candidate's score.
        mean_scores: By scorer.
        left_out: Rows of which no candidate was kept, by reason, the most frequent first.
        not_kept: Candidates that were not kept, by reason; one with two reasons counts for both.
        finish_reasons: Candidates, by why they ended.
        score_bins: By scorer, how its scores are spread.
        right_counts: By number of right candidates from 0 up, the rows that have as many; empty where nothing judges.
    """

    rows: int
    answered: int
    candidates: int
    kept: int
    right_share: float | None
    pass_at: dict[int, float]
    majority: float | None
    weighted_majority: float | None
    mean_scores: dict[str, float]
    left_out: dict[str, int]
    not_kept: dict[str, int]
    finish_reasons: dict[str, int]
    score_bins: dict[str, list[Bin]]
    right_counts: dict[int, int]


class Statistics:
    """Counts the rows of a run as they pass; keeps none of them.

    Example:
        >>> statistics = Statistics(num_return_sequences=8)
        >>> for row in rows:
        ...     statistics.add(row)
        >>> statistics.summary().pass_at
        {1: 0.42, 2: 0.55, 4: 0.66, 8: 0.75}
    """

    def __init__(self, num_return_sequences: int) -> None:
        """
        Args:
            num_return_sequences: N, the number of candidates asked for each row.
        """
        self._n = num_return_sequences
        self._rows = self._answered = self._candidates = self._kept = 0
        self._verdicts: Counter[tuple[int, int]] = Counter()  # rows by (candidates judged, of them right)
        self._majorities: Counter[bool] = Counter()
        self._weighted_majorities: Counter[bool] = Counter()
        self._scores: dict[str, Histogram] = {}
        self._left_out: Counter[str] = Counter()
        self._not_kept: Counter[str] = Counter()
        self._finish_reasons: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        """Count a row.

        Args:
            row: The row, selection done.
        """
        self._rows += 1
        reason = row.problem or row.left_out
        if reason:
            _count(self._left_out, reason)
        if row.problem:
            return
        self._answered += 1
        self._kept += sum(not candidate.reasons for candidate in row.candidates)
        sampled = [candidate for candidate in row.candidates if candidate.sampled]
        for candidate in sampled:
            self._add_candidate(candidate)
        verdicts = [candidate.right for candidate in sampled if candidate.right is not None]
        if verdicts:
            self._verdicts[len(verdicts), sum(verdicts)] += 1
            self._add_majorities(sampled)

    def _add_candidate(self, candidate: Candidate) -> None:
        self._candidates += 1
        _count(self._finish_reasons, candidate.finish_reason)
        for reason in candidate.reasons:
            _count(self._not_kept, reason)
        for name, score in candidate.scores.items():
            self._scores.setdefault(name, Histogram()).add(score)

    def _add_majorities(self, sampled: Sequence[Candidate]) -> None:
        right = majority_is_right(sampled, [1.0] * len(sampled))
        if right is not None:
            self._majorities[right] += 1
        ranked = [(candidate, candidate.score) for candidate in sampled if candidate.score is not None]
        if ranked:
            right = majority_is_right([candidate for candidate, _ in ranked], [score for _, score in ranked])
            if right is not None:
                self._weighted_majorities[right] += 1

    def summary(self) -> Summary:
        """The figures so far."""
        return Summary(
            rows=self._rows,
            answered=self._answered,
            candidates=self._candidates,
            kept=self._kept,
            right_share=self._right_share(),
            pass_at=self._pass_at(),
            majority=_share(self._majorities),
            weighted_majority=_share(self._weighted_majorities),
            mean_scores={name: histogram.mean for name, histogram in self._scores.items()},
            left_out=dict(self._left_out.most_common()),
            not_kept=dict(self._not_kept.most_common()),
            finish_reasons=dict(self._finish_reasons.most_common()),
            score_bins={name: histogram.bins() for name, histogram in self._scores.items()},
            right_counts=self._right_counts(),
        )

    def _right_share(self) -> float | None:
        judged = sum(rows * n for (n, _), rows in self._verdicts.items())
        return sum(rows * c for (_, c), rows in self._verdicts.items()) / judged if judged else None

    def _pass_at(self) -> dict[int, float]:
        """Over the rows with at least k candidates judged: with fewer, the estimator does not exist."""
        powers = [2**power for power in range(self._n.bit_length())]
        estimates = {}
        for k in sorted({*powers, self._n}):
            enough = {(n, c): rows for (n, c), rows in self._verdicts.items() if n >= k}
            if enough:
                total = math.fsum(rows * pass_at(k, n, c) for (n, c), rows in enough.items())
                estimates[k] = total / sum(enough.values())
        return estimates

    def _right_counts(self) -> dict[int, int]:
        if not self._verdicts:
            return {}
        counts = dict.fromkeys(range(max(self._n, *(n for n, _ in self._verdicts)) + 1), 0)
        for (_, c), rows in self._verdicts.items():
            counts[c] += rows
        return counts


@lru_cache(maxsize=4096)
def pass_at(k: int, n: int, c: int) -> float:
    """The probability that at least one of k candidates is right, drawn from n of which c are right.

    This is the unbiased estimator of pass@k by Chen et al. (2021), arXiv 2107.03374: `1 - C(n-c, k) / C(n, k)`. It is
    computed in whole numbers and rounded once.

    Args:
        k: How many are drawn, at most `n`.
        n: How many were sampled.
        c: How many of them are right.

    Example:
        >>> pass_at(2, n=4, c=1)
        0.5
    """
    ways = math.comb(n, k)
    return (ways - math.comb(n - c, k)) / ways


def majority_is_right(voters: Sequence[Candidate], weights: Sequence[float]) -> bool | None:
    """Whether the answer with most votes is right (self-consistency: Wang et al., 2022, arXiv 2203.11171).

    The votes for an answer are the sum of its candidates' weights; the largest sum wins, ties go to the answer that
    came first. Weights may be negative: sums simply compare, so that among answers all scored below zero, one that
    many gave has less than one that few gave. Candidates without an answer do not vote, and where nobody votes the row
    counts as wrong. The winning answer is right if more than half of its candidates with a verdict are (another judge,
    of form say, may tell apart candidates that give one answer).

    Args:
        voters: The candidates, by index.
        weights: What the vote of each weighs.

    Returns:
        None where no candidate with the winning answer has a verdict.
    """
    votes: dict[str, list[float]] = {}
    for voter, weight in zip(voters, weights, strict=True):
        if voter.answer is not None:
            votes.setdefault(voter.answer, []).append(weight)
    if not votes:
        return False
    winner = max(votes, key=lambda answer: math.fsum(votes[answer]))  # of equals, max takes the first
    verdicts = [voter.right for voter in voters if voter.answer == winner and voter.right is not None]
    return 2 * sum(verdicts) > len(verdicts) if verdicts else None


def _count(counts: Counter[str], reason: str) -> None:
    counts[reason if reason in counts or len(counts) < _MOST_REASONS else _OTHER] += 1


def _share(counts: Counter[bool]) -> float | None:
    return counts[True] / counts.total() if counts else None
