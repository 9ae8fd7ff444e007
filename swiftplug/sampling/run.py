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
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from swiftplug.config.resume import CONFIG, MANIFEST
from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.formatting import format_command, format_count
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import RunProgress, on_disk, print_line
from swiftplug.runs.errors import explaining_interruption, naming_full_disk, naming_plugins
from swiftplug.runs.folder import (
    add_to_record,
    begin_record,
    check_inputs_are_kept,
    check_output_folder,
    run_folder,
)
from swiftplug.runs.plugins import resolve_plugins
from swiftplug.sampling.console import print_inputs, print_results, print_sample_plan, run_facts
from swiftplug.sampling.intake import check_unchanged, read_inputs
from swiftplug.sampling.ledger import Ledger, LedgerInUseError
from swiftplug.sampling.loop import SampleLoop
from swiftplug.sampling.on_ray import RayPool, check_ray
from swiftplug.sampling.outputs import CANDIDATES, PAGE, SAMPLES, write_outputs
from swiftplug.sampling.pool import WorkerPool, check_devices, environments
from swiftplug.sampling.scoring import check_thresholds, resolve_scorers
from swiftplug.sampling.statistics import Summary
from swiftplug.sampling.worker import Executor, Worker

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
        Interrupted: Ctrl-C, or SIGTERM, has stopped it. What was sampled and scored before is in the ledger.

    Example:
        >>> sample(load_sample_config("configs/sample.yaml", {}, []).config)
    """
    with RunProgress(Console()) as progress:
        run = SampleRun(config, progress, resume=resume, overwrite=overwrite, dry_run=dry_run)
        with naming_plugins(run.plugins.all()), naming_full_disk(run.folder):
            if dry_run:
                run.print_plan()
                print_line(progress.console, "dry run: nothing was sampled or written", "bold")
                return None
            with (
                explaining_interruption(run.stopped_early),
                run.open_ledger() as ledger,
                explaining_interruption(run.stopped),
            ):
                run.generate_and_score(ledger)
                summary = run.write_results(ledger)
                run.print_results(ledger, summary)
                return summary


class SampleRun:
    """A sampling run and its steps; `sample` calls them in order.

    Features:
        - Any engine: a model in this process, a server, or existing candidates that are only scored.
        - Any number of outcome and process reward models, with weights.
        - If it is killed at any point, --resume continues from the ledger and gives byte-identical results.
        - Joining the shards gives the result of an unsharded run.
        - It holds one batch in memory while candidates are generated and scored, one row while results are written.
    """

    def __init__(
        self, config: SampleConfig, progress: RunProgress, *, resume: bool, overwrite: bool, dry_run: bool
    ) -> None:
        self.started = time.monotonic()
        self.loop: SampleLoop | None = None
        self.config = config
        self.resume = resume
        self.overwrite = overwrite
        self.console = progress.console
        self.progress = progress
        self.folder = Path(str(config.output_dir)).expanduser()
        with progress.start("loading plugins"):
            self.plugins = resolve_plugins(config)
            self.scorers = resolve_scorers(config, self.plugins)
            check_thresholds(config, self.scorers)
            with naming_plugins(self.plugins.all()):
                args = Arguments(config, self.plugins)
                args.check_writes()
                args.check_plugins()
            if config.executor == "ray":
                check_ray(config)
            if config.workers > 1 and (config.executor == "local" or config.ray.address is None):
                check_devices(config)
        if not dry_run:
            self.check_folder(resume=resume)
        self.facts = run_facts(config, self.plugins, self.scorers)
        self.model_name = config.model.name if config.model else config.adapter or ""

    def check_folder(self, *, resume: bool) -> None:
        """Refuse a folder that the run must not write into, or where --overwrite would delete the run's own input."""
        is_own = (self.folder / LEDGER).is_file()
        check_output_folder(
            self.folder,
            is_own=is_own,
            holds_results=is_own and self._has_candidates(),
            resume=resume,
            overwrite=self.overwrite,
        )
        if is_own and not resume:
            datasets = [choice.name for choice in self.config.dataset]
            inputs = [*datasets, *filter(None, [self.config.candidates_file])]
            check_inputs_are_kept(self.folder, [self.folder / name for name in _RESULTS], inputs)

    def _has_candidates(self) -> bool:
        """Whether the run in the folder has sampled anything; it must not be running."""
        try:
            with closing(Ledger(self.folder / LEDGER)) as ledger:
                return ledger.has_candidates()
        except LedgerInUseError:
            raise
        except UserError:
            return True  # a corrupt ledger may have had some

    def stopped_early(self) -> str:
        """What a run that is interrupted before its first batch has kept, and how to go on."""
        if self.resume:
            return f"stopped before sampling went on; go on: {format_command('sample', self.folder, '--resume')}"
        return "stopped before the first candidate; the same command starts the run again"

    def stopped(self) -> str:
        """What a run that is interrupted has kept, and how to go on."""
        if self.loop is None or not (self.folder / LEDGER).is_file():
            return self.stopped_early()
        done = self.loop.count_done()
        kept = f"{done:,} of {format_count(self.loop.rows, 'row')} {'is' if done == 1 else 'are'} kept"
        return f"stopped; {kept}; go on: {format_command('sample', self.folder, '--resume')}"

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
                begin_record(self.folder, self.config, self.plugins.all(), resumed=True)
                yield ledger
            return
        with run_folder(self.folder), self._new_ledger(self.folder) as ledger:
            yield ledger

    @contextmanager
    def _new_ledger(self, folder: Path) -> Iterator[Ledger]:
        """A ledger of every row; it is deleted at the end unless it was renamed."""
        partial = folder / f".{LEDGER}.partial"
        ledger = Ledger(partial, is_new=True)
        try:
            live = on_disk(choice.name for choice in self.config.dataset)
            with ledger.transaction(), self.progress.start("reading the data", live=live):
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
        worker = Worker(self.config, self.plugins)
        self.loop = loop = SampleLoop(self.config, worker, self.scorers, ledger)
        with ExitStack() as stack:
            executor: Executor = worker
            if loop.to_generate or (loop.pending and not self.config.is_one_process):
                starting = f"starting engine {self.config.engine.name} ({self.model_name})".removesuffix(" ()")
                with self.progress.start(starting, live=on_disk([self.model_name])):
                    executor, args = self._start(worker, stack, loop)
                for note in args.notes:
                    print_line(self.console, note)
                if args.tokenizer is not None:
                    for line in loop.unread_lines(args.tokenizer):
                        print_line(self.console, line)
            if ledger.path != self.folder / LEDGER:
                self._commit_new_run(ledger)
            if loop.pending:
                loop.run(self.progress, executor)

    def _start(self, worker: Worker, stack: ExitStack, loop: SampleLoop) -> tuple[Executor, Arguments]:
        """Have the engine load its model, here or in the processes of workers; what the stack closes ends that."""
        if self.config.is_one_process:
            stack.callback(worker.close)
            return worker, worker.open()
        args = Arguments(self.config, self.plugins)
        if worker.engine.uses_chat and loop.to_generate:
            args.load_tokenizer()
        generates = loop.to_generate > 0
        pool: WorkerPool | RayPool
        if self.config.executor == "ray":
            pool = RayPool(self.config, generates=generates)
        else:
            pool = WorkerPool(self.config, environments(self.config.workers), generates=generates, scores=True)
        stack.callback(pool.close)
        pool.open()
        return pool, args

    def _commit_new_run(self, ledger: Ledger) -> None:
        """Remove the results of an earlier run, if there was one, and give the ledger its final name."""
        self.check_folder(resume=False)  # another process may have begun a run there by now
        for name in reversed(_RESULTS):  # the ledger last: a half-removed run must still be recognised as one
            (self.folder / name).unlink(missing_ok=True)
        ledger.rename(self.folder / LEDGER)
        begin_record(self.folder, self.config, self.plugins.all(), resumed=False)

    def write_results(self, ledger: Ledger) -> Summary:
        """Rank and select the candidates, and write all result files."""
        title = self.model_name or str(self.config.candidates_file or self.config.output_dir)
        with self.progress.start("selecting candidates and writing the results"):
            summary = write_outputs(self.folder, ledger, self.config, self.scorers, title, self.facts)
        add_to_record(self.folder, results=asdict(summary))
        return summary

    def print_results(self, ledger: Ledger, summary: Summary) -> None:
        """Print the summary, and where the results are."""
        failed = ledger.count("failure != ''", self.config.shard_rows(ledger.count_rows()))
        print_results(self.console, self.folder, summary, failed, time.monotonic() - self.started)
