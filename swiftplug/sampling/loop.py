"""The loop of a sampling run: batches of rows are answered and scored, and each result is in the ledger at once."""

from collections.abc import Sequence

from swiftplug.config.schema import SampleConfig
from swiftplug.data.chat.tools import write_turns
from swiftplug.data.read.conversation import RowError
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Answered, Completion, Engine, Prompt, Sampling
from swiftplug.plugin.tools_format import ToolsFormat
from swiftplug.runs.plugins import RunPlugins
from swiftplug.sampling.console import SampleProgress
from swiftplug.sampling.ledger import NO_CANDIDATES, UNSCORED, USABLE, Ledger
from swiftplug.sampling.rows import Candidate, Row, check_encodable, reference_candidate
from swiftplug.sampling.scoring import Scorer


class SampleLoop:
    """Answers and scores the rows of a run that are not done yet.

    Batches are cut from the whole dataset, wherever a run was killed and whichever shard it is, and an engine whose
    results depend on what is sampled together always gets a whole batch: so every run gets the same candidates.

    Args:
        config: The run's config.
        plugins: Its plugins; the engine must be open before rows are answered.
        scorers: Its ORMs and PRMs.
        ledger: Holds its rows.
        sampling: How candidates are sampled.

    Attributes:
        unanswered: The number of rows without candidates.
        pending: The number of rows without candidates, or with candidates that are not scored.
    """

    def __init__(
        self, config: SampleConfig, plugins: RunPlugins, scorers: Sequence[Scorer], ledger: Ledger, sampling: Sampling
    ) -> None:
        self._config = config
        self._engine_plugin = plugins.one("engine")
        self._engine: Engine = self._engine_plugin.bound
        self._tools_format: ToolsFormat | None = plugins.one("tools").bound
        self._scorers = scorers
        self._ledger = ledger
        self._sampling = sampling
        self._own = config.shard_rows(ledger.count_rows())
        self.unanswered = ledger.count(f"{USABLE} AND {NO_CANDIDATES}", self._own)
        self.pending = self.unanswered + ledger.count(f"{USABLE} AND {UNSCORED}", self._own)

    def run(self, progress: SampleProgress) -> None:
        """Answer and score everything that is pending, batch by batch."""
        size = self._engine.prompts_at_once(self._sampling)
        for start in range(self._own.start // size * size, self._own.stop, size):
            batch = [row for row in self._ledger.rows(range(start, start + size)) if not row.problem]
            self._answer(batch, progress)
            self._score(batch, progress)

    def _answer(self, batch: list[Row], progress: SampleProgress) -> None:
        """Let the engine answer the rows of a batch that have no candidates."""
        waiting = {row.id: row for row in batch if row.position in self._own and not row.candidates}
        if not waiting:
            return
        prompts = []
        for row in batch if self._engine.together else list(waiting.values()):
            try:
                turns = write_turns(row.as_conversation(), self._tools_format)
            except RowError as error:
                if waiting.pop(row.id, None):
                    self._record(row, Answered(row.id, failure=str(error)), progress)
            else:
                prompts.append(Prompt(row.id, turns.messages, turns.tools))
        for answered in self._engine.generate(prompts):
            if answered.id in waiting:
                self._record(waiting.pop(answered.id), answered, progress)
        if waiting:
            forgotten = next(iter(waiting.values()))
            raise UserError(f"{self._engine_plugin.found} returned no result for {forgotten.origin}")

    def _record(self, row: Row, answered: Answered, progress: SampleProgress) -> None:
        """Write the candidates of a row, or why there are none."""
        expected, found = self._sampling.num_return_sequences, len(answered.completions)
        if not answered.failure and found != expected:
            raise UserError(
                f"{self._engine_plugin.found} returned {found} candidates for {row.origin}; expected {expected}"
            )
        row.failure = answered.failure or self._check_texts(answered.completions)
        if not row.failure:
            row.candidates = [Candidate(i, it.text, it.finish_reason) for i, it in enumerate(answered.completions)]
            if self._config.include_reference and row.reference is not None:
                row.candidates.append(reference_candidate(row, len(row.candidates)))
        with self._ledger.transaction():
            self._ledger.set_failure(row)
            self._ledger.add_candidates(row.position, row.candidates)
        if row.failure or not self._scorers:
            progress.count(1, len(row.candidates))

    def _check_texts(self, completions: Sequence[Completion]) -> str:
        """Why what an engine returned cannot be kept; empty if it can."""
        for completion in completions:
            for value in (completion.text, completion.finish_reason):
                if not isinstance(value, str):
                    raise UserError(f"{self._engine_plugin.found} returned {value!r:.60}; expected text")
        try:
            check_encodable([completion.text for completion in completions])
        except RowError as error:
            return str(error)
        return ""

    def _score(self, batch: list[Row], progress: SampleProgress) -> None:
        """Let the scorers score the rows of a batch that have a candidate which is not scored yet."""
        waiting = [
            row for row in batch if row.position in self._own and any(it.rewards is None for it in row.candidates)
        ]
        if not waiting:
            return
        for candidate in (candidate for row in waiting for candidate in row.candidates):
            candidate.rewards, candidate.unscored = {}, {}
        for scorer in self._scorers:
            scorer.score(waiting, self._config.score_timeout)
        with self._ledger.transaction():
            for row in waiting:
                self._ledger.set_rewards(row)
        if self._scorers:
            progress.count(len(waiting), sum(len(row.candidates) for row in waiting))
