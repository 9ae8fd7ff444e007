"""The figures of a sampling run as the page shows them: numbers, bars and counts."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from swiftplug.formatting import format_count, format_number, format_percent
from swiftplug.sampling.scoring import Scorer
from swiftplug.sampling.statistics import Bin, Summary

_MAX_LABEL_CHARACTERS = 30
"""Number of characters for which a chart has room below its bars, and above them."""

_MAX_BARS = 33
"""Number of bars in a chart at most; if there are more counts of right candidates, several share a bar."""


class Bar(NamedTuple):
    """A bar of a chart.

    Attributes:
        share: Its height, 0 to 1.
        tip: The text shown when the mouse is over it.
        value: The text above it; may be empty.
        label: The text below it; may be empty.
    """

    share: float
    tip: str
    value: str
    label: str


class Chart(NamedTuple):
    """Bars side by side.

    Attributes:
        title: What they show.
        note: The text after the title.
        mean: The mean of what they show; may be empty.
        bars: The bars.
        ends: The two ends of the axis, where bars have no labels.
        wide: Whether it is as wide as two charts.
    """

    title: str
    note: str
    mean: str
    bars: list[Bar]
    ends: tuple[str, str] | None = None
    wide: bool = False


def figures_of(summary: Summary) -> list[tuple[str, str, str]]:
    """The main figures, each as label, value and note; shares only if a scorer judges."""
    left_out = sum(summary.left_out.values())
    unanswered = summary.rows - summary.answered
    references = f", and {format_count(summary.kept_references, 'reference')}" if summary.kept_references else ""
    per_row = f"{format_number(summary.candidates / summary.answered)} per row" if summary.answered else ""
    of_rows = format_count(summary.rows - left_out, "row")
    figures = [
        ("Rows", f"{summary.rows:,}", f"{unanswered:,} without candidates" if unanswered else ""),
        ("Candidates", f"{summary.candidates:,}", per_row),
        ("Kept", f"{summary.kept - summary.kept_references:,}", f"from {of_rows}{references}"),
    ]
    shares = [
        ("Right", summary.right_share, "of the candidates"),
        ("Majority", summary.majority, "of the rows, one vote each"),
        ("Weighted majority", summary.weighted_majority, "of the rows, votes by score"),
    ]
    return figures + [(label, format_percent(share), note) for label, share, note in shares if share is not None]


def charts_of(summary: Summary, scorers: Sequence[Scorer]) -> list[Chart]:
    """pass@k and right candidates per row if a scorer judges, then the scores of each scorer."""
    charts = []
    if summary.pass_at:
        charts.append(_pass_at(summary.pass_at))
    if summary.right_counts:
        charts.append(Chart("Right per row", "rows by right candidates", "", _bars(_right(summary.right_counts))))
    scored = [scorer for scorer in scorers if scorer.name in summary.mean_scores]
    return charts + [_scores(each, summary.mean_scores[each.name], summary.score_bins[each.name]) for each in scored]


def _pass_at(shares: dict[int, float]) -> Chart:
    texts = {k: format_percent(share) for k, share in shares.items()}
    bars = [Bar(share, f"pass@{k}: {texts[k]}", texts[k], str(k)) for k, share in shares.items()]
    wide = len(bars) * len("100.0%") > _MAX_LABEL_CHARACTERS
    return Chart("pass@k", "one of k candidates is right", "", bars, wide=wide)


def _right(counts: dict[int, int]) -> list[tuple[str, str, int]]:
    """Rows by the number of right candidates, as label, text and count."""
    together = math.ceil(len(counts) / _MAX_BARS)
    bars = []
    for first in range(0, len(counts), together):
        last = min(first + together, len(counts)) - 1
        text = f"{first} right" if first == last else f"{first} to {last} right"
        bars.append((str(first), text, sum(counts[right] for right in range(first, last + 1))))
    return bars


def _scores(scorer: Scorer, mean: float, bins: Sequence[Bin]) -> Chart:
    note = f"{scorer.kind.upper()}, weight {format_number(scorer.weight)}"
    ends = None
    counts = [(format_number(each.low), format_number(each.low), each.count) for each in bins]
    if bins[0].low != bins[0].high:
        ends = format_number(bins[0].low), format_number(bins[-1].high)
        counts = [("", f"{format_number(each.low)} to {format_number(each.high)}", each.count) for each in bins]
    return Chart(scorer.name, note, format_number(mean), _bars(counts), ends)


def _bars(counts: Sequence[tuple[str, str, int]]) -> list[Bar]:
    """Bars from labels, texts and counts, with as many labels as there is room for, and the counts if all fit."""
    most = max(count for _, _, count in counts)
    every = math.ceil(len(counts) * max(len(label) for label, _, _ in counts) / _MAX_LABEL_CHARACTERS) or 1
    roomy = len(counts) * len(f"{most:,}") <= _MAX_LABEL_CHARACTERS
    return [
        Bar(
            count / most if most else 0.0,
            f"{text}: {count:,}",
            f"{count:,}" if roomy else "",
            label if place % every == 0 else "",
        )
        for place, (label, text, count) in enumerate(counts)
    ]


def tallies_of(summary: Summary) -> dict[str, dict[str, int]]:
    """The tables of counts by reason, by title; empty ones are left out."""
    tallies = {
        "Rows left out": summary.left_out,
        "Candidates not kept": summary.not_kept,
        "Candidates ended by": summary.finish_reasons,
    }
    return {title: counts for title, counts in tallies.items() if counts}
