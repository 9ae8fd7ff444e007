"""The figures of a sampling run, against brute force, few-line reimplementations and numpy."""

import json
import random
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from itertools import combinations
from statistics import mean

import numpy as np
import pytest

from swiftplug.sampling.page.figures import figures_of
from swiftplug.sampling.rows import REFERENCE, Candidate, Row
from swiftplug.sampling.statistics import Histogram, Statistics, Summary


def _candidate(
    index: int = 0,
    right: bool | None = None,
    answer: str | None = None,
    score: float | None = None,
    scores: dict[str, float] | None = None,
    reasons: Iterable[str] = (),
    finish_reason: str = "stop",
) -> Candidate:
    return Candidate(
        index,
        "text",
        finish_reason,
        scores=scores or {},
        score=score,
        right=right,
        answer=answer,
        reasons=list(reasons),
    )


def _row(candidates: list[Candidate], position: int = 0, problem: str = "", left_out: str = "") -> Row:
    return Row(
        f"id{position}",
        f"rows.jsonl:{position + 1}",
        problem=problem,
        position=position,
        candidates=candidates,
        left_out=left_out,
    )


def _judged(verdicts: Iterable[bool | None]) -> Row:
    return _row([_candidate(index, right) for index, right in enumerate(verdicts)])


def _votes(*votes: tuple[str | None, bool | None, float | None]) -> Row:
    return _row([_candidate(index, right, answer, score) for index, (answer, right, score) in enumerate(votes)])


def _summary(rows: Iterable[Row], n: int) -> Summary:
    statistics = Statistics(n)
    for row in rows:
        statistics.add(row)
    return statistics.summary()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 8])
def test_pass_at_k_is_the_share_of_all_subsets_with_one_right(n: int) -> None:
    generator = random.Random(n)
    verdicts = [[generator.random() < share for _ in range(n)] for share in (0, 0.2, 0.5, 0.8, 1) for _ in range(3)]
    estimates = _summary(map(_judged, verdicts), n).pass_at
    assert sorted(estimates) == sorted({k for k in (1, 2, 4, 8) if k <= n} | {n})
    for k, estimate in estimates.items():
        shares = [mean(any(subset) for subset in combinations(row, k)) for row in verdicts]
        assert estimate == pytest.approx(mean(shares), abs=1e-12)


def test_pass_at_k_is_exact_for_many_candidates() -> None:
    # One right of 10,000, drawn half of them: a half, where factorials and powers of floats give up.
    assert _summary([_judged([True] + [False] * 9999)], 5000).pass_at[5000] == 0.5


def test_pass_at_k_takes_the_rows_that_have_k_verdicts() -> None:
    estimates = _summary([_judged([True, False, None, None]), _judged([False] * 4)], 4).pass_at
    assert estimates == {1: 0.25, 2: 0.5, 4: 0.0}


def _majority_in_few_lines(row: Row, weighted: bool) -> bool:
    votes: dict[str, float] = defaultdict(float)
    for candidate in row.candidates:
        if candidate.answer is not None:
            votes[candidate.answer] += candidate.score if weighted and candidate.score is not None else 1
    best = max(votes.values(), default=None)
    for candidate in row.candidates:
        if candidate.answer is not None and votes[candidate.answer] == best:
            return bool(candidate.right)
    return False


def test_majorities_are_those_of_a_plain_count() -> None:
    generator = random.Random(0)
    rows = []
    for _ in range(500):
        answers = [generator.choice(["7", "8", "9", None]) for _ in range(8)]
        # Multiples of a quarter add up without rounding, and tie often.
        rows.append(_votes(*[(answer, answer == "7", generator.randint(-2, 4) / 4) for answer in answers]))
    summary = _summary(rows, 8)
    assert summary.majority == mean(_majority_in_few_lines(row, weighted=False) for row in rows)
    assert summary.weighted_majority == mean(_majority_in_few_lines(row, weighted=True) for row in rows)
    assert summary.majority != summary.weighted_majority


@pytest.mark.parametrize(
    ("row", "majority", "weighted"),
    [
        (_votes(("8", False, 0.0), ("7", True, 0.0)), 0.0, 0.0),  # a tie goes to the first
        (_votes(("7", True, 0.0), ("8", False, 0.0)), 1.0, 1.0),
        (_votes(("8", False, 0.1), ("8", False, 0.1), ("7", True, 0.9)), 0.0, 1.0),
        (_votes(("7", True, -0.5), ("7", True, -0.5), ("8", False, -0.9)), 1.0, 0.0),  # two votes of -0.5 are -1
        (_votes((None, False, 0.9), (None, False, 0.9), ("7", True, 0.1)), 1.0, 1.0),  # without an answer, no vote
        (_votes((None, False, 0.9), (None, True, 0.9)), 0.0, 0.0),  # nobody votes
        (_votes(("7", True, None), ("7", True, None), ("8", False, 0.1)), 1.0, 0.0),  # unscored: no weight, no vote
        (_votes(("7", True, None)), 1.0, None),  # no vote has a weight: no majority
        (_votes(("7", True, 1.0), ("7", True, 1.0), ("7", False, 1.0)), 1.0, 1.0),  # one of three ill-formed
        (_votes(("7", None, 1.0), ("7", None, 1.0), ("8", True, 1.0)), None, None),  # nobody judged the winner
    ],
)
def test_majority_in_corners(row: Row, majority: float | None, weighted: float | None) -> None:
    summary = _summary([row], 3)
    assert (summary.majority, summary.weighted_majority) == (majority, weighted)


def test_a_run_that_nothing_judges_has_scores_and_no_shares() -> None:
    rows = [_row([_candidate(0, score=0.2, scores={"length": 0.2}), _candidate(1, score=0.6, scores={"length": 0.6})])]
    summary = _summary(rows, 2)
    assert (summary.right_share, summary.majority, summary.weighted_majority) == (None, None, None)
    assert summary.pass_at == {} and summary.right_counts == {}
    assert summary.mean_scores == {"length": pytest.approx(0.4)}
    assert _summary([], 4).candidates == 0


def test_everything_is_counted_once_and_by_reason() -> None:
    reference = _candidate(2, True, "7", 9.0, {"gsm8k": 9.0}, [], REFERENCE)
    rows = [
        _row(
            [_candidate(0, True, "7", 1.0, {"gsm8k": 1.0}), _candidate(1, False, "8", 0.0, {"gsm8k": 0.0}, ["worse"])]
        ),
        _row(
            [_candidate(0, False, reasons=["wrong", "cut"], finish_reason="length"), _candidate(1, True), reference], 1
        ),
        _row(
            [_candidate(0, False, reasons=["wrong"]), _candidate(1, False, reasons=["wrong"])], 2, left_out="all wrong"
        ),
        _row([], 3, problem="the server answered 500"),
    ]
    summary = _summary(rows, 2)
    assert (summary.rows, summary.answered, summary.candidates, summary.kept) == (4, 3, 6, 3)
    assert summary.kept_references == 1
    assert ("Kept", "2", "from 2 rows, and 1 reference") in figures_of(summary)
    assert summary.right_share == 2 / 6
    assert summary.mean_scores == {"gsm8k": 0.5}
    assert summary.left_out == {"all wrong": 1, "the server answered 500": 1}
    assert summary.not_kept == {"wrong": 3, "worse": 1, "cut": 1}
    assert next(iter(summary.not_kept)) == "wrong"
    assert summary.finish_reasons == {"stop": 5, "length": 1}
    assert summary.right_counts == {0: 1, 1: 2, 2: 0}
    assert summary.pass_at == {1: pytest.approx(1 / 3), 2: pytest.approx(2 / 3)}


def test_the_summary_goes_through_json() -> None:
    summary = asdict(_summary([_row([_candidate(0, True, "7", 1.0, {"gsm8k": 1.0})])], 1))
    back = json.loads(json.dumps(summary, allow_nan=False))
    assert back["score_bins"] == {"gsm8k": [{"low": 1.0, "high": 1.0, "count": 1}]}
    assert back["pass_at"] == {"1": 1.0}


@pytest.mark.parametrize(
    "scores",
    [
        np.random.default_rng(0).normal(size=5000),
        np.random.default_rng(1).random(5000),
        np.concatenate([np.linspace(0, 1, 2000), [-1000.0, 5000.0]]),  # the range grows late
        1e6 + np.random.default_rng(2).random(3000),
        np.repeat(np.linspace(-1, 1, 17), 3),
        np.linspace(0, 1, 13),
    ],
)
def test_bins_hold_what_numpy_counts_in_them(scores: np.ndarray) -> None:
    histogram = Histogram()
    for score in scores.tolist():
        histogram.add(score)
    bins = histogram.bins()
    edges = [each.low for each in bins] + [bins[-1].high]
    assert len(bins) <= 24 and edges == [each.low for each in bins[:1]] + [each.high for each in bins]
    assert np.allclose(np.diff(edges), edges[1] - edges[0], rtol=0, atol=0)
    counts, _ = np.histogram(scores, bins=edges)
    assert [each.count for each in bins] == counts.tolist()
    assert counts.sum() == len(scores) and counts[0] and counts[-1]
    assert histogram.mean == pytest.approx(float(scores.mean()), rel=1e-12)


def test_few_values_are_counted_by_themselves() -> None:
    scores = [random.Random(0).choice([0.0, 1 / 3, 2 / 3, 1.0]) for _ in range(1000)]
    histogram = Histogram()
    for score in scores:
        histogram.add(score)
    assert {each.low: each.count for each in histogram.bins()} == Counter(scores)
    assert all(each.low == each.high for each in histogram.bins())


def test_memory_does_not_grow_with_the_rows() -> None:
    statistics, generator = Statistics(4), random.Random(0)

    def add(rows: int) -> None:
        for position in range(rows):
            candidates = [
                _candidate(i, generator.random() < 0.5, str(i), 1.0, {"a": generator.gauss(0, 1)}) for i in range(4)
            ]
            statistics.add(_row(candidates, position, left_out=f"answer {generator.random()} of the server"))

    tracemalloc.start()
    add(2000)
    early, _ = tracemalloc.get_traced_memory()
    add(6000)
    late, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert late - early < 20_000  # bytes; the 24,000 scores alone would be half a megabyte
    assert sum(statistics.summary().left_out.values()) == 8000
