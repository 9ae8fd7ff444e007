"""What a sampling run prints: inputs, plan, progress and results."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from swiftplug.config.schema import SampleConfig
from swiftplug.formatting import format_count, format_duration, format_number, format_percent
from swiftplug.runs.console import plugin_fact, print_facts, print_line
from swiftplug.runs.plugins import RunPlugins
from swiftplug.sampling.candidates_file import CandidatesFile
from swiftplug.sampling.ledger import USABLE, Ledger
from swiftplug.sampling.outputs import PAGE, SAMPLES
from swiftplug.sampling.rows import is_cut_off
from swiftplug.sampling.scoring import Scorer
from swiftplug.sampling.selection import CUT_OFF
from swiftplug.sampling.statistics import Summary


def print_inputs(console: Console, config: SampleConfig, ledger: Ledger, file: CandidatesFile | None) -> None:
    """Print how many rows and existing candidates can be used, and why others were left out."""
    total = ledger.count_rows()
    own = config.shard_rows(total)
    shard = f" (shard {config.shard} of {total:,})" if config.shard else ""
    print_line(console, f"rows: {ledger.count(USABLE, own):,} of {len(own):,}{shard}")
    for problem, dropped in ledger.problems(own).items():
        print_line(console, f"  {dropped.count:,} left out: {problem}: {dropped}")
    for line in ledger.get("unread"):
        print_line(console, f"  {line}")
    if file:
        print_line(console, f"candidates: {file.taken:,} of {config.candidates_file}")
        if file.unmatched:
            first = file.first_unmatched + (", ..." if file.unmatched > 1 else "")
            print_line(console, f"  {file.unmatched:,} left out: of no row of the dataset: {first}")
        if file.torn:
            print_line(console, f"  1 left out: the last line is incomplete: {file.torn}")


def print_sample_plan(console: Console, config: SampleConfig, facts: list[tuple[str, str]], ledger: Ledger) -> None:
    """Print what a run would do: plugins with their options, the number of candidates, and the run folder."""
    if config.candidates_file is None:
        rows, count = ledger.count(USABLE, config.shard_rows(ledger.count_rows())), config.num_return_sequences
        facts = [*facts, ("candidates", f"{format_count(rows, 'row')} x {count} = {rows * count:,}")]
    print_facts(console, [*facts, ("run folder", str(config.output_dir))])


def run_facts(config: SampleConfig, plugins: RunPlugins, scorers: Sequence[Scorer]) -> list[tuple[str, str]]:
    """What distinguishes a run from others, as labels and values."""
    facts = [plugin_fact(plugin) for plugin in plugins.of("model")]
    if config.model and not facts:
        facts.append(("model", config.model.name))
    if config.adapter:
        facts.append(("adapter", config.adapter))
    if config.dataset:
        facts.append(("dataset", ", ".join(choice.name for choice in config.dataset)))
    if config.candidates_file:
        facts.append(("candidates", config.candidates_file))
    else:
        sampling = [f"temperature {config.temperature:g}"]
        if config.top_k:
            sampling.append(f"top-k {config.top_k}")
        if config.top_p < 1:
            sampling.append(f"top-p {config.top_p:g}")
        sampling += [f"at most {config.max_new_tokens} tokens", f"seed {config.seed}"]
        facts.append(("sampling", ", ".join(sampling)))
    facts += [plugin_fact(plugin) for kind in ("engine", "tools") for plugin in plugins.of(kind)]
    for scorer in scorers:
        facts.append(plugin_fact(scorer.plugin, **({} if scorer.weight == 1 else {"weight": scorer.weight})))
    return facts


def print_results(console: Console, folder: Path, summary: Summary, failed: int, seconds: float) -> None:
    """Print the summary of a run that took so many seconds; `failed` counts the rows at which the engine failed."""
    sampled = summary.kept - summary.kept_references
    kept = f"{sampled:,} of {format_count(summary.candidates, 'candidate')} kept"
    if summary.kept_references:
        kept += f", and {format_count(summary.kept_references, 'reference')}"
    print_line(console, f"finished in {format_duration(seconds)}: {kept}", "bold")
    for reason, count in summary.left_out.items():
        print_line(console, f"  {format_count(count, 'row')} left out: {reason}")
    passes = [f"pass@{k} {format_percent(share)}" for k, share in summary.pass_at.items()]
    majority = [] if summary.majority is None else [f"majority {format_percent(summary.majority)}"]
    means = [f"mean {name} {format_number(value)}" for name, value in summary.mean_scores.items()]
    for figures in filter(None, (passes, majority + means)):
        print_line(console, f"  {', '.join(figures)}")
    if cut_off := sum(count for reason, count in summary.finish_reasons.items() if is_cut_off(reason)):
        of_all = f"{cut_off:,} of {format_count(summary.candidates, 'candidate')}"
        were, are = ("was", "is") if cut_off == 1 else ("were", "are")
        advice = f" and {are} not kept: raise max_new_tokens, or use --keep-cut-off"
        left_out = advice if CUT_OFF in summary.not_kept else ""
        print_line(console, f"  {of_all} {were} cut off at the token limit{left_out}")
    if failed:
        print_line(console, "  to try the rows again at which the engine failed, use --resume")
    print_line(console, f"rows to train on: {folder / SAMPLES}" if summary.kept else "no rows to train on")
    print_line(console, f"page with all candidates: {folder / PAGE}")
