"""Which candidates of a row are kept, and why the others are not.

    score = sum of weight x reward over the scorers / sum of weights        (a PRM's steps first become one reward)

Candidates are ranked by score, and those of equal score by their index. A candidate is right when the ORMs that judge
it right have more than half of the weight of all that judge. Where anything judges, only right ones are kept.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from swiftplug.config.schema import SampleConfig
from swiftplug.sampling.rows import Candidate, Reward, Row
from swiftplug.sampling.scoring import Scorer

BELOW_THRESHOLD = "below the PRM threshold"


class Selection:
    """Judges the candidates of a row by their rewards, and chooses among them.

    Args:
        config: How: `n_best_to_keep`, `prm_threshold`, `prm_reduce`, `easy_query_threshold`.
        scorers: The ORMs and PRMs.
    """

    def __init__(self, config: SampleConfig, scorers: Sequence[Scorer]) -> None:
        self._config = config
        self._weights = _weights(scorers)
        self._prm_weights = _weights(it for it in scorers if it.kind == "prm")
        self._right_from = {it.name: it.right_from for it in scorers if it.right_from is not None}
        self._judge_weights = _weights(it for it in scorers if it.name in self._right_from)
        self._answer_of = next(
            (it.answer_of for it in scorers if it.name in self._right_from and it.needs_reference),
            lambda text: text.strip() or None,
        )

    def select(self, row: Row) -> None:
        """Judge the candidates of a row, and give each that is not kept its reasons."""
        for candidate in row.candidates:
            self._judge(candidate, row.problem)
        row.left_out = self._left_out(row.candidates) if row.candidates and not row.problem else ""
        kept: list[str] = []
        for candidate in sorted((it for it in row.candidates if not it.reasons), key=_rank):
            if row.left_out:
                candidate.reasons.append(row.left_out)
            elif candidate.text.strip() in kept:
                candidate.reasons.append("same answer as a better one")
            elif len(kept) == self._config.n_best_to_keep:
                candidate.reasons.append(f"not among the best {self._config.n_best_to_keep}")
            else:
                kept.append(candidate.text.strip())

    def _judge(self, candidate: Candidate, problem: str) -> None:
        candidate.scores = {name: self._reduce(reward) for name, reward in (candidate.rewards or {}).items()}
        candidate.answer = self._answer_of(candidate.text)
        reasons = [*([problem] if problem else []), *(f"{name}: {why}" for name, why in candidate.unscored.items())]
        if not reasons:  # existing candidates may be of a row that cannot be scored
            candidate.score = _mean(self._weights, candidate.scores)
            candidate.right = self._is_right(candidate.scores)
            if candidate.right is False:
                reasons.append("wrong")
            threshold = self._config.prm_threshold
            if threshold is not None and _mean(self._prm_weights, candidate.scores) < threshold:
                reasons.append(BELOW_THRESHOLD)
        if not candidate.text.strip():
            reasons.append("empty")
        candidate.reasons = reasons

    def _reduce(self, reward: Reward) -> float:
        if not isinstance(reward, list):
            return reward
        match self._config.prm_reduce:
            case "min":
                return min(reward)
            case "mean":
                return fmean(reward)
            case "last":
                return reward[-1]
            case "prod":
                return math.prod(reward)

    def _is_right(self, scores: dict[str, float]) -> bool | None:
        if not self._right_from:
            return None
        right = sum(self._judge_weights[name] for name, least in self._right_from.items() if scores[name] >= least)
        return right > sum(self._judge_weights.values()) / 2

    def _left_out(self, candidates: Sequence[Candidate]) -> str:
        """Why nothing of a row is kept; empty if something is."""
        judged = [it for it in candidates if it.right is not None]
        if judged and not any(it.right for it in judged):
            return "all wrong"
        sampled = [it.right for it in judged if it.sampled]
        threshold = self._config.easy_query_threshold
        if threshold is not None and sampled and sum(map(bool, sampled)) / len(sampled) > threshold:
            return "too easy"
        if all(it.reasons for it in candidates):
            below = any(BELOW_THRESHOLD in it.reasons for it in candidates)
            return BELOW_THRESHOLD if below else "no candidate to keep"
        return ""


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


def _weights(scorers: Iterable[Scorer]) -> dict[str, float]:
    """The weight of each scorer by its name; scorers that all have weight 0 count alike."""
    weights = {scorer.name: scorer.weight for scorer in scorers}
    return weights if any(weights.values()) else dict.fromkeys(weights, 1.0)


def _mean(weights: dict[str, float], scores: dict[str, float]) -> float:
    """The mean of the scores by weight; 0 where there is no scorer."""
    weighted = math.fsum(weight * scores[name] for name, weight in weights.items())
    return weighted / math.fsum(weights.values()) if weights else 0.0


def _rank(candidate: Candidate) -> tuple[float, int]:
    assert candidate.score is not None  # one without a score has a reason not to be kept
    return -candidate.score, candidate.index
