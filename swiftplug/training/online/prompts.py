"""What comes before the model of a run that draws: its settings, its prompts, and the order of these."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from datasets import Dataset

from swiftplug.data.batching import DrawSampler
from swiftplug.data.chat.render import ChatRenderer
from swiftplug.data.encode import TOO_LONG, RowEncoder
from swiftplug.data.prepare import PreparedData, check_usable, hashed, open_splits
from swiftplug.data.read.conversation import RowError
from swiftplug.data.read.report import DataReport, SplitReport
from swiftplug.data.read.sources import Source
from swiftplug.data.weights import combine
from swiftplug.errors import UserError
from swiftplug.formatting import format_count
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import RunProgress
from swiftplug.sampling.intake import answer_writer, count_messages, count_unrendered
from swiftplug.sampling.judging import check_judges, tried_positions
from swiftplug.sampling.rows import Row, read_rows
from swiftplug.sampling.scoring import Scorer, check_parameters, check_references, resolve_scorers
from swiftplug.training.online.episodes import Environments, gives_reward
from swiftplug.training.online.steps import rewards_steps


def check_settings(args: Arguments) -> None:
    """Refuse what an online task cannot draw, score or train with; called before the data is read.

    Raises:
        UserError: The engine cannot follow the model, nothing gives a reward, or a key has a value that does not fit.
    """
    config, task, arguments = args.config, args.plugins.one("task").found.name, args.training_args
    engine, registry = args.plugins.one("engine"), args.plugins.registry
    if not engine.bound.follows:
        usable = [found for found in registry.found("engine") if registry.check(found).status == "fits"]
        following = [found.name for found in usable if getattr(found.load(), "follows", False)]
        raise UserError(
            f"{config.where('engine')}: {engine.found.name} cannot draw from a model in training, which task {task} "
            f"needs; expected {' or '.join(following)}"
        )
    environment = Environments(args, args.load_chat()) if args.plugins.of("environment") else None
    scorers = resolve_scorers(config, args.plugins)
    if not scorers and not (environment and gives_reward(environment.plugin)):
        found = f", which {environment.plugin.found} does not give" if environment else ""
        raise UserError(f"task {task} needs a reward{found}: name one with --orm")
    if environment and any(scorer.name == environment.name for scorer in scorers):
        raise UserError(
            f"environment and {environment.name!r} of --orm or --prm have one name; use the qualified name of one"
        )
    for scorer in scorers:
        if rewards_steps(args.task, scorer) and not scorer.bound.places_steps:
            raise UserError(
                f"{config.where('prm')}: {scorer.plugin.found} does not say where the steps end that it rewards "
                f"(step_ends), and task {task} rewards the tokens there; use another, or a task that rewards answers"
            )
    if config.data.too_long not in (None, "drop"):
        raise UserError(f"{config.where('data', 'too_long')}: task {task} takes each prompt whole; expected drop")
    if not config.data.group_by_length:
        raise UserError(
            f"{config.where('data', 'group_by_length')}: task {task} sorts the candidates of each step by length; "
            "expected true"
        )
    if config.reference != "auto" and args.task.needs_reference:
        raise UserError(
            f"{config.where('reference')}: task {task} draws its answers while it trains, so that nothing of them can "
            "be computed before; expected auto"
        )
    if config.temperature == 0:
        raise UserError(f"{config.where('temperature')}: found 0, where all answers are the same; expected more")
    group, least = config.num_return_sequences, args.task.min_group
    if group < least:
        raise UserError(
            f"{config.where('num_return_sequences')}: task {task} compares the answers to a question with each other; "
            f"found {group}, expected {least} or more"
        )
    batch, accumulated = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    if batch * accumulated % group:
        fitting = group // math.gcd(batch, group)
        nearest = max(1, round(accumulated / fitting)) * fitting
        raise UserError(
            f"a step takes {batch} x {accumulated} = {format_count(batch * accumulated, 'answer')} in each process "
            "(training.per_device_train_batch_size x training.gradient_accumulation_steps), which is no multiple of "
            f"num_return_sequences ({group}); the nearest that fits: "
            f"--set training.gradient_accumulation_steps={nearest}"
        )


def not_in_force(args: Arguments) -> Iterator[str]:
    """What a config asks for and an online task does not do."""
    config, task = args.config, args.plugins.one("task").found.name
    whole = f"task {task} reads its prompts in one process and stores none"
    drawn = f"engine {args.plugins.one('engine').found.name} has batches of its own"
    for key, is_given, why in (
        ("data.num_proc", config.data.num_proc > 1, whole),
        ("data.cache_dir", config.data.cache_dir is not None, whole),
        ("training.per_device_eval_batch_size", "per_device_eval_batch_size" in config.training, drawn),
        ("training.eval_accumulation_steps", "eval_accumulation_steps" in config.training, drawn),
        (
            "training.dataloader_drop_last",
            args.training_args.dataloader_drop_last,
            f"every step of task {task} is full",
        ),
        ("prm_reduce", config.prm_reduce != "min" and not config.prm, "there is no PRM"),
    ):
        if is_given:
            yield f"{key}: not in force, as {why}"


def draw_sampler(args: Arguments, prompts: int) -> DrawSampler:
    """The order of so many prompts."""
    arguments = args.training_args
    batch, processes = arguments.per_device_train_batch_size, arguments.world_size
    return DrawSampler(
        prompts,
        group=args.config.num_return_sequences,
        step=batch * arguments.gradient_accumulation_steps * processes,
        iterations=args.task.num_iterations,
        processes=processes,
        batch=batch,
        seed=arguments.seed,
    )


class Prompts(NamedTuple):
    """The prompts of a split, the number of tokens of each, and what became of the rows."""

    rows: list[Row]
    lengths: list[int]
    report: SplitReport

    def as_dataset(self) -> Dataset:
        """The examples of a run: `row` and `length`."""
        columns = {"row": list(range(len(self.rows))), "length": self.lengths}
        return Dataset.from_dict(columns).with_format("numpy")


def read_prompts(args: Arguments, progress: RunProgress) -> PreparedData:
    """Read the prompts of a run as `sample` reads them, and check that its scorers can score answers to them.

    Raises:
        UserError: A dataset is missing, empty or broken, no row of it can be used, or a scorer cannot score its rows.
    """
    config, plugins = args.config, args.plugins
    scorers = resolve_scorers(config, plugins)
    [source], held_out = open_splits(config.dataset, config.eval_dataset, plugins.registry, config.data, config.seed)
    train = _read(source, args, scorers, progress)
    evaluation = _read(held_out, args, scorers, progress) if held_out else None
    tools = plugins.one("tools").bound
    return PreparedData(
        train=train.as_dataset(),
        eval=evaluation.as_dataset() if evaluation else None,
        report=DataReport(train.report, evaluation.report if evaluation else None),
        source=source,
        encoder=RowEncoder(args.load_tokenizer(), tools, combine([]), args.task, config.data),
        prompts=train.rows,
        eval_prompts=evaluation.rows if evaluation else (),
    )


def _read(source: Source, args: Arguments, scorers: Sequence[Scorer], progress: RunProgress) -> Prompts:
    options, tools_format, tokenizer = args.config.data, args.plugins.one("tools").bound, args.load_tokenizer()
    chat, renderer, write_answer = args.load_chat(), ChatRenderer(tokenizer, tools_format), answer_writer(args)
    context = args.context
    report, digest = SplitReport(), hashlib.sha256()
    rows: list[Row] = []
    lengths: list[int] = []
    taken: Counter[str] = Counter()
    with progress.start(f"reading {source.name}", "row") as activity:
        for row in read_rows(hashed(source.read(), digest), options.columns, None, write_answer):
            report.rows += 1
            activity.advance()
            if row.problem:
                report.drop(row.problem, row.origin)
                continue
            try:
                length = len(chat.encode(row.as_prompt(tools_format))[0])
                if length > options.max_length:
                    report.shortest_too_long = min(length, report.shortest_too_long or length)
                    raise RowError(TOO_LONG, f"{length} tokens, max_length is {options.max_length}")
                if context is not None and length > context:
                    raise RowError("longer than the model reads", f"{length} tokens, it reads at most {context}")
            except (RowError, UserError) as error:
                reason, _, detail = str(error).partition(": ")
                report.drop(reason, f"{row.origin} ({detail})" if detail else row.origin)
                continue
            taken[row.id] += 1
            if taken[row.id] > 1:  # as the ledger of a sampling run has it
                row.id = f"{row.id}-{taken[row.id]}"
            count_messages(row, report.unread)
            count_unrendered(row, renderer, report.unread)
            rows.append(row)
            lengths.append(length)
    report.sha256 = digest.hexdigest()
    rows, lengths = _scorable(rows, lengths, args, scorers, report)
    report.kept = report.examples = len(rows)
    report.tokens, report.longest = sum(lengths), max(lengths, default=0)
    check_usable(source, report, args.task, options)
    return Prompts(rows, lengths, report)


def _scorable(
    rows: list[Row], lengths: list[int], args: Arguments, scorers: Sequence[Scorer], report: SplitReport
) -> tuple[list[Row], list[int]]:
    """The rows that the scorers can score; the others are counted as left out.

    Raises:
        UserError: A scorer needs what no row has, or finds the references wrong.
    """
    if not rows:
        return rows, lengths
    needing = [scorer for scorer in scorers if scorer.bound.needs_reference]
    has_references = any(row.reference is not None for row in rows)
    check_references(needing, has_references)
    columns: dict[str, Any] = {name: True for row in rows for name in row.columns}
    check_parameters(scorers, columns, has_references)
    kept = []
    for place, row in enumerate(rows):
        if needing and row.reference is None:
            report.drop(f"no reference for {needing[0].name}", row.origin)
        else:
            kept.append(place)
    rows, lengths = [rows[place] for place in kept], [lengths[place] for place in kept]
    tried = [rows[place] for place in tried_positions(len(rows))]
    check_judges(tried, scorers, args.plugins.registry, args.config.score_timeout)
    return rows, lengths
