"""The log of a training as curves: over steps, tokens or time, thinned so that a page of any run stays light."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

LOG = "log.jsonl"
TOKENS_PER_SECOND = "tokens_per_second"

# What Trainer logs besides losses, learning rates and metrics.
BOOKKEEPING = {
    "epoch",
    "total_flos",
    "num_input_tokens_seen",
    "grad_norm",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_tokens_per_second",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "eval_model_preparation_time",
}

# What tasks log that helps only in curves.
DETAILS = {"rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "nll_loss"}

# What runs that draw log besides rewards and pass@k, of which neither less nor more is better.
OF_DRAWING = {"length", "teaching_groups", "cut_off", "missing_rewards", "entropy", "clipped", "kl"}

SECONDS = "seconds/"
"""Begins the names under which a run that draws logs how long what it did took, since the log before."""

_NO_CURVE = {*BOOKKEEPING, "step", "train_loss"} - {"grad_norm"}
_LAST = ("learning_rate", "grad_norm", TOKENS_PER_SECOND)  # the charts behind those of what was measured
_BETTER_LOWER = ("loss", "perplexity", "mse", "mae")  # "rmse" ends so too

_MAX_POINTS = 1500
"""Number of points of a curve at most."""

_SMOOTHED_FROM = 40
"""Number of points from which a curve is smoothed."""


class Evaluation(NamedTuple):
    """An evaluation: when it was, and what it gave, without `eval_`."""

    step: int
    epoch: float
    values: dict[str, float]


@dataclass(frozen=True)
class History:
    """What a run has logged.

    Attributes:
        entries: Dictionaries with `step` and what was logged at it, as in Trainer's `log_history` and `log.jsonl`.
        resumed_at: The steps from which the run was resumed.
        problems: What of the file is no such entry.
    """

    entries: Sequence[Mapping[str, Any]]
    resumed_at: Sequence[int] = ()
    problems: Sequence[str] = ()

    @classmethod
    def read(cls, path: Path, resumed_at: Sequence[int] = ()) -> "History":
        """Read `log.jsonl`; a last line that is still being written is left out, and a broken one is a problem."""
        entries, problems = [], []
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for number, line in enumerate(text.split("\n")[:-1], 1):
            try:
                entry = json.loads(line)
                entries.append({**entry, "step": int(entry["step"])})
            except (ValueError, TypeError, KeyError):
                problems.append(f"{path}:{number}: is no entry of a log, and is left out")
        return cls(entries, resumed_at, problems)

    def last(self, name: str) -> float | None:
        """The value that was logged last under a name; None if there is none."""
        return next((float(entry[name]) for entry in reversed(self.entries) if _is_number(entry.get(name))), None)

    def points(self, name: str) -> list[tuple[int, float]]:
        """The steps and values of what was logged under a name."""
        return [(entry["step"], float(entry[name])) for entry in self.entries if _is_number(entry.get(name))]

    def names(self) -> list[str]:
        """What has a curve, in the order in which pages show it."""
        logged = dict.fromkeys(name for entry in self.entries for name, value in entry.items() if _is_number(value))
        names = [name for name in logged if name not in _NO_CURVE and not name.startswith(SECONDS)]
        if self.rates() and TOKENS_PER_SECOND not in names:
            names.append(TOKENS_PER_SECOND)
        if "reward" in logged:
            names = [name for name in names if not self._says_nothing(name)]
        return in_order(names)

    def _says_nothing(self, name: str) -> bool:
        """Whether a value of a run that draws is the reward itself, that of its only scorer, or never other than 0."""
        before, scorer, _ = name.partition("rewards/")
        if scorer:
            return self.points(name) == self.points(f"{before}reward")
        return name.removeprefix("eval_") in OF_DRAWING and not any(value for _, value in self.points(name))

    def ends(self, name: str) -> tuple[float, float] | None:
        """The means of the first and of the last tenth of the values under a name; None unless there are two."""
        values = [value for _, value in self.points(name)]
        count = math.ceil(len(values) / 10)
        return (fmean(values[:count]), fmean(values[-count:])) if len(values) > 1 else None

    def evaluations(self) -> list[Evaluation]:
        """The evaluations, one for each step at which there was any."""
        by_step: dict[int, Evaluation] = {}
        for entry in self.entries:
            values = {
                name.removeprefix("eval_"): float(value)
                for name, value in entry.items()
                if name.startswith("eval_") and name not in BOOKKEEPING and _is_number(value)
            }
            if values:
                step, epoch = entry["step"], float(entry.get("epoch") or 0)
                before = by_step[step].values if step in by_step else {}
                by_step[step] = Evaluation(step, epoch, {**before, **values})
        return [*by_step.values()]

    def clock(self) -> dict[str, list[float]]:
        """Tokens and time at some steps, as the script of a page reads them, which interpolates."""
        moments: list[_Moment] = []
        for moment in self._moments():
            if not moments or moment.step > moments[-1].step:
                moments.append(moment)
        stride = math.ceil(len(moments) / _MAX_POINTS) or 1
        kept = [each for place, each in enumerate(moments) if place % stride == 0 or each is moments[-1]]
        return {
            "steps": [each.step for each in kept],
            "tokens": [each.tokens for each in kept],
            "seconds": [round(each.seconds, 3) for each in kept],
        }

    @property
    def seconds(self) -> float | None:
        """The time of training and evaluation, over all parts of the run; None if none was logged."""
        return max((moment.seconds for moment in self._moments()), default=None)

    @property
    def speed(self) -> float | None:
        """Tokens per second of training, over all parts of the run; None if it is not known."""
        trained = [*self._trained()]
        tokens, seconds = sum(each for _, each, _ in trained), sum(each for _, _, each in trained)
        return tokens / seconds if tokens and seconds > 0 else None

    def rates(self) -> list[tuple[int, float]]:
        """The steps and the tokens per second of training since the log before each."""
        logged = self.points(TOKENS_PER_SECOND)
        return logged or [
            (step, tokens / seconds) for step, tokens, seconds in self._trained() if tokens and seconds > 0
        ]

    def _trained(self) -> Iterator[tuple[int, int, float]]:
        """Of each log its step, and the tokens and the time of training since the log before, without evaluations.

        The first log after a resume is left out: what was done before it, and when, is not known.
        """
        before = _Moment(0, 0, 0.0, 0.0, 0)
        for moment in self._moments():
            if moment.part == before.part:
                seconds = moment.seconds - before.seconds - moment.evaluated
                yield moment.step, moment.tokens - before.tokens, seconds
            before = moment

    def _moments(self) -> Iterator["_Moment"]:
        """Each log that has its time."""
        earlier = now = evaluated = 0.0
        step = part = 0
        for entry in self.entries:
            if _is_number(entry.get("eval_runtime")):
                evaluated += entry["eval_runtime"]
            if not (_is_number(entry.get("train_runtime")) and _is_number(entry.get("num_input_tokens_seen"))):
                continue
            resumed = any(step <= place < entry["step"] for place in self.resumed_at)
            if resumed or entry["train_runtime"] < now:  # the clock of a resumed run starts anew
                earlier, evaluated, part = earlier + now, 0.0, part + 1
            now, step = entry["train_runtime"], entry["step"]
            yield _Moment(step, entry["num_input_tokens_seen"], earlier + now, evaluated, part)
            evaluated = 0.0


class _Moment(NamedTuple):
    """When a step was logged: `seconds` since the start over all parts, of which evaluations took `evaluated`."""

    step: int
    tokens: int
    seconds: float
    evaluated: float
    part: int


def is_better_lower(name: str, training: Mapping[str, Any]) -> bool:
    """Whether less of a metric is better; unless the config says it, its name tells, as for `early_stop`."""
    chosen = str(training.get("metric_for_best_model", "")).removeprefix("eval_")
    higher = training.get("greater_is_better") if chosen == name else None
    return name.endswith(_BETTER_LOWER) if higher is None else not higher


def best_of(evaluations: Iterable[Evaluation], name: str, training: Mapping[str, Any]) -> Evaluation | None:
    """The evaluation that is best by one of its values; None if none has it, or if less or more of it is not better.

    Args:
        evaluations: The evaluations of a run.
        name: The value, without `eval_`.
        training: The `training` section of the config, which may say whether more of it is better.
    """
    evaluations = [*evaluations]
    if name in DETAILS or (name in OF_DRAWING and any("reward" in each.values for each in evaluations)):
        return None
    having = [each for each in evaluations if math.isfinite(each.values.get(name, math.nan))]
    best = min if is_better_lower(name, training) else max
    return best(having, key=lambda each: each.values[name], default=None)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of curves, each once, in the order in which pages show them: losses, what was measured, then `_LAST`.

    Of runs that draw, first the rewards and the shares of solved prompts, and the loss, which says little, behind.
    """
    names = list(dict.fromkeys(names))
    first, last = ["loss", "eval_loss"], [*_LAST]
    if "reward" in names:
        scorers = [name for name in names if name.startswith(("rewards/", "eval_rewards/"))]
        first = ["reward", "eval_reward", *scorers, *(name for name in names if name.startswith("eval_pass@"))]
        last = ["loss", *_LAST]
    order = {name: place for place, name in enumerate((*first, "", *last))}
    return sorted(names, key=lambda name: order.get(name, len(first)))


def curve(history: History, name: str, label: str, color: int, *, run: int = 0) -> dict[str, Any]:
    """A curve as the script of a page draws it: thinned, and smoothed if it has many points and is no schedule.

    Evaluations are drawn with their points, and not smoothed, as they are few and far between.

    Args:
        history: What the run has logged.
        name: The name of the values in it.
        label: What it is called in the legend.
        color: The number of its colour.
        run: The number of its run, whose clock it goes by.
    """
    points = history.rates() if name == TOKENS_PER_SECOND else history.points(name)
    dots = name.startswith("eval_")
    values = [value for _, value in points]
    places = thin(values)
    smooth = smoothed(values) if len(values) >= _SMOOTHED_FROM and not dots and name != "learning_rate" else []
    return {
        "label": label,
        "color": color,
        "run": run,
        "dots": dots,
        "x": [points[place][0] for place in places],
        "y": [_rounded(values[place]) for place in places],
        "smooth": [_rounded(smooth[place]) for place in places] if smooth else None,
    }


def thin(values: Sequence[float], limit: int = _MAX_POINTS) -> list[int]:
    """The places of so many values at most that a curve of them looks like that of all.

    Of each stretch the lowest and the highest are kept, so that no spike is lost; so are the first and the last of all.
    """
    if len(values) <= limit:
        return [*range(len(values))]
    stretches = (limit - 2) // 2
    kept = {0, len(values) - 1}
    for stretch in range(stretches):
        places = range(stretch * len(values) // stretches, (stretch + 1) * len(values) // stretches)
        finite = [place for place in places if math.isfinite(values[place])] or [*places]
        kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
    return sorted(kept)


def span_of(count: int) -> int:
    """Number of values over which about a curve of so many is smoothed."""
    return max(5, count // 40)


def smoothed(values: Sequence[float]) -> list[float]:
    """The exponential moving average over `span_of` values; values that are not finite do not count.

    Its weights are divided by their sum, as in `ewm(span=..., ignore_na=True).mean()` of pandas.
    """
    decay = 1 - 2 / (span_of(len(values)) + 1)
    total = weight = 0.0
    result = []
    for value in values:
        if math.isfinite(value):
            total, weight = total * decay + value, weight * decay + 1
        result.append(total / weight if weight else math.nan)
    return result


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
