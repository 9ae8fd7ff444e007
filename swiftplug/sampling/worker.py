"""What answers and scores batches of rows: in the run's own process, in another one, or on another machine."""

import pickle
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from swiftplug.config.schema import SampleConfig
from swiftplug.data.read.conversation import RowError
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Answered, Engine, Prompt, Sampling
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.errors import naming_plugins
from swiftplug.runs.plugins import RunPlugins, resolve_plugins
from swiftplug.sampling.rows import Candidate, Row, check_encodable, reference_candidate
from swiftplug.sampling.scoring import resolve_scorers


class Batch(NamedTuple):
    """Rows that lack candidates or rewards.

    Attributes:
        rows: The rows.
        prompts: Those of the rows without candidates, with all that are generated together with them.
    """

    rows: list[Row]
    prompts: list[Prompt]


class Done(NamedTuple):
    """A batch after its answers.

    Attributes:
        rows: All its rows, scored or not.
        answered: Those of them that got their candidates now, or the reason why there are none.
        error: What ended the work on the batch, if anything did.
    """

    rows: list[Row]
    answered: Iterable[Row]
    error: Exception | None = None


class Executor(Protocol):
    """Where batches are answered."""

    def run(self, batches: Iterator[Batch]) -> Iterator[Done]:
        """Answer batches, taken as they can be worked on; in any order."""

    def close(self) -> None:
        """End the work, and release what it took."""


class Worker:
    """Has the engine and the scorers of a run; it knows no ledger.

    Args:
        config: The run's config.
        plugins: Its plugins; None resolves them, in a process that has not yet.

    Attributes:
        plugins: The run's plugins.
        engine: The engine; it must be open before it generates.
        sampling: How candidates are sampled.
    """

    def __init__(self, config: SampleConfig, plugins: RunPlugins | None = None) -> None:
        self._config = config
        self.plugins = plugins or resolve_plugins(config)
        self._scorers = resolve_scorers(config, self.plugins)
        self._engine_plugin = self.plugins.one("engine")
        self.engine: Engine = self._engine_plugin.bound
        self.sampling = Sampling(**{name: getattr(config, name) for name in Sampling._fields})

    def open(self) -> Arguments:
        """Have the engine load its model; the arguments that it got know what the user should."""
        args = Arguments(self._config, self.plugins)
        with naming_plugins(self.plugins.all()):
            self.engine.open(args, self.sampling)
        return args

    def run(self, batches: Iterator[Batch]) -> Iterator[Done]:
        """Answer batches in this process; see `Executor.run`."""
        for batch in batches:
            yield Done(batch.rows, self.answer(batch))

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def finish(self, work: Batch | Done, *, scores: bool) -> Done:
        """Answer a batch, or take one that is answered, and score it: for another process, which is sent any error."""
        answered: list[Row] = list(work.answered) if isinstance(work, Done) else []
        error = work.error if isinstance(work, Done) else None
        try:
            with naming_plugins(self.plugins.all()):
                if isinstance(work, Batch):
                    answered.extend(self.answer(work))
                if scores and error is None:
                    self.score(work.rows)
        except Exception as raised:
            error = sendable(raised)
        return Done(work.rows, answered, error)

    def answer(self, batch: Batch) -> Iterator[Row]:
        """Generate candidates for the rows of a batch that have none; each is given as soon as it has them."""
        waiting = {row.id: row for row in batch.rows if not row.candidates}
        for answered in self.engine.generate(batch.prompts) if waiting else ():
            if answered.id in waiting:
                row = waiting.pop(answered.id)
                self._take(row, answered)
                yield row
        if waiting:
            first = next(iter(waiting.values()))
            raise UserError(f"{self._engine_plugin.found} returned no result for {first.origin}")

    def score(self, rows: Sequence[Row]) -> None:
        """Score the rows with an unscored candidate with all scorers."""
        if unscored := reset_unscored(rows):
            for scorer in self._scorers:
                scorer.score(unscored, self._config.score_timeout)

    def _take(self, row: Row, answered: Answered) -> None:
        """Give a row its candidates, or the reason why there are none."""
        row.failure = failure_of(answered, row, self.sampling.num_return_sequences, self._engine_plugin)
        if not row.failure:
            row.candidates = [
                Candidate(index, completion.text, completion.finish_reason)
                for index, completion in enumerate(answered.completions)
            ]
            if self._config.include_reference and row.reference is not None:
                row.candidates.append(reference_candidate(row, len(row.candidates)))


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


def reset_unscored(rows: Iterable[Row]) -> list[Row]:
    """Those of some rows that have an unscored candidate, without any rewards."""
    unscored = [row for row in rows if any(candidate.rewards is None for candidate in row.candidates)]
    for row in unscored:
        for candidate in row.candidates:
            candidate.rewards, candidate.unscored = {}, {}
    return unscored


def sendable(error: Exception) -> Exception:
    """An error that another process can be sent, with the traceback of this one as a note."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an exception of somebody's class raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
