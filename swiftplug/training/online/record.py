"""Every candidate that an online run has drawn, in a file of the run's folder."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise, zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any, BinaryIO, NamedTuple

from accelerate import Accelerator
from accelerate.utils import gather_object

from swiftplug.formatting import format_count
from swiftplug.plugin import Unscored
from swiftplug.runs.folder import atomic_path
from swiftplug.sampling.outputs import CANDIDATES, candidate_line, row_line
from swiftplug.sampling.rows import Candidate, Row, to_json


@dataclass
class DrawnCandidate(Candidate):
    """A candidate with the tokens that train.

    Attributes:
        prompt_ids: The tokens of its prompt.
        ids: Those behind them, what an environment answered too.
        drawn: Which of these the model drew.
        left_out: Which of these a loss scale weighs 0; empty if it is none.
        asked: The messages before each turn that the model wrote.
        opened: The end of the prompt, which the text of a turn begins with.
        logps: Their log-probabilities as the engine gives them; empty if it draws with the weights that train.
        token_rewards: Of each token, where the task rewards steps; else empty.
        reward: The weighted sum of its rewards; None if one is missing.
        advantage: What the estimator made of it, for several tokens their mean; None if it does not train.
        given: The reward that the environment gave it; None if it gave none.
    """

    prompt_ids: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    drawn: list[bool] = field(default_factory=list)
    left_out: list[bool] = field(default_factory=list)
    asked: list[Sequence[dict[str, Any]]] = field(default_factory=list)
    opened: str = ""
    logps: list[float] = field(default_factory=list)
    token_rewards: list[float] = field(default_factory=list)
    reward: float | None = None
    advantage: float | None = None
    given: float | Unscored | None = None

    def count_turns(self) -> int:
        """How many turns the model wrote."""
        return 1 + sum(drawn and not before for before, drawn in pairwise(self.drawn))

    @property
    def trains(self) -> list[bool]:
        """Which of `ids` train."""
        return [drawn and not out for drawn, out in zip_longest(self.drawn, self.left_out, fillvalue=False)]

    @property
    def answer_start(self) -> int:
        """Where in `ids` its last turn begins, which is its answer."""
        return next((place + 1 for place in range(len(self.ids) - 1, -1, -1) if not self.drawn[place]), 0)


def drawn_candidates(groups: Sequence[Row]) -> Iterator[DrawnCandidate]:
    """All candidates of some groups."""
    for group in groups:
        for candidate in group.candidates:
            assert isinstance(candidate, DrawnCandidate)
            yield candidate


@dataclass
class Lost:
    """What drawing has cost: candidates without a reward, prompts without candidates, and prompts replaced.

    Attributes:
        counts: Their numbers, by `candidate`, `prompt` and `replaced`.
        reasons: Of the first two, the first reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, reason: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        self.reasons.setdefault(kind, reason)

    def merge(self, other: "Lost") -> None:
        """Add the counts of another."""
        self.counts.update(other.counts)
        self.reasons = other.reasons | self.reasons

    def __str__(self) -> str:
        """All of it in one line; empty if nothing was lost."""
        endings = {"candidate": "without a reward", "prompt": "without candidates"}
        parts = [
            f"{format_count(self.counts[kind], kind)} {ending} ({self.reasons[kind]})"
            for kind, ending in endings.items()
            if self.counts[kind]
        ]
        if replaced := self.counts["replaced"]:
            parts.append(f"{format_count(replaced, 'prompt')} replaced, as all their rewards were equal")
        return ", ".join(parts)


class RecordedStep(NamedTuple):
    """Where the candidates of a step are in the file, in bytes, and the mean of their rewards, if any has one."""

    step: int
    start: int
    size: int
    reward: float | None


class CandidateRecord:
    """Appends the candidates of each drawing to `candidates.jsonl`, as `sample` writes them.

    A prompt at which the engine failed is a line too: without a candidate, with the reason as `failure`.

    Attributes:
        steps: The steps in the file, in order; none but in the first process.

    Args:
        run_dir: The run's folder.
        accelerator: The trainer's; the first process writes.
    """

    def __init__(self, run_dir: str, accelerator: Accelerator) -> None:
        self.path = Path(run_dir) / CANDIDATES
        self.is_main = accelerator.is_main_process
        self.steps: list[RecordedStep] = []

    def resume(self, step: int) -> None:
        """Keep what was drawn up to a step: what a killed run wrote after it is drawn again."""
        if not self.is_main:
            return
        self.steps = []
        with atomic_path(self.path) as kept, kept.open("wb") as file:
            if step and self.path.is_file():
                for _, lines in groupby(_lines_until(self.path, step), key=lambda line: line["step"]):
                    self._write(file, list(lines))

    def add(self, groups: Sequence[Row], step: int) -> None:
        """Append what all processes have drawn for a step, which is counted from 1."""
        own = [(group.position, [*_lines_of(group, step)]) for group in groups]
        everywhere: list[tuple[int, list[dict[str, Any]]]] = gather_object(own)
        if self.is_main:
            lines = [line for _, group in sorted(everywhere, key=lambda group: group[0]) for line in group]
            with self.path.open("ab") as file:
                self._write(file, lines)

    def _write(self, file: BinaryIO, lines: Sequence[dict[str, Any]]) -> None:
        """Write the lines of a step."""
        if not lines:
            return
        text = "".join(f"{to_json(line)}\n" for line in lines).encode()
        rewards = [line["reward"] for line in lines if line.get("reward") is not None]
        self.steps.append(RecordedStep(lines[0]["step"], file.tell(), len(text), fmean(rewards) if rewards else None))
        file.write(text)


def _lines_of(group: Row, step: int) -> Iterator[dict[str, Any]]:
    """The candidates to a prompt, or the one line that says why there are none."""
    if group.failure:
        yield {"step": step, **row_line(group), "failure": group.failure}
    for candidate in drawn_candidates([group]):
        yield {
            "step": step,
            **candidate_line(group, candidate),
            **({"turns": candidate.count_turns()} if candidate.turns else {}),
            "reward": candidate.reward,
            "advantage": candidate.advantage,
        }


def _lines_until(path: Path, step: int) -> Iterator[dict[str, Any]]:
    """The lines up to a step; the last one of a killed run may be broken."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                found = json.loads(line)
                if found["step"] > step:
                    return
            except (ValueError, KeyError):
                return
            yield found
