"""A sampling run, from a config to a folder with the rows to train on.

1. Plugins are found, imported and checked.         4. Each batch of rows is answered, and then scored; what is done
2. Every row (and every candidate that exists)         goes into the ledger at once, so that nothing is done twice.
   is read into the ledger.                         5. Candidates are ranked and chosen.
3. The engine loads its model.                      6. Candidates, samples and the page are left in the folder.

All that can fail on bad input fails in the first two, and the run's folder is not touched before the third.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from swiftplug.config.load import to_yaml
from swiftplug.config.sample_schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Sampling
from swiftplug.runs.blame import blaming
from swiftplug.runs.disk import disk_full_message, is_disk_full
from swiftplug.runs.manifest import write_run_files
from swiftplug.runs.say import say
from swiftplug.sampling.answering import Answering
from swiftplug.sampling.arguments import SampleArguments
from swiftplug.sampling.folder import LEDGER, check_sample_dir, clear, is_begun
from swiftplug.sampling.intake import check_unchanged, fill
from swiftplug.sampling.ledger import Ledger
from swiftplug.sampling.outputs import write_outputs
from swiftplug.sampling.plan import facts_of, print_end, print_intake, print_plan
from swiftplug.sampling.plugins import SamplePlugins, resolve_sample_plugins
from swiftplug.sampling.progress import SampleProgress
from swiftplug.sampling.selection import Selection
from swiftplug.sampling.statistics import Summary


class SampleResult(NamedTuple):
    """What a finished run left.

    Attributes:
        run_dir: Its folder.
        summary: Its statistics.
    """

    run_dir: Path
    summary: Summary


def sample(
    config: SampleConfig, *, resume: bool = False, overwrite: bool = False, dry_run: bool = False
) -> SampleResult | None:
    """Run a sampling, or with `dry_run` everything up to the model.

    Args:
        config: The run's config, with its `output_dir`.
        resume: Whether to go on with the run in `output_dir`; rows that an engine failed at are tried again.
        overwrite: Whether to begin the run in `output_dir` again.
        dry_run: Whether to stop before the model and print the plan.

    Returns:
        What the run left; None of a dry run.

    Raises:
        UserError: Something is wrong with the input; what was on disk before is unharmed.

    Example:
        >>> sample(load_sample_config("configs/sample.yaml", {}, []).config)
    """
    console = Console()
    started = time.monotonic()
    run_dir = Path(str(config.output_dir)).expanduser()
    check_sample_dir(run_dir, resume=resume, overwrite=overwrite)
    plugins = resolve_sample_plugins(config)
    sampling = _sampling(config)
    with blaming(plugins.all()), _explained_disk(run_dir):
        if dry_run:
            with tempfile.TemporaryDirectory() as folder, _new_ledger(Path(folder), config, plugins, console) as ledger:
                print_plan(console, config, plugins, ledger)
            return None
        with _ledger(run_dir, config, plugins, console, resume) as ledger:
            positions = config.part.rows(ledger.count_rows())
            answering = Answering(config, plugins, ledger, positions, sampling)
            _do(answering, SampleArguments(config, plugins.registry, plugins.model), console)
            selection = Selection.of(config, plugins.scorers)
            facts = facts_of(config, plugins)
            title = f"{config.model.name if config.model else config.candidates_file}"
            summary = write_outputs(run_dir, ledger, positions, selection, config.num_return_sequences, title, facts)
            write_run_files(run_dir, to_yaml(config), config.seed, plugins.all(), {"results": asdict(summary)})
            failed = ledger.count("failure != ''", positions)
            print_end(console, run_dir, summary, failed, time.monotonic() - started)
    return SampleResult(run_dir, summary)


def _sampling(config: SampleConfig) -> Sampling:
    return Sampling(
        num_return_sequences=config.num_return_sequences,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        seed=config.seed,
    )


@contextmanager
def _ledger(
    run_dir: Path, config: SampleConfig, plugins: SamplePlugins, console: Console, resume: bool
) -> Iterator[Ledger]:
    """The ledger of a run that goes on, or a new one in place of what the folder held."""
    if resume and is_begun(run_dir):
        ledger = Ledger(run_dir / LEDGER)
        try:
            for note in check_unchanged(ledger, config, plugins):
                say(console, note)
            ledger.forget_failures()
            yield ledger
        finally:
            ledger.close()
        return
    existed = run_dir.is_dir()
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with _new_ledger(run_dir, config, plugins, console, take_name=lambda: clear(run_dir)) as ledger:
            write_run_files(run_dir, to_yaml(config), config.seed, plugins.all())
            existed = True
            yield ledger
    finally:
        if not existed:
            run_dir.rmdir()


@contextmanager
def _new_ledger(
    folder: Path,
    config: SampleConfig,
    plugins: SamplePlugins,
    console: Console,
    take_name: Callable[[], None] | None = None,
) -> Iterator[Ledger]:
    """A ledger of every row; it takes its name only when all of them were read and checked.

    Args:
        folder: Where it is made.
        config: The run's config.
        plugins: Its plugins.
        console: What became of the rows is told there.
        take_name: Makes room for it; None leaves it without a name, to vanish behind a dry run.
    """
    partial = folder / f".{LEDGER}.partial"
    partial.unlink(missing_ok=True)
    ledger = Ledger(partial)
    try:
        with ledger.transaction():
            intake = fill(ledger, config, plugins)
        print_intake(console, ledger, config, intake)
        if take_name is not None:
            ledger.close()
            take_name()
            partial.replace(folder / LEDGER)
            ledger = Ledger(folder / LEDGER)
        yield ledger
    finally:
        ledger.close()
        partial.unlink(missing_ok=True)
        partial.with_name(f"{partial.name}-journal").unlink(missing_ok=True)


def _do(answering: Answering, args: SampleArguments, console: Console) -> None:
    """Answer and score what is not yet done, batch by batch."""
    pending = answering.pending()
    if not pending.rows:
        return
    if pending.to_answer:
        say(console, f"loading {args.config.model.name if args.config.model else args.config.adapter}")
        answering.open(args)
    try:
        with SampleProgress(console, pending.rows, "sampling" if pending.to_answer else "scoring") as progress:
            for done in answering.run():
                progress.advance(done.rows, done.candidates)
    finally:
        answering.close()


@contextmanager
def _explained_disk(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise UserError(disk_full_message(run_dir)) from error
        raise
