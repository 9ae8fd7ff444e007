"""The statistics of a sampling run, counted row by row: pass@k, majorities, scores, what was left out and why."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from swiftplug.sampling.rows import Candidate, Row, is_cut_off

_MAX_REASONS = 100
"""Number of reasons counted separately: those of a server may differ each time."""

_MAX_COUNTS = 1024
"""Number of scores or bins counted separately; if there are more, bins become twice as wide."""

_MAX_VALUES = 12
"""Number of distinct scores up to which each has its own bar."""

_MAX_BINS = 24


@dataclass(frozen=True)
class Bin:
    """The number of scores in the interval from `low` to below `high`, or equal to both if they are the same.

    The last bin includes `high`.
    """

    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Summary:
    """The figures of a run; `dataclasses.asdict` converts them for JSON.

    A row without candidates counts only in `rows` and `left_out`, a reference among the candidates only in `kept` and
    `kept_references`.
    Figures without data (no scorer judges, no candidate has a score) are None, or missing from their dictionary.

    Attributes:
        rows: All rows.
        answered: Those that have candidates.
        candidates: All that were sampled.
        kept: The rows to train on: candidates and references that were kept.
        kept_references: How many of these are references.
        right_share: The share of right candidates among those judged.
        pass_at: By k (1, 2, 4, ... and N), the probability that one of k candidates is right; see `pass_at`.
        majority: The share of rows whose most frequent answer is right.
        weighted_majority: The same, each vote weighted by its candidate's score.
        mean_scores: By scorer.
        left_out: Rows of which no candidate was kept, by reason, most frequent first.
        not_kept: Candidates that were not kept, by reason; one with two reasons counts for both.
        finish_reasons: Candidates, by why they ended.
        score_bins: By scorer, the histogram of its scores.
        right_counts: Rows by their number of right candidates, from 0 up; empty if no scorer judges.
    """

    rows: int
    answered: int
    candidates: int
    kept: int
    kept_references: int
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
    """Counts the rows of a run one by one and keeps none of them; N is `num_return_sequences`.

    Example:
        >>> statistics = Statistics(num_return_sequences=8)
        >>> for row in rows:
        ...     statistics.add(row)
        >>> statistics.summary().pass_at
        {1: 0.42, 2: 0.55, 4: 0.66, 8: 0.75}
    """

    def __init__(self, num_return_sequences: int) -> None:
        self._n = num_return_sequences
        self._rows = self._answered = self._candidates = self._kept = self._kept_references = 0
        self._verdicts: Counter[tuple[int, int]] = Counter()  # rows by (candidates judged, of them right)
        self._majorities: Counter[bool | None] = Counter()
        self._weighted_majorities: Counter[bool | None] = Counter()
        self._scores: defaultdict[str, Histogram] = defaultdict(Histogram)
        self._left_out: Counter[str] = Counter()
        self._not_kept: Counter[str] = Counter()
        self._finish_reasons: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        """Count a row after selection."""
        self._rows += 1
        if reason := row.problem or row.failure or row.left_out:
            _count(self._left_out, reason)
        if row.problem or row.failure:
            return
        self._answered += 1
        kept = [candidate for candidate in row.candidates if not candidate.reasons]
        self._kept += len(kept)
        self._kept_references += sum(not candidate.sampled for candidate in kept)
        sampled = [candidate for candidate in row.candidates if candidate.sampled]
        for candidate in sampled:
            self._candidates += 1
            _count(self._finish_reasons, candidate.finish_reason)
            for reason in candidate.reasons:
                _count(self._not_kept, reason)
            for name, score in candidate.scores.items():
                self._scores[name].add(score)
        verdicts = [candidate.right for candidate in sampled if candidate.right is not None]
        if verdicts:
            self._verdicts[len(verdicts), sum(verdicts)] += 1
            self._majorities[_majority_is_right([(candidate, 1.0) for candidate in sampled])] += 1
            weighted = [(candidate, candidate.score) for candidate in sampled if candidate.score is not None]
            self._weighted_majorities[_majority_is_right(weighted)] += 1

    def summary(self) -> Summary:
        """The figures so far."""
        judged = sum(rows * n for (n, _), rows in self._verdicts.items())
        right = sum(rows * c for (_, c), rows in self._verdicts.items())
        return Summary(
            rows=self._rows,
            answered=self._answered,
            candidates=self._candidates,
            kept=self._kept,
            kept_references=self._kept_references,
            right_share=right / judged if judged else None,
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

    def _pass_at(self) -> dict[int, float]:
        """Over the rows with at least k judged candidates; with fewer, the estimator is not defined."""
        estimates = {}
        for k in sorted({*(2**power for power in range(self._n.bit_length())), self._n}):
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


def row_figures(row: Row, num_return_sequences: int) -> dict[str, float]:
    """The figures of one row after selection, whose means over the rows are those of the run.

    Args:
        row: The row.
        num_return_sequences: The number of candidates that each row should have.

    Returns:
        `pass@k` and, of several candidates, `majority`, if a scorer judges; by scorer, its mean score; and `cut_off`,
        the share of candidates that were cut off at the token limit. Nothing if the row has no candidates.

    Example:
        >>> row_figures(row, 2)
        {'pass@1': 0.5, 'pass@2': 1.0, 'majority': 1.0, 'math': 0.5, 'cut_off': 0.0}
    """
    alone = Statistics(num_return_sequences)
    alone.add(row)
    summary = alone.summary()
    if not summary.candidates:
        return {}
    cut_off = sum(count for reason, count in summary.finish_reasons.items() if is_cut_off(reason))
    return {
        **{f"pass@{k}": share for k, share in summary.pass_at.items()},
        **({} if summary.majority is None or num_return_sequences == 1 else {"majority": float(summary.majority)}),
        **summary.mean_scores,
        "cut_off": cut_off / summary.candidates,
    }


@lru_cache(maxsize=4096)
def pass_at(k: int, n: int, c: int) -> float:
    """The probability that at least one of k candidates is right, picked from n of which c are right.

    This is the unbiased estimator of pass@k by Chen et al. (2021), arXiv 2107.03374: `1 - C(n-c, k) / C(n, k)`,
    computed with integers and rounded once.

    Example:
        >>> pass_at(2, n=4, c=1)
        0.5
    """
    ways = math.comb(n, k)
    return (ways - math.comb(n - c, k)) / ways


def _majority_is_right(votes: Sequence[tuple[Candidate, float]]) -> bool | None:
    """Whether the answer with most votes is right (self-consistency: Wang et al., 2022, arXiv 2203.11171).

    Each candidate votes for its answer with its weight. The answer with the largest sum wins, the first of equal ones.
    Weights may be negative: then a frequent answer gets a lower sum than a rare one. Candidates without an answer do
    not vote; if none votes, the row counts as wrong. The winning answer is right if more than half of its judged
    candidates are, as a second ORM (of the format, say) may judge candidates with the same answer differently.

    Returns None if there is no candidate, or if none with the winning answer was judged.
    """
    by_answer: dict[str, list[float]] = {}
    for candidate, weight in votes:
        if candidate.answer is not None:
            by_answer.setdefault(candidate.answer, []).append(weight)
    if not by_answer:
        return False if votes else None
    winner = max(by_answer, key=lambda answer: math.fsum(by_answer[answer]))  # of equals, max takes the first
    verdicts = [each.right for each, _ in votes if each.answer == winner and each.right is not None]
    return 2 * sum(verdicts) > len(verdicts) if verdicts else None


def _count(counts: Counter[str], reason: str) -> None:
    counts[reason if reason in counts or len(counts) < _MAX_REASONS else "other reasons"] += 1


def _share(counts: Counter[bool | None]) -> float | None:
    decided = counts[True] + counts[False]
    return counts[True] / decided if decided else None


class Histogram:
    """A histogram of scores whose range is not known in advance, exact in one pass and constant memory.

    Few distinct values are counted separately, many in bins. The width of a bin is a power of two and its edges are
    multiples of it, so that two neighbours can be merged into one bin of twice the width without another pass.

    Example:
        >>> histogram = Histogram()
        >>> for score in (1.0, 0.0, 1.0):
        ...     histogram.add(score)
        >>> histogram.bins()
        [Bin(low=0.0, high=0.0, count=1), Bin(low=1.0, high=1.0, count=2)]
    """

    def __init__(self) -> None:
        self._total = 0.0
        self._low, self._high = math.inf, -math.inf
        self._width = 0.0  # 0: each value has its own count
        self._counts: Counter[float] = Counter()

    def add(self, score: float) -> None:
        """Count a score, a finite number."""
        self._total += score
        self._low, self._high = min(self._low, score), max(self._high, score)
        self._counts[_edge(score, self._width)] += 1
        while len(self._counts) > _MAX_COUNTS:
            self._width = 2 * self._width or self._width_for(_MAX_COUNTS)
            self._counts = _rebinned(self._counts, self._width)

    @property
    def mean(self) -> float:
        """The mean of the scores, of which there must be at least one."""
        return self._total / self._counts.total()

    def bins(self) -> list[Bin]:
        """Counts from the lowest score to the highest: of up to 12 values, or in up to 24 bins of equal width."""
        if not self._width and len(self._counts) <= _MAX_VALUES:
            return [Bin(value, value, count) for value, count in sorted(self._counts.items())]
        width = max(self._width, self._width_for(_MAX_BINS))
        first, last = self._places(width)
        while last - first >= _MAX_BINS:
            width *= 2
            first, last = self._places(width)
        counts = _rebinned(self._counts, width)
        bins = [Bin(place * width, (place + 1) * width, counts[place * width]) for place in range(first, last + 1)]
        if last * width == self._high:  # the highest score is the lower edge of its bin: count it in the bin below
            top = bins.pop()
            bins[-1] = Bin(bins[-1].low, bins[-1].high, bins[-1].count + top.count)
        return bins

    def _width_for(self, bins: int) -> float:
        """The least power of two with which that many bins cover the range of the scores."""
        return float(2.0 ** math.ceil(math.log2((self._high - self._low) / bins)))

    def _places(self, width: float) -> tuple[int, int]:
        """The numbers of the lowest and the highest bin at a width."""
        return math.floor(self._low / width), math.floor(self._high / width)


def _edge(score: float, width: float) -> float:
    """The lower edge of a score's bin; the score itself at width 0."""
    return math.floor(score / width) * width if width else score


def _rebinned(counts: Counter[float], width: float) -> Counter[float]:
    wider: Counter[float] = Counter()
    for score, count in counts.items():
        wider[_edge(score, width)] += count
    return wider
