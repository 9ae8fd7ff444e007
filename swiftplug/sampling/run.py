"""A sampling run, from a config to a folder with the rows to train on.

1. Plugins are found, imported and checked.         4. Each batch of rows is answered, and then scored; what is done
2. Every row (and every candidate that exists)         goes into the ledger at once, so that nothing is done twice.
   is read into the ledger.                         5. Candidates are ranked and chosen.
3. The engine loads its model.                      6. Candidates, samples and the page are left in the folder.

All that can fail on bad input fails in the first three; what the run's folder holds is not touched before the fourth.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Sampling
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import print_line
from swiftplug.runs.errors import naming_full_disk, naming_plugins
from swiftplug.runs.folder import CONFIG, MANIFEST, check_output_folder, write_run_files
from swiftplug.sampling.intake import check_unchanged, fill
from swiftplug.sampling.ledger import Ledger, LedgerInUseError
from swiftplug.sampling.loop import SampleLoop
from swiftplug.sampling.outputs import CANDIDATES, PAGE, SAMPLES, write_outputs
from swiftplug.sampling.plan import facts_of, print_dry_run, print_end, print_intake
from swiftplug.sampling.plugins import SamplePlugins, resolve_sample_plugins
from swiftplug.sampling.progress import SampleProgress
from swiftplug.sampling.statistics import Summary

LEDGER = "ledger.sqlite"
_RESULTS = (LEDGER, f"{LEDGER}-journal", CANDIDATES, SAMPLES, PAGE, MANIFEST, CONFIG)


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
        resume: Whether to go on with the run in `output_dir`; what an engine or a scorer failed at is tried
            again.
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
    check = partial(_check_folder, run_dir, config, overwrite=overwrite)
    check(resume=resume)
    plugins = resolve_sample_plugins(config)
    sampling = _sampling(config)
    with naming_plugins(plugins.all()), naming_full_disk(run_dir):
        if dry_run:
            with tempfile.TemporaryDirectory() as folder, _new_ledger(Path(folder), config, plugins, console) as ledger:
                print_dry_run(console, config, plugins, ledger)
            return None
        with _ledger(run_dir, config, plugins, console, resume) as ledger:
            loop = SampleLoop(config, plugins, ledger, sampling)
            try:
                if loop.unanswered:
                    if name := _model_name(config):
                        print_line(console, f"loading {name}")
                    plugins.sampler.open(Arguments(config, plugins), sampling)
                if ledger.path != run_dir / LEDGER:
                    check(resume=False)  # another process may have begun a run there by now
                    _begin(run_dir, ledger, config, plugins)
                if loop.pending:
                    with SampleProgress(
                        console, loop.pending, "sampling" if loop.unanswered else "scoring"
                    ) as progress:
                        loop.run(progress)
            finally:
                if loop.unanswered:
                    plugins.sampler.close()
            facts = facts_of(config, plugins)
            title = _model_name(config) or str(config.candidates_file or config.output_dir)
            summary = write_outputs(run_dir, ledger, config, plugins.scorers, title, facts)
            write_run_files(run_dir, config, plugins.all(), asdict(summary))
            failed = ledger.count("failure != ''", config.shard_rows(ledger.count_rows()))
            print_end(console, run_dir, summary, failed, time.monotonic() - started)
    return SampleResult(run_dir, summary)


def _check_folder(folder: Path, config: SampleConfig, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that the run must not write into, or whose files it reads and would remove."""
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other: continue the run, or start it over")
    check_output_folder(folder, LEDGER, resume=resume, overwrite=overwrite)
    if not overwrite or not (folder / LEDGER).is_file():
        return
    try:
        Ledger(folder / LEDGER).close()
    except LedgerInUseError:
        raise
    except UserError:
        pass  # a damaged one may go
    for name in [*filter(None, [config.candidates_file]), *(choice.name for choice in config.dataset)]:
        path = Path(name.partition("#")[0]).expanduser()
        if path.name in _RESULTS and path.parent.resolve() == folder.resolve():
            raise UserError(f"output_dir: --overwrite would remove {path}, which this run reads; name another folder")


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
    """The ledger of a run that goes on, or a new one beside what the folder holds."""
    if resume and (run_dir / LEDGER).is_file():
        ledger = Ledger(run_dir / LEDGER)
        try:
            for note in check_unchanged(ledger, config, plugins):
                print_line(console, note)
            ledger.forget_failures()
            yield ledger
        finally:
            ledger.close()
        return
    existed = run_dir.is_dir()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir: cannot make the folder {run_dir}: {error.strerror}") from None
    try:
        with _new_ledger(run_dir, config, plugins, console) as ledger:
            yield ledger
    finally:
        if not existed:
            with suppress(OSError):  # the run has begun, here or in another process
                run_dir.rmdir()


@contextmanager
def _new_ledger(folder: Path, config: SampleConfig, plugins: SamplePlugins, console: Console) -> Iterator[Ledger]:
    """A ledger of every row, which vanishes unless it is given another name."""
    unnamed = folder / f".{LEDGER}.partial"
    ledger = Ledger(unnamed, is_new=True)
    try:
        with ledger.transaction():
            file = fill(ledger, config, plugins)
        print_intake(console, ledger, config, file)
        yield ledger
    finally:
        ledger.close()
        if ledger.path == unnamed:
            unnamed.unlink(missing_ok=True)
            unnamed.with_name(f"{unnamed.name}-journal").unlink(missing_ok=True)


def _begin(run_dir: Path, ledger: Ledger, config: SampleConfig, plugins: SamplePlugins) -> None:
    """Put a new run in the place of what the folder held."""
    for name in reversed(_RESULTS):  # the ledger last, so that what is left half-removed still counts as a run
        (run_dir / name).unlink(missing_ok=True)
    ledger.rename(run_dir / LEDGER)
    write_run_files(run_dir, config, plugins.all())


def _model_name(config: SampleConfig) -> str:
    return config.model.name if config.model else config.adapter or ""
