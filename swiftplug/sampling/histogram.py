"""How scores are spread: exact counts, in one pass, in memory that does not grow with the number of scores."""

import math
from collections import Counter
from dataclasses import dataclass

_MOST_COUNTED = 1024
"""How many distinct values or bins are counted apart; beyond it, bins become twice as wide."""

_MOST_VALUES = 12
"""Up to how many distinct values each is shown by itself."""

_MOST_BINS = 24


@dataclass(frozen=True)
class Bin:
    """How many scores lie in an interval.

    Attributes:
        low: Its lower edge, which belongs to it; or the one value it counts, where `high` is the same.
        high: Its upper edge, which belongs to the next bin, and to this one if it is the last.
        count: The number of scores in it.
    """

    low: float
    high: float
    count: int


class Histogram:
    """Counts scores, whose range nobody knows beforehand.

    Values are counted by themselves while there are few of them, else in bins. The width of a bin is a power of two and
    its edges are multiples of it, so that two neighbours make one bin of twice the width without looking at a value
    again: the counts are those of a second pass.

    Attributes:
        count: The number of scores added.

    Example:
        >>> histogram = Histogram()
        >>> for score in (1.0, 0.0, 1.0):
        ...     histogram.add(score)
        >>> histogram.bins()
        [Bin(low=0.0, high=0.0, count=1), Bin(low=1.0, high=1.0, count=2)]
    """

    def __init__(self) -> None:
        self.count = 0
        self._total = 0.0
        self._low, self._high = math.inf, -math.inf
        self._width = 0.0  # 0: each value is counted by itself
        self._counts: Counter[float] = Counter()

    def add(self, score: float) -> None:
        """Count a score, a finite number."""
        self.count += 1
        self._total += score
        self._low, self._high = min(self._low, score), max(self._high, score)
        self._counts[_edge(score, self._width)] += 1
        while len(self._counts) > _MOST_COUNTED:
            self._width = 2 * self._width or self._width_for(_MOST_COUNTED)
            self._counts = _rebinned(self._counts, self._width)

    @property
    def mean(self) -> float:
        """The mean of the scores; there must be one."""
        return self._total / self.count

    def bins(self) -> list[Bin]:
        """The counts from the lowest score to the highest: of at most 12 values, or of at most 24 bins of one width."""
        if not self._width and len(self._counts) <= _MOST_VALUES:
            return [Bin(value, value, count) for value, count in sorted(self._counts.items())]
        width = max(self._width, self._width_for(_MOST_BINS))
        first, last = self._places(width)
        while last - first >= _MOST_BINS:
            width *= 2
            first, last = self._places(width)
        counts = _rebinned(self._counts, width)
        bins = [Bin(place * width, (place + 1) * width, counts[place * width]) for place in range(first, last + 1)]
        if last * width == self._high:  # the highest score stands on its bin's lower edge: the bin below takes it in
            top = bins.pop()
            bins[-1] = Bin(bins[-1].low, bins[-1].high, bins[-1].count + top.count)
        return bins

    def _width_for(self, bins: int) -> float:
        """The least power of two of which that many bins span the scores."""
        return float(2.0 ** math.ceil(math.log2((self._high - self._low) / bins)))

    def _places(self, width: float) -> tuple[int, int]:
        """The numbers of the lowest and the highest bin of a width."""
        return math.floor(self._low / width), math.floor(self._high / width)


def _edge(score: float, width: float) -> float:
    """The lower edge of a score's bin; the score itself at width 0."""
    return math.floor(score / width) * width if width else score


def _rebinned(counts: Counter[float], width: float) -> Counter[float]:
    wider: Counter[float] = Counter()
    for score, count in counts.items():
        wider[_edge(score, width)] += count
    return wider
