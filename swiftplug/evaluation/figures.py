"""The figures of evaluated models: means over rows with their standard errors, and how two models differ."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from swiftplug.training.page.curves import is_better_lower

_NEITHER = ("cut_off", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "logits")


class Figure(NamedTuple):
    """A figure of a model.

    Attributes:
        value: The figure.
        by_row: What it is the mean of, by the id of the row; empty if it is not known row by row.
    """

    value: float
    by_row: Mapping[str, float]

    @classmethod
    def mean(cls, by_row: Mapping[str, float]) -> "Figure":
        """The mean over rows."""
        return cls(fmean(by_row.values()), by_row)

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None if it is not known.

        Rows are taken as drawn independently, and candidates of one row are not: so it is that of the rows' means.
        """
        return standard_error([*self.by_row.values()])


class Difference(NamedTuple):
    """How a figure of a model differs from that of another.

    Attributes:
        value: What it is more.
        error: The standard error of that; None if it is not known.
    """

    value: float
    error: float | None


def difference(figure: Figure, other: Figure) -> Difference:
    """How a figure differs from another's; row by row where both models have answered the same rows.

    Differences of pairs have a smaller error than two means have: what is hard for one model mostly is for the other
    (Miller, 2024, arXiv 2411.00640, section 4).
    """
    common = [row for row in figure.by_row if row in other.by_row]
    if not common:
        return Difference(figure.value - other.value, None)
    pairs = [figure.by_row[row] - other.by_row[row] for row in common]
    return Difference(fmean(pairs), standard_error(pairs))


def standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the mean of independent values, of which there must be two; None if there are fewer.

    Example:
        >>> standard_error([0.0, 1.0, 1.0, 0.0])
        0.28867513459481287
    """
    if len(values) < 2:
        return None
    mean = fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def best(name: str, values: Sequence[float | None]) -> float | None:
    """The best of several models' values of a figure; None if there is none, as all are equal, or none is better.

    As for the callback `early_stop`, lower is better for losses and perplexities (and other errors), else higher.
    """
    known = [value for value in values if value is not None and not math.isnan(value)]
    if len({*known}) < 2 or name.startswith(_NEITHER):
        return None
    return min(known) if is_better_lower(name, {}) else max(known)
