"""The loop of a sampling run: batches are generated, scored, and written into the ledger immediately."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from swiftplug.config.schema import SampleConfig
from swiftplug.data.read.conversation import RowError
from swiftplug.data.read.report import UnreadKeys
from swiftplug.plugin.engine import Prompt
from swiftplug.plugin.tools_format import ToolsFormat
from swiftplug.runs.console import Activity, RunProgress
from swiftplug.sampling.intake import count_unrendered
from swiftplug.sampling.judging import check_judge
from swiftplug.sampling.ledger import NO_CANDIDATES, UNSCORED, USABLE, Ledger
from swiftplug.sampling.rows import Row
from swiftplug.sampling.scoring import Scorer
from swiftplug.sampling.worker import Batch, Executor, Worker, reset_unscored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SampleLoop:
    """Generates the candidates that a run does not have yet, and scores those that are not scored.

    Batches always start at the same rows of the whole dataset, also after --resume and in a shard, and an engine whose
    results depend on the batch (`Engine.together`) always gets all of it: so every run gets the same candidates.

    Attributes:
        to_generate: The number of rows without candidates.
        pending: The number of rows without candidates or with unscored ones.
        rows: The number of all usable rows.
    """

    def __init__(self, config: SampleConfig, worker: Worker, scorers: Sequence[Scorer], ledger: Ledger) -> None:
        self._config = config
        self._worker = worker
        self._tools_format: ToolsFormat | None = worker.plugins.one("tools").bound
        self._scorers = scorers
        self._ledger = ledger
        self._registry = worker.plugins.registry
        self._proven: list[Scorer] = []
        self._own = config.shard_rows(ledger.count_rows())
        self.to_generate = ledger.count(f"{USABLE} AND {NO_CANDIDATES}", self._own)
        self.pending = self._count_pending()
        self.rows = ledger.count(USABLE, self._own)

    def count_done(self) -> int:
        """The number of usable rows that are sampled and scored by now."""
        return self.rows - self._count_pending()

    def _count_pending(self) -> int:
        return self._ledger.count(f"{USABLE} AND ({NO_CANDIDATES} OR {UNSCORED})", self._own)

    def unread_lines(self, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
        """What the tokenizer's chat template does not read of the prompts, besides the keys that nothing reads."""
        from swiftplug.data.chat.render import ChatRenderer  # imports transformers, which not every engine does

        renderer = ChatRenderer(tokenizer, self._tools_format)
        unread = UnreadKeys()
        for row in self._ledger.rows(self._own):
            if not row.problem:
                count_unrendered(row, renderer, unread)
        return unread.lines()

    def run(self, progress: RunProgress, executor: Executor) -> None:
        """Generate and score everything that is pending, batch by batch, where the executor has that done."""
        with progress.start("sampling" if self.to_generate else "scoring", "row", self.pending) as activity:
            for done in executor.run(self._batches(activity)):
                answered = set()
                for row in done.answered:
                    self._record(row, activity)
                    answered.add(row.position)
                if done.error is not None:
                    raise done.error
                self._score([row for row in done.rows if row.candidates], progress)
                before = [row for row in done.rows if row.position not in answered]
                activity.advance(len(before), candidate=sum(len(row.candidates) for row in before))

    def _batches(self, activity: Activity) -> Iterator[Batch]:
        """The batches in which something is pending."""
        size = self._worker.engine.prompts_at_once(self._worker.sampling)
        for start in range(self._own.start // size * size, self._own.stop, size):
            rows = [row for row in self._ledger.rows(range(start, start + size)) if not row.problem]
            own = [row for row in rows if row.position in self._own]
            pending = [row for row in own if not row.candidates or any(each.rewards is None for each in row.candidates)]
            waiting = [row for row in pending if not row.candidates]
            prompts: list[Prompt] = []
            for row in (rows if self._worker.engine.together else waiting) if waiting else []:
                try:
                    prompts.append(row.as_prompt(self._tools_format))
                except RowError as error:
                    if row in waiting:
                        row.failure = str(error)
                        self._record(row, activity)
                        pending.remove(row)
            if pending:
                yield Batch(pending, prompts)

    def _record(self, row: Row, activity: Activity) -> None:
        """Write the candidates of a row, or why there are none."""
        with self._ledger.transaction():
            self._ledger.set_failure(row)
            self._ledger.add_candidates(row.position, row.candidates)
        activity.advance(1, candidate=len(row.candidates))

    def _score(self, rows: list[Row], progress: RunProgress) -> None:
        """Write the rewards of rows; those that have an unscored candidate are scored here."""
        unscored = reset_unscored(rows)
        for scorer in self._scorers:
            if unscored:
                with progress.start(f"scoring with {scorer.name}"):
                    scorer.score(unscored, self._config.score_timeout)
            if rows and self._config.candidates_file is None and scorer not in self._proven:
                self._prove(scorer, rows)
        with self._ledger.transaction():
            for row in rows:
                self._ledger.set_rewards(row)

    def _prove(self, scorer: Scorer, batch: list[Row]) -> None:
        """Stop if an ORM finds all candidates of its first batch wrong, and all references too."""
        rewards = [(candidate.rewards or {}).get(scorer.name) for row in batch for candidate in row.candidates]
        least = scorer.bound.right_from
        if least is not None and not any(isinstance(each, float) and each >= least for each in rewards):
            check_judge(scorer, batch, self._registry, self._config.score_timeout)
        self._proven.append(scorer)
