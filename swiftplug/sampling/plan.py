"""What a sampling run says: what it read, what it is about to do, and what came of it."""

from pathlib import Path

from rich.console import Console

from swiftplug.config.schema import SampleConfig
from swiftplug.runs.console import format_duration, plugin_fact, print_line, print_plan
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
    print_line(console, f"rows: {usable:,} of {len(own):,}{shard}")
    for problem, count, origin in ledger.problems(own):
        print_line(console, f"  {count:,} left out: {problem}: {origin}{', ...' if count > 1 else ''}")
    if file:
        print_line(console, f"candidates: {file.taken:,} of {config.candidates_file}")
        if file.unmatched:
            print_line(console, f"  {file.unmatched:,} left out: of no row of the dataset: {file.first_unmatched}, ...")
        if file.torn:
            print_line(console, f"  1 left out: the file breaks off within a line: {file.torn}")


def print_dry_run(console: Console, config: SampleConfig, plugins: SamplePlugins, ledger: Ledger) -> None:
    """Print what a run would do: plugins with their options, how much is sampled, and where it would write."""
    facts = facts_of(config, plugins)
    rows = ledger.count("problem = ''", config.shard_rows(ledger.count_rows()))
    if config.candidates_file is None:
        count = config.num_return_sequences
        facts.append(("candidates", f"{rows:,} rows x {count} = {rows * count:,}"))
    print_plan(console, [*facts, ("run folder", str(config.output_dir))], "nothing was sampled or written")


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
        facts.append(plugin_fact(plugin, **({"weight": weight} if weight != 1 else {})))
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
    kept = f"{summary.kept:,} of {summary.candidates:,} candidates kept"
    print_line(console, f"finished in {format_duration(seconds)}: {kept}", "bold")
    for reason, count in summary.left_out.items():
        print_line(console, f"  {count:,} {'row' if count == 1 else 'rows'} left out: {reason}")
    figures = [f"pass@{k} {share:.1%}" for k, share in summary.pass_at.items()]
    if summary.majority is not None:
        figures.append(f"majority {summary.majority:.1%}")
    figures += [f"mean {name} {value:.3f}" for name, value in summary.mean_scores.items()]
    if figures:
        print_line(console, f"  {', '.join(figures)}")
    if failed:
        print_line(console, "  rows at which the engine failed are tried again by --resume")
    print_line(console, f"rows to train on: {run_dir / SAMPLES}; to look through all candidates: {run_dir / PAGE}")
