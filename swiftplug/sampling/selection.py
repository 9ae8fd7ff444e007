"""Which candidates of a row are kept, and why the others are not.

    score = sum of weight x reward over the scorers / sum of weights        (a PRM's steps first become one reward)

Candidates are ranked by score, and those of equal score by their index. A candidate is right when the ORMs that judge
it right have more than half of the weight of all that judge. Where anything judges, only right ones are kept.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Literal

from swiftplug.config.schema import SampleConfig
from swiftplug.sampling.rows import Candidate, Reward, Row, is_cut_off
from swiftplug.sampling.scoring import Scorer

CUT_OFF = "cut off at the token limit"
FILTERED = "cut off by a content filter"
_BELOW_THRESHOLD = "below the PRM threshold"


class Selection:
    """Judges the candidates of a row by their rewards, and selects the best.

    From the config it uses `n_best_to_keep`, `prm_threshold`, `prm_reduce`, `easy_query_threshold` and `keep_cut_off`:
    an answer that was cut off would be trained with an end of turn in the middle of it.
    """

    def __init__(self, config: SampleConfig, scorers: Sequence[Scorer]) -> None:
        self._config = config
        self._weights = _weights(scorers)
        self._prm_weights = _weights(scorer for scorer in scorers if scorer.kind == "prm")
        self._right_from = {it.name: it.bound.right_from for it in scorers if it.bound.right_from is not None}
        judges = [scorer for scorer in scorers if scorer.name in self._right_from]
        self._judge_weights = _weights(judges)
        self._answer_of = next(
            (judge.bound.answer_of for judge in judges if judge.bound.needs_reference),
            lambda text: text.strip() or None,
        )

    def select(self, row: Row) -> None:
        """Judge the candidates of a row, and give each that is not kept the reasons."""
        for candidate in row.candidates:
            self._judge(candidate, row.problem)
        row.left_out = self._left_out(row.candidates) if row.candidates and not row.problem else ""
        kept: list[str] = []
        for candidate in sorted((each for each in row.candidates if not each.reasons), key=rank):
            if row.left_out:
                candidate.reasons.append(row.left_out)
            elif candidate.text.strip() in kept:
                candidate.reasons.append("same answer as a better one")
            elif len(kept) == self._config.n_best_to_keep:
                candidate.reasons.append(f"not among the best {self._config.n_best_to_keep}")
            else:
                kept.append(candidate.text.strip())

    def _judge(self, candidate: Candidate, problem: str) -> None:
        candidate.scores = {
            name: reduced(reward, self._config.prm_reduce) for name, reward in (candidate.rewards or {}).items()
        }
        candidate.answer = self._answer_of(candidate.text)
        reasons = [*([problem] if problem else []), *(f"{name}: {why}" for name, why in candidate.unscored.items())]
        if not reasons:  # existing candidates may belong to an unusable row
            candidate.score = _mean(self._weights, candidate.scores)
            candidate.right = self._is_right(candidate.scores)
            if candidate.right is False:
                reasons.append("wrong")
            threshold = self._config.prm_threshold
            if threshold is not None and _mean(self._prm_weights, candidate.scores) < threshold:
                reasons.append(_BELOW_THRESHOLD)
        if not candidate.text.strip():
            reasons.append("empty")
        if is_cut_off(candidate.finish_reason) and not self._config.keep_cut_off:
            reasons.append(CUT_OFF)
        if candidate.finish_reason.lower() == "content_filter":
            reasons.append(FILTERED)
        candidate.reasons = reasons

    def _is_right(self, scores: dict[str, float]) -> bool | None:
        if not self._right_from:
            return None
        right = sum(self._judge_weights[name] for name, least in self._right_from.items() if scores[name] >= least)
        return right > sum(self._judge_weights.values()) / 2

    def _left_out(self, candidates: Sequence[Candidate]) -> str:
        """Why no candidate of a row is kept; empty if one is."""
        judged = [candidate for candidate in candidates if candidate.right is not None]
        if judged and not any(candidate.right for candidate in judged):
            return "all wrong"
        sampled = [candidate.right for candidate in judged if candidate.sampled]
        threshold = self._config.easy_query_threshold
        if threshold is not None and sampled and sum(map(bool, sampled)) / len(sampled) > threshold:
            return "too easy"
        if all(candidate.reasons for candidate in candidates):
            given = {reason for candidate in candidates for reason in candidate.reasons}
            return next(
                (reason for reason in (_BELOW_THRESHOLD, CUT_OFF, FILTERED) if reason in given), "no candidate to keep"
            )
        return ""


def reduced(reward: Reward, how: Literal["min", "mean", "last", "prod"]) -> float:
    """The rewards of steps as one."""
    if not isinstance(reward, list):
        return reward
    match how:
        case "min":
            return min(reward)
        case "mean":
            return fmean(reward)
        case "last":
            return reward[-1]
        case "prod":
            return math.prod(reward)


def rejected_of(row: Row, kept: Candidate) -> Candidate | None:
    """The worst of the candidates that are worse than a kept one; a wrong one if any scorer judges."""
    worse = [
        each
        for each in row.candidates
        if each.score is not None
        and not {CUT_OFF, FILTERED}.intersection(each.reasons)
        and each.text.strip() not in ("", kept.text.strip())
        and (each.right is False or (each.right is None and kept.score is not None and each.score < kept.score))
    ]
    return min(worse, key=lambda each: (each.score, each.index), default=None)


def _weights(scorers: Iterable[Scorer]) -> dict[str, float]:
    """The weight of each scorer by name; equal weights if all are 0."""
    weights = {scorer.name: scorer.weight for scorer in scorers}
    return weights if any(weights.values()) else dict.fromkeys(weights, 1.0)


def _mean(weights: dict[str, float], scores: dict[str, float]) -> float:
    """The weighted mean of the scores; 0 without scorers."""
    weighted = math.fsum(weight * scores[name] for name, weight in weights.items())
    return weighted / math.fsum(weights.values()) if weights else 0.0


def rank(candidate: Candidate) -> tuple[float, int]:
    """The sort key that puts the best candidate first."""
    assert candidate.score is not None  # one without a score has a reason not to be kept
    return -candidate.score, candidate.index
