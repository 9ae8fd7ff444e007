"""The work of a sampling run: batches of rows are answered and scored, and each result is in the ledger at once."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from swiftplug.config.sample_schema import SampleConfig
from swiftplug.data.chat.tools import write_turns
from swiftplug.data.read.conversation import Conversation, RowError, RowOrigin
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Answered, Completion, Prompt, Sampling
from swiftplug.sampling.arguments import SampleArguments
from swiftplug.sampling.ledger import NO_CANDIDATES, Ledger, StoredRow
from swiftplug.sampling.plugins import SamplePlugins
from swiftplug.sampling.records import REFERENCE
from swiftplug.sampling.rows import check_text
from swiftplug.sampling.scoring import score


class Pending(NamedTuple):
    """What there is to do.

    Attributes:
        rows: Rows that are not answered or not scored yet.
        to_answer: Those that are not answered yet.
    """

    rows: int
    to_answer: int


class Done(NamedTuple):
    """What was done since the last time: so many rows, with so many candidates."""

    rows: int
    candidates: int


class Answering:
    """Answers and scores the rows of a run that are not done yet.

    Batches are cut from the whole dataset, wherever a run was killed and whichever shard it is, and an engine whose
    results depend on what is sampled together gets a batch whole: so every run gets the same candidates.

    Args:
        config: The run's config.
        plugins: Its plugins.
        ledger: Holds its rows.
        positions: The rows that are this run's.
        sampling: How candidates are drawn.
    """

    def __init__(
        self, config: SampleConfig, plugins: SamplePlugins, ledger: Ledger, positions: range, sampling: Sampling
    ) -> None:
        self._config = config
        self._plugins = plugins
        self._ledger = ledger
        self._own = positions
        self._sampling = sampling
        self._engine = plugins.sampler
        self._is_open = False

    def pending(self) -> Pending:
        """How much there is to do."""
        to_answer = self._ledger.count(f"problem = '' AND {NO_CANDIDATES}", self._own)
        unscored = (
            "problem = '' AND EXISTS (SELECT 1 FROM candidates "
            "WHERE candidates.position = rows.position AND rewards IS NULL)"
        )
        return Pending(to_answer + self._ledger.count(unscored, self._own), to_answer)

    def open(self, args: SampleArguments) -> None:
        """Let the engine load its model.

        Raises:
            UserError: There is none, or no server.
        """
        self._is_open = True
        self._engine.open(args, self._sampling)

    def close(self) -> None:
        """Let the engine let go of what it took."""
        if self._is_open:
            self._engine.close()

    def run(self) -> Iterator[Done]:
        """Do all of it, batch by batch."""
        size = self._engine.prompts_at_once(self._sampling)
        total = self._ledger.count_rows()
        first = self._own.start // size * size
        for start in range(first, self._own.stop, size):
            batch = [row for row in self._ledger.rows(range(start, min(start + size, total))) if not row.problem]
            yield from self._answer(batch)
            yield from self._score(batch)

    def _answer(self, batch: list[StoredRow]) -> Iterator[Done]:
        """Let the engine answer the rows of a batch that have no candidates."""
        waiting = {row.id: row for row in batch if self._is_own(row) and not self._ledger.candidates(row.position)}
        if not waiting:
            return
        asked = batch if self._engine.together else list(waiting.values())
        prompts = [prompt for row in asked if (prompt := self._prompt(row)) is not None]
        for answered in self._engine.generate(prompts):
            row = waiting.pop(answered.id, None)
            if row is not None:
                kept = self._keep(row, answered)
                if not kept or not self._plugins.scorers:
                    yield Done(1, kept)
        forgotten = [row for row in waiting.values() if not self._failure_of(row)]
        if len(forgotten) < len(waiting):
            yield Done(len(waiting) - len(forgotten), 0)
        if forgotten:
            raise UserError(f"{self._plugins.engine.found} gave nothing for {forgotten[0].origin}")

    def _keep(self, row: StoredRow, answered: Answered) -> int:
        """Write what became of a row; returns how many candidates it got."""
        expected, found = self._sampling.num_return_sequences, len(answered.completions)
        if not answered.failure and found != expected:
            raise UserError(
                f"{self._plugins.engine.found} returned {found} candidates for {row.origin}; expected {expected}"
            )
        completions = list(answered.completions)
        failure = answered.failure or self._unreadable(completions)
        if self._config.include_reference and row.reference is not None:
            completions.append(Completion(str(row.reference), REFERENCE))
        with self._ledger.transaction():
            if failure:
                self._ledger.set_failure(row.position, failure)
            else:
                self._ledger.add_candidates(row.position, completions)
        return 0 if failure else len(completions)

    def _unreadable(self, completions: Sequence[Completion]) -> str:
        """Why what an engine returned cannot be kept; empty if it can."""
        for completion in completions:
            for given in (completion.text, completion.finish_reason):
                if not isinstance(given, str):
                    raise UserError(f"{self._plugins.engine.found} returned {given!r:.60}; expected a text")
        try:
            check_text([completion.text for completion in completions])
        except RowError as error:
            return f"{error.reason} ({error.detail})"
        return ""

    def _prompt(self, row: StoredRow) -> Prompt | None:
        """A row's prompt, its tools written by the tools format; None where that fails, which is noted."""
        source, _, line = row.origin.rpartition(":")
        try:
            turns = write_turns(
                Conversation(row.prompt, RowOrigin(source, int(line)), row.tools), self._plugins.tools.bound
            )
        except RowError as error:
            if self._is_own(row):
                self._ledger.set_failure(row.position, f"{error.reason} ({error.detail})")
            return None
        return Prompt(row.id, turns.messages, turns.tools)

    def _failure_of(self, row: StoredRow) -> str:
        (now,) = self._ledger.rows(range(row.position, row.position + 1))
        return now.failure

    def _score(self, batch: list[StoredRow]) -> Iterator[Done]:
        """Let the scorers score the rows of a batch that have a candidate which is not scored yet."""
        own = [(row, self._ledger.candidates(row.position)) for row in batch if self._is_own(row)]
        waiting = [pair for pair in own if any(it.rewards is None for it in pair[1])]
        if not waiting:
            return
        judged = score(
            [(row, it) for row, candidates in waiting for it in candidates],
            self._plugins.scorers,
            self._config.score_timeout,
        )
        with self._ledger.transaction():
            for it in judged:
                self._ledger.set_rewards(it.row.position, it.candidate.number, it.rewards, it.unscored)
        if self._plugins.scorers:
            yield Done(len(waiting), len(judged))

    def _is_own(self, row: StoredRow) -> bool:
        return row.position in self._own
