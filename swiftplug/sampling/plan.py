"""What a sampling run says: what it read, what it is about to do, and what came of it."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from swiftplug.config.schema import SampleConfig
from swiftplug.runs.say import duration, say
from swiftplug.sampling.candidates_file import CandidatesFile
from swiftplug.sampling.ledger import Ledger
from swiftplug.sampling.outputs import PAGE, SAMPLES
from swiftplug.sampling.plugins import SamplePlugins
from swiftplug.sampling.statistics import Summary


def print_intake(console: Console, ledger: Ledger, config: SampleConfig, file: CandidatesFile | None) -> None:
    """Print what became of the rows and of a file of candidates."""
    total = ledger.count_rows()
    own = config.shard_rows(total)
    usable = ledger.count("problem = ''", own)
    shard = f" (shard {config.shard} of {total:,})" if config.shard else ""
    say(console, f"rows: {usable:,} of {len(own):,}{shard}")
    for problem, count, origin in ledger.problems(own):
        say(console, f"  {count:,} left out: {problem}: {origin}{', ...' if count > 1 else ''}")
    if file:
        say(console, f"candidates: {file.taken:,} of {config.candidates_file}")
        if file.unmatched:
            say(console, f"  {file.unmatched:,} left out: of no row of the dataset: {file.first_unmatched}, ...")
        if file.torn:
            say(console, f"  1 left out: the file breaks off within a line: {file.torn}")


def print_plan(console: Console, config: SampleConfig, plugins: SamplePlugins, ledger: Ledger) -> None:
    """Print what a run would do: plugins with their options, how much is sampled, and where it would write."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in facts_of(config, plugins):
        table.add_row(label, value)
    rows = ledger.count("problem = ''", config.shard_rows(ledger.count_rows()))
    if config.candidates_file is None:
        count = config.num_return_sequences
        table.add_row("candidates", f"{rows:,} rows x {count} = {rows * count:,}")
    table.add_row("run folder", str(config.output_dir))
    console.print(table, highlight=False, markup=False)
    say(console, "dry run: nothing was sampled or written", "bold")


def facts_of(config: SampleConfig, plugins: SamplePlugins) -> list[tuple[str, str]]:
    """What tells one run from another, as labels and values."""
    facts = [("model", config.model.name)] if config.model else []
    if config.adapter:
        facts.append(("adapter", config.adapter))
    if config.dataset:
        facts.append(("dataset", ", ".join(choice.name for choice in config.dataset)))
    if config.candidates_file:
        facts.append(("candidates", config.candidates_file))
    else:
        drawn = [
            f"temperature {config.temperature:g}",
            f"at most {config.max_new_tokens} tokens",
            f"seed {config.seed}",
        ]
        if config.top_p < 1:
            drawn.insert(1, f"top-p {config.top_p:g}")
        if config.top_k:
            drawn.insert(1, f"top-k {config.top_k}")
        facts.append(("sampling", ", ".join(drawn)))
    for plugin in plugins.all():
        weight = next((scorer.weight for scorer in plugins.scorers if scorer.plugin is plugin), 1)
        options = {**plugin.options, **({"weight": weight} if weight != 1 else {})}
        told = ", ".join(f"{name}={value!r}" for name, value in options.items())
        version = f" {plugin.found.version}" if plugin.found.version else ""
        source = f"{plugin.found.distribution}{version}"
        facts.append((plugin.found.kind, f"{plugin.found.name}  ({source})  {told}".rstrip()))
    return facts


def print_end(console: Console, run_dir: Path, summary: Summary, failed: int, seconds: float) -> None:
    """Print what came of a run.

    Args:
        console: Where.
        run_dir: Its folder.
        summary: Its statistics.
        failed: How many rows the engine could not answer.
        seconds: How long it took.
    """
    say(console, f"finished in {duration(seconds)}: {summary.kept:,} of {summary.candidates:,} candidates kept", "bold")
    for reason, count in summary.left_out.items():
        say(console, f"  {count:,} {'row' if count == 1 else 'rows'} left out: {reason}")
    told = [f"pass@{k} {share:.1%}" for k, share in summary.pass_at.items()]
    if summary.majority is not None:
        told.append(f"majority {summary.majority:.1%}")
    told += [f"mean {name} {value:.3f}" for name, value in summary.mean_scores.items()]
    if told:
        say(console, f"  {', '.join(told)}")
    if failed:
        say(console, "  rows at which the engine failed are tried again by --resume")
    say(console, f"rows to train on: {run_dir / SAMPLES}; to look through all candidates: {run_dir / PAGE}")
