"""A sampling run, from a config to a folder with rows to train on.

1. Plugins are found, imported and checked.
2. Every row and every existing candidate is read into the ledger.
3. The engine loads its model.
4. Candidates are generated and scored, batch by batch. Each result is written into the ledger immediately, so that
   nothing is done twice.
5. Candidates are ranked and selected.
6. Candidates, samples and the page are written into the folder.

Errors in config, plugins, data and model are raised in steps 1-3; nothing in the run's folder changes before step 4.
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
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import RunProgress, print_line
from swiftplug.runs.errors import naming_full_disk, naming_plugins
from swiftplug.runs.folder import CONFIG, MANIFEST, check_output_folder, write_run_files
from swiftplug.runs.plugins import resolve_plugins
from swiftplug.sampling.console import print_inputs, print_results, print_sample_plan, run_facts
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
    """Generate candidates for the rows of a dataset, score them, and keep the best, in the folder `config.output_dir`.

    Args:
        config: The run's config.
        resume: Whether to continue the run in the folder. Rows and candidates that failed are tried again.
        overwrite: Whether to replace the run in the folder.
        dry_run: Whether to print the plan and stop before the model is loaded.

    Returns:
        The statistics of the run; None for a dry run.

    Raises:
        UserError: The input is wrong. Files from before the run are unchanged.

    Example:
        >>> sample(load_sample_config("configs/sample.yaml", {}, []).config)
    """
    run = SampleRun(config, resume=resume, overwrite=overwrite)
    with naming_plugins(run.plugins.all()), naming_full_disk(run.folder), run.progress:
        if dry_run:
            run.print_plan()
            return None
        with run.open_ledger() as ledger:
            run.generate_and_score(ledger)
            return run.write_results(ledger)


class SampleRun:
    """A sampling run and its steps; `sample` calls them in order.

    Features:
        - Any engine: a model in this process, a server, or existing candidates that are only scored.
        - Any number of outcome and process reward models, with weights.
        - If it is killed at any point, --resume continues from the ledger and gives byte-identical results.
        - Joining the shards gives the result of an unsharded run.
        - It holds one batch in memory while candidates are generated and scored, one row while results are written.
    """

    def __init__(self, config: SampleConfig, *, resume: bool, overwrite: bool) -> None:
        self.started = time.monotonic()
        self.config = config
        self.resume = resume
        self.overwrite = overwrite
        self.console = Console()
        self.progress = RunProgress(self.console)
        self.folder = Path(str(config.output_dir)).expanduser()
        self.check_folder(resume=resume)
        with self.progress, self.progress.start("loading plugins", live=False):
            self.plugins = resolve_plugins(config)
            self.scorers = resolve_scorers(config, self.plugins)
        self.facts = run_facts(config, self.plugins, self.scorers)
        self.model_name = config.model.name if config.model else config.adapter or ""

    def check_folder(self, *, resume: bool) -> None:
        """Refuse a folder that the run must not write into, or where --overwrite would delete the run's own input."""
        if resume and self.overwrite:
            raise UserError("--resume and --overwrite cannot be combined: continue the run, or replace it")
        check_output_folder(self.folder, LEDGER, resume=resume, overwrite=self.overwrite)
        if not self.overwrite or not (self.folder / LEDGER).is_file():
            return
        try:
            Ledger(self.folder / LEDGER).close()
        except LedgerInUseError:
            raise
        except UserError:
            pass  # a corrupt ledger may be overwritten
        for name in [*filter(None, [self.config.candidates_file]), *(choice.name for choice in self.config.dataset)]:
            path = Path(name.partition("#")[0]).expanduser()
            if path.name in _RESULTS and path.parent.resolve() == self.folder.resolve():
                reads = f"{path}, which this run reads; name another folder"
                raise UserError(f"output_dir: --overwrite would remove {reads}")

    def print_plan(self) -> None:
        """Read the inputs and print what the run would do, without writing into its folder."""
        with tempfile.TemporaryDirectory() as folder, self._new_ledger(Path(folder)) as ledger:
            print_sample_plan(self.console, self.config, self.facts, ledger)

    @contextmanager
    def open_ledger(self) -> Iterator[Ledger]:
        """The ledger of the run to resume, or a new one under a temporary name."""
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
                with suppress(OSError):  # not empty: this run or another process's has begun there
                    self.folder.rmdir()

    @contextmanager
    def _new_ledger(self, folder: Path) -> Iterator[Ledger]:
        """A ledger of every row; it is deleted at the end unless it was renamed."""
        partial = folder / f".{LEDGER}.partial"
        ledger = Ledger(partial, is_new=True)
        try:
            with ledger.transaction(), self.progress.start("reading the data", live=False):
                candidates_file = read_inputs(ledger, self.config, self.plugins, self.scorers)
            for note in self.plugins.registry.notes:
                print_line(self.console, note)
            print_inputs(self.console, self.config, ledger, candidates_file)
            yield ledger
        finally:
            ledger.close()
            if ledger.path == partial:
                partial.unlink(missing_ok=True)
                partial.with_name(f"{partial.name}-journal").unlink(missing_ok=True)

    def generate_and_score(self, ledger: Ledger) -> None:
        """Generate the candidates that are missing, for which the engine loads its model, and score the unscored."""
        loop = SampleLoop(self.config, self.plugins, self.scorers, ledger)
        with ExitStack() as stack:
            if loop.to_generate:
                starting = f"starting engine {self.config.engine.name} ({self.model_name})".removesuffix(" ()")
                is_folder = Path(self.model_name or ".").expanduser().is_dir()
                stack.callback(loop.engine.close)
                args = Arguments(self.config, self.plugins)
                with self.progress.start(starting, live=is_folder):
                    loop.engine.open(args, loop.sampling)
                if args.tokenizer is not None:
                    for line in loop.unread_lines(args.tokenizer):
                        print_line(self.console, line)
            if ledger.path != self.folder / LEDGER:
                self._commit_new_run(ledger)
            if loop.pending:
                loop.run(self.progress)

    def _commit_new_run(self, ledger: Ledger) -> None:
        """Remove the results of an earlier run, if there was one, and give the ledger its final name."""
        self.check_folder(resume=False)  # another process may have begun a run there by now
        for name in reversed(_RESULTS):  # the ledger last: a half-removed run must still be recognised as one
            (self.folder / name).unlink(missing_ok=True)
        ledger.rename(self.folder / LEDGER)
        write_run_files(self.folder, self.config, self.plugins.all())

    def write_results(self, ledger: Ledger) -> Summary:
        """Rank and select the candidates, write all result files, and print the summary."""
        title = self.model_name or str(self.config.candidates_file or self.config.output_dir)
        with self.progress.start("selecting candidates and writing the results"):
            summary = write_outputs(self.folder, ledger, self.config, self.scorers, title, self.facts)
        write_run_files(self.folder, self.config, self.plugins.all(), asdict(summary))
        failed = ledger.count("failure != ''", self.config.shard_rows(ledger.count_rows()))
        print_results(self.console, self.folder, summary, failed, time.monotonic() - self.started)
        return summary
