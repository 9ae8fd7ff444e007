"""The figures of a sampling run as a page shows them: numbers, bars and counts, worded."""

from collections.abc import Sequence
from typing import NamedTuple

from swiftplug.sampling.scoring import Scorer
from swiftplug.sampling.statistics import Bin, Summary

_MOST_SIGNS = 30
"""How many letters and digits fit beside one another below the bars of a chart, and above them."""

_MOST_BARS = 33
"""How many bars a chart has at most; more numbers of right candidates than these share bars."""


class Figure(NamedTuple):
    """A number that tells most.

    Attributes:
        label: What it is.
        value: The number.
        note: Of what it is a share, or where it is from; may be empty.
    """

    label: str
    value: str
    note: str


class Bar(NamedTuple):
    """A bar of a chart.

    Attributes:
        share: Its height, 0 to 1.
        tip: What it says on pointing.
        value: Above it; may be empty.
        label: Below it; may be empty.
    """

    share: float
    tip: str
    value: str
    label: str


class Chart(NamedTuple):
    """Bars side by side.

    Attributes:
        title: What they show.
        note: Behind the title; may be empty.
        mean: The mean of what they show; may be empty.
        bars: The bars.
        ends: The two ends of the axis, where bars have no labels.
        wide: Whether it takes the place of two charts.
    """

    title: str
    note: str
    mean: str
    bars: list[Bar]
    ends: tuple[str, str] | None = None
    wide: bool = False


class Tally(NamedTuple):
    """Counts by reason.

    Attributes:
        title: Of what.
        counts: Reason and count, the most frequent first.
    """

    title: str
    counts: list[tuple[str, str]]


def figures_of(summary: Summary) -> list[Figure]:
    """The first figures to look at; shares only where something judges."""
    left_out = sum(summary.left_out.values())
    unanswered = summary.rows - summary.answered
    per_row = f"{number(summary.candidates / summary.answered)} a row" if summary.answered else ""
    figures = [
        Figure("Rows", f"{summary.rows:,}", f"{unanswered:,} without candidates" if unanswered else ""),
        Figure("Candidates", f"{summary.candidates:,}", per_row),
        Figure("Kept", f"{summary.kept:,}", f"from {summary.rows - left_out:,} rows"),
    ]
    shares = [
        ("Right", summary.right_share, "of the candidates"),
        ("Majority", summary.majority, "of the rows, one vote each"),
        ("Weighted majority", summary.weighted_majority, "of the rows, votes by score"),
    ]
    return figures + [Figure(label, percent(share), note) for label, share, note in shares if share is not None]


def charts_of(summary: Summary, scorers: Sequence[Scorer]) -> list[Chart]:
    """pass@k and the right candidates per row, where something judges; then the scores of each scorer."""
    charts = []
    if summary.pass_at:
        charts.append(_pass_at(summary.pass_at))
    if summary.right_counts:
        charts.append(Chart("Right per row", "rows by right candidates", "", _bars(_right(summary.right_counts))))
    scored = [scorer for scorer in scorers if scorer.name in summary.mean_scores]
    return charts + [_scores(each, summary.mean_scores[each.name], summary.score_bins[each.name]) for each in scored]


def _pass_at(shares: dict[int, float]) -> Chart:
    bars = [Bar(share, f"pass@{k}: {percent(share)}", percent(share), str(k)) for k, share in shares.items()]
    wide = len(bars) * len("100.0%") > _MOST_SIGNS
    return Chart("pass@k", "one of k candidates is right", "", bars, wide=wide)


def _right(counts: dict[int, int]) -> list[tuple[str, str, int]]:
    """Rows by right candidates as label, words and count."""
    together = -(-len(counts) // _MOST_BARS)
    firsts = range(0, len(counts), together)
    lasts = [min(first + together, len(counts)) - 1 for first in firsts]
    return [
        (
            str(first),
            f"{first} right" if first == last else f"{first} to {last} right",
            sum(counts[right] for right in range(first, last + 1)),
        )
        for first, last in zip(firsts, lasts, strict=True)
    ]


def _scores(scorer: Scorer, mean: float, bins: Sequence[Bin]) -> Chart:
    note = f"{scorer.kind.upper()}, weight {number(scorer.weight)}"
    if bins[0].low == bins[0].high:
        bars = _bars([(number(each.low), number(each.low), each.count) for each in bins])
        return Chart(scorer.name, note, number(mean), bars)
    bars = _bars([("", f"{number(each.low)} to {number(each.high)}", each.count) for each in bins])
    return Chart(scorer.name, note, number(mean), bars, ends=(number(bins[0].low), number(bins[-1].high)))


def _bars(counts: Sequence[tuple[str, str, int]]) -> list[Bar]:
    """Bars of label, words and count, with as many labels as there is room for, and the counts if all have room."""
    most = max(count for _, _, count in counts)
    every = -(-len(counts) * max(len(label) for label, _, _ in counts) // _MOST_SIGNS) or 1
    roomy = len(counts) * len(f"{most:,}") <= _MOST_SIGNS
    return [
        Bar(
            count / most if most else 0.0,
            f"{words}: {count:,}",
            f"{count:,}" if roomy else "",
            label if place % every == 0 else "",
        )
        for place, (label, words, count) in enumerate(counts)
    ]


def tallies_of(summary: Summary) -> list[Tally]:
    """Rows left out, candidates not kept, and how candidates ended; only what there is."""
    tallies = [
        ("Rows left out", summary.left_out),
        ("Candidates not kept", summary.not_kept),
        ("Candidates ended by", summary.finish_reasons),
    ]
    return [
        Tally(title, [(reason, f"{count:,}") for reason, count in counts.items()])
        for title, counts in tallies
        if counts
    ]


def percent(share: float) -> str:
    """A share in words: 43.1%."""
    return f"{share:.1%}".replace(".0%", "%")


def number(value: float) -> str:
    """A number in words, with at most three decimals, or three digits where it is tiny.

    Example:
        >>> number(0.5), number(1234.0), number(0.00012345)
        ('0.5', '1,234', '0.000123')
    """
    if value and abs(value) < 0.001:
        return f"{value:.3g}"
    return f"{value:,.3f}".rstrip("0").rstrip(".")
