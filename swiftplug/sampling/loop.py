"""The loop of a sampling run: batches are generated, scored, and written into the ledger immediately."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from swiftplug.config.schema import SampleConfig
from swiftplug.data.read.conversation import RowError
from swiftplug.data.read.report import UnreadKeys
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Answered, Engine, Prompt, Sampling
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.tools_format import ToolsFormat
from swiftplug.runs.console import Activity, RunProgress
from swiftplug.runs.plugins import RunPlugins
from swiftplug.sampling.intake import count_unrendered
from swiftplug.sampling.judging import check_judge
from swiftplug.sampling.ledger import NO_CANDIDATES, UNSCORED, USABLE, Ledger
from swiftplug.sampling.rows import Candidate, Row, check_encodable, reference_candidate
from swiftplug.sampling.scoring import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SampleLoop:
    """Generates the candidates that a run does not have yet, and scores those that are not scored.

    Batches always start at the same rows of the whole dataset, also after --resume and in a shard, and an engine whose
    results depend on the batch (`Engine.together`) always gets all of it: so every run gets the same candidates.

    Attributes:
        engine: The engine; it must be open before `run` generates candidates.
        sampling: How candidates are sampled.
        to_generate: The number of rows without candidates.
        pending: The number of rows without candidates or with unscored ones.
        rows: The number of all usable rows.
    """

    def __init__(self, config: SampleConfig, plugins: RunPlugins, scorers: Sequence[Scorer], ledger: Ledger) -> None:
        self._config = config
        self._engine_plugin = plugins.one("engine")
        self.engine: Engine = self._engine_plugin.bound
        self.sampling = Sampling(**{name: getattr(config, name) for name in Sampling._fields})
        self._tools_format: ToolsFormat | None = plugins.one("tools").bound
        self._scorers = scorers
        self._ledger = ledger
        self._registry = plugins.registry
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

    def run(self, progress: RunProgress) -> None:
        """Generate and score everything that is pending, batch by batch."""
        size = self.engine.prompts_at_once(self.sampling)
        with progress.start("sampling" if self.to_generate else "scoring", "row", self.pending) as activity:
            for start in range(self._own.start // size * size, self._own.stop, size):
                batch = [row for row in self._ledger.rows(range(start, start + size)) if not row.problem]
                unscored = self._unscored(batch)
                self._generate(batch, activity)
                self._score(batch, progress)
                activity.advance(len(unscored), candidate=sum(len(row.candidates) for row in unscored))

    def _generate(self, batch: list[Row], activity: Activity) -> None:
        """Generate candidates for the rows of a batch that have none."""
        waiting = {row.id: row for row in batch if row.position in self._own and not row.candidates}
        if not waiting:
            return
        prompts: list[Prompt] = []
        for row in batch if self.engine.together else list(waiting.values()):
            try:
                prompts.append(row.as_prompt(self._tools_format))
            except RowError as error:
                if waiting.pop(row.id, None):
                    self._record(row, Answered(row.id, failure=str(error)), activity)
        for answered in self.engine.generate(prompts):
            if answered.id in waiting:
                self._record(waiting.pop(answered.id), answered, activity)
        if waiting:
            first = next(iter(waiting.values()))
            raise UserError(f"{self._engine_plugin.found} returned no result for {first.origin}")

    def _record(self, row: Row, answered: Answered, activity: Activity) -> None:
        """Write the candidates of a row, or why there are none."""
        row.failure = failure_of(answered, row, self.sampling.num_return_sequences, self._engine_plugin)
        if not row.failure:
            row.candidates = [
                Candidate(index, completion.text, completion.finish_reason)
                for index, completion in enumerate(answered.completions)
            ]
            if self._config.include_reference and row.reference is not None:
                row.candidates.append(reference_candidate(row, len(row.candidates)))
        with self._ledger.transaction():
            self._ledger.set_failure(row)
            self._ledger.add_candidates(row.position, row.candidates)
        activity.advance(1, candidate=len(row.candidates))

    def _score(self, batch: list[Row], progress: RunProgress) -> None:
        """Score all candidates of the rows of a batch that have an unscored one."""
        waiting = self._unscored(batch)
        if not waiting:
            return
        for row in waiting:
            for candidate in row.candidates:
                candidate.rewards, candidate.unscored = {}, {}
        for scorer in self._scorers:
            with progress.start(f"scoring with {scorer.name}"):
                scorer.score(waiting, self._config.score_timeout)
                if self._config.candidates_file is None and scorer not in self._proven:
                    self._prove(scorer, waiting)
        with self._ledger.transaction():
            for row in waiting:
                self._ledger.set_rewards(row)

    def _unscored(self, batch: list[Row]) -> list[Row]:
        """The rows of a batch that have an unscored candidate."""
        own = [row for row in batch if row.position in self._own]
        return [row for row in own if any(candidate.rewards is None for candidate in row.candidates)]

    def _prove(self, scorer: Scorer, batch: list[Row]) -> None:
        """Stop if an ORM finds all candidates of its first batch wrong, and all references too."""
        rewards = [(candidate.rewards or {}).get(scorer.name) for row in batch for candidate in row.candidates]
        least = scorer.bound.right_from
        if least is not None and not any(isinstance(each, float) and each >= least for each in rewards):
            check_judge(scorer, batch, self._registry, self._config.score_timeout)
        self._proven.append(scorer)


def failure_of(answered: Answered, row: Row, count: int, engine: LoadedPlugin) -> str:
    """Why a row has no candidates: the engine failed at it, or they cannot be stored; empty if it has them.

    Raises:
        UserError: The engine returned another number of them, or something other than text.
    """
    if answered.failure:
        return answered.failure
    if (found := len(answered.completions)) != count:
        raise UserError(f"{engine.found} returned {found} candidates for {row.origin}; expected {count}")
    for completion in answered.completions:
        for value in (completion.text, completion.finish_reason):
            if not isinstance(value, str):
                raise UserError(f"{engine.found} returned {value!r:.60}; expected text")
    try:
        check_encodable([completion.text for completion in answered.completions])
    except RowError as error:
        return str(error)
    return ""
