"""A sampling run, from a config to a folder with rows to train on.

1. Plugins are found, imported and checked.         4. Each batch of rows is answered and scored; what is done is
2. Every row, and every existing candidate, is         written into the ledger at once, so nothing is done twice.
   read into the ledger.                            5. Candidates are ranked and selected.
3. The engine loads its model.                      6. Candidates, samples and the page are written into the folder.

All that can fail on bad input fails in the first three; what the run's folder holds is not touched before the fourth.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Engine, Sampling
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import print_line
from swiftplug.runs.errors import naming_full_disk, naming_plugins
from swiftplug.runs.folder import CONFIG, MANIFEST, check_output_folder, write_run_files
from swiftplug.runs.plugins import resolve_plugins
from swiftplug.sampling.console import SampleProgress, facts_of, print_dry_run, print_inputs, print_results
from swiftplug.sampling.intake import check_unchanged, read_inputs
from swiftplug.sampling.ledger import Ledger, LedgerInUseError
from swiftplug.sampling.loop import SampleLoop
from swiftplug.sampling.outputs import CANDIDATES, PAGE, SAMPLES, write_outputs
from swiftplug.sampling.scoring import resolve_scorers
from swiftplug.sampling.statistics import Summary

LEDGER = "ledger.sqlite"
_RESULTS = (LEDGER, f"{LEDGER}-journal", CANDIDATES, SAMPLES, PAGE, MANIFEST, CONFIG)


def sample(
    config: SampleConfig, *, resume: bool = False, overwrite: bool = False, dry_run: bool = False
) -> Summary | None:
    """Sample answers to the rows of a dataset, score them, and keep the best, in the folder `config.output_dir`.

    Args:
        config: The run's config.
        resume: Whether to continue the run in the folder; what an engine or a scorer failed at is tried again.
        overwrite: Whether to start the run in the folder over.
        dry_run: Whether to stop before the model is loaded, and print the plan.

    Returns:
        The statistics of the run; None for a dry run.

    Raises:
        UserError: Something is wrong with the input; what was on disk before is unharmed.

    Example:
        >>> sample(load_sample_config("configs/sample.yaml", {}, []).config)
    """
    run = SampleRun(config, resume=resume, overwrite=overwrite)
    with naming_plugins(run.plugins.all()), naming_full_disk(run.folder):
        if dry_run:
            run.print_plan()
            return None
        with run.open_ledger() as ledger:
            run.answer_and_score(ledger)
            return run.write_results(ledger)


class SampleRun:
    """A run and the steps that it takes.

    Features:
        - Any engine: a model in this process, a server, or existing candidates that are only scored.
        - Any number of outcome and process reward models, with weights.
        - Killed at any moment, it continues from the ledger and ends in the same bytes.
        - Shards that joined are the whole.
        - One row in memory at a time while results are written, one batch while rows are answered and scored.

    Args:
        config: The run's config.
        resume: Whether to continue the run in the folder.
        overwrite: Whether to start the run in the folder over.
    """

    def __init__(self, config: SampleConfig, *, resume: bool, overwrite: bool) -> None:
        self.started = time.monotonic()
        self.config = config
        self.resume = resume
        self.overwrite = overwrite
        self.console = Console()
        self.folder = Path(str(config.output_dir)).expanduser()
        self.check_folder(resume=resume)
        self.plugins = resolve_plugins(config)
        self.scorers = resolve_scorers(config, self.plugins)

    def check_folder(self, *, resume: bool) -> None:
        """Refuse a folder that the run must not write into, or whose files it reads and would remove."""
        if resume and self.overwrite:
            raise UserError("--resume and --overwrite exclude each other: continue the run, or start it over")
        check_output_folder(self.folder, LEDGER, resume=resume, overwrite=self.overwrite)
        if not self.overwrite or not (self.folder / LEDGER).is_file():
            return
        try:
            Ledger(self.folder / LEDGER).close()
        except LedgerInUseError:
            raise
        except UserError:
            pass  # a damaged one may go
        for name in [*filter(None, [self.config.candidates_file]), *(choice.name for choice in self.config.dataset)]:
            path = Path(name.partition("#")[0]).expanduser()
            if path.name in _RESULTS and path.parent.resolve() == self.folder.resolve():
                reads = f"{path}, which this run reads; name another folder"
                raise UserError(f"output_dir: --overwrite would remove {reads}")

    def print_plan(self) -> None:
        """Read the inputs and print what the run would do; nothing is written into its folder."""
        with tempfile.TemporaryDirectory() as folder, self._new_ledger(Path(folder)) as ledger:
            print_dry_run(self.console, self.config, self.facts(), ledger)

    @contextmanager
    def open_ledger(self) -> Iterator[Ledger]:
        """The ledger of the run that is continued, or a new one beside what the folder holds."""
        if self.resume and (self.folder / LEDGER).is_file():
            with closing(Ledger(self.folder / LEDGER)) as ledger:
                if note := check_unchanged(ledger, self.config, self.plugins, self.scorers):
                    print_line(self.console, note)
                ledger.forget_failures()
                yield ledger
            return
        existed = self.folder.is_dir()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output_dir: cannot make the folder {self.folder}: {error.strerror}") from None
        try:
            with self._new_ledger(self.folder) as ledger:
                yield ledger
        finally:
            if not existed:
                with suppress(OSError):  # a run has begun there, this one or another process's
                    self.folder.rmdir()

    @contextmanager
    def _new_ledger(self, folder: Path) -> Iterator[Ledger]:
        """A ledger of every row, which vanishes unless it is renamed."""
        unnamed = folder / f".{LEDGER}.partial"
        ledger = Ledger(unnamed, is_new=True)
        try:
            with ledger.transaction():
                file = read_inputs(ledger, self.config, self.plugins, self.scorers)
            print_inputs(self.console, self.config, ledger, file)
            yield ledger
        finally:
            ledger.close()
            if ledger.path == unnamed:
                unnamed.unlink(missing_ok=True)
                unnamed.with_name(f"{unnamed.name}-journal").unlink(missing_ok=True)

    def answer_and_score(self, ledger: Ledger) -> None:
        """Load the engine's model if any row has no candidates, then answer and score what is not done."""
        engine: Engine = self.plugins.one("engine").bound
        sampling = Sampling(**{name: getattr(self.config, name) for name in Sampling._fields})
        loop = SampleLoop(self.config, self.plugins, self.scorers, ledger, sampling)
        with ExitStack() as stack:
            if loop.unanswered:
                if self.model_name:
                    print_line(self.console, f"loading {self.model_name}")
                stack.callback(engine.close)
                engine.open(Arguments(self.config, self.plugins), sampling)
            if ledger.path != self.folder / LEDGER:
                self._replace_previous_run(ledger)
            if loop.pending:
                what = "sampling" if loop.unanswered else "scoring"
                loop.run(stack.enter_context(SampleProgress(self.console, loop.pending, what)))

    def _replace_previous_run(self, ledger: Ledger) -> None:
        self.check_folder(resume=False)  # another process may have begun a run there by now
        for name in reversed(_RESULTS):  # the ledger last, so that what is left half-removed still counts as a run
            (self.folder / name).unlink(missing_ok=True)
        ledger.rename(self.folder / LEDGER)
        write_run_files(self.folder, self.config, self.plugins.all())

    def write_results(self, ledger: Ledger) -> Summary:
        """Rank and select the candidates, write all files of results, and print what came of the run."""
        title = self.model_name or str(self.config.candidates_file or self.config.output_dir)
        summary = write_outputs(self.folder, ledger, self.config, self.scorers, title, self.facts())
        write_run_files(self.folder, self.config, self.plugins.all(), asdict(summary))
        failed = ledger.count("failure != ''", self.config.shard_rows(ledger.count_rows()))
        print_results(self.console, self.folder, summary, failed, time.monotonic() - self.started)
        return summary

    @property
    def model_name(self) -> str:
        """The model or adapter that the config names; empty if it names none."""
        return self.config.model.name if self.config.model else self.config.adapter or ""

    def facts(self) -> list[tuple[str, str]]:
        """What distinguishes this run from another, as labels and values."""
        return facts_of(self.config, self.plugins, self.scorers)
