"""Fills the ledger before anything is sampled: reads and checks every row and every existing candidate."""

import hashlib
from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftplug.config.resume import config_difference
from swiftplug.config.schema import SampleConfig
from swiftplug.data.chat.tools import write_turns
from swiftplug.data.read.conversation import Conversation
from swiftplug.data.read.messages import MESSAGE_KEYS
from swiftplug.data.read.report import UnreadKeys
from swiftplug.data.read.sources import Source, check_columns, open_source
from swiftplug.errors import UserError, broken_link
from swiftplug.formatting import format_count
from swiftplug.plugin.registry import LoadedPlugin, PluginChoice
from swiftplug.plugin.tools_format import ToolsFormat
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.plugins import RunPlugins, free_options
from swiftplug.sampling.candidates_file import CandidatesFile
from swiftplug.sampling.judging import check_judges, tried_positions
from swiftplug.sampling.ledger import NO_REFERENCE, USABLE, Ledger
from swiftplug.sampling.rows import (
    READ_COLUMNS,
    TEMPLATE_KWARGS,
    Row,
    WriteAnswer,
    answer_text,
    read_rows,
    reference_candidate,
)
from swiftplug.sampling.scoring import Scorer, check_parameters, check_references

if TYPE_CHECKING:
    from swiftplug.data.chat.render import ChatRenderer


def read_inputs(
    ledger: Ledger, config: SampleConfig, plugins: RunPlugins, scorers: Sequence[Scorer]
) -> CandidatesFile | None:
    """Read every row and every existing candidate into a new ledger; returns the file of candidates, if any."""
    sources = _open_sources(config, plugins)
    check_columns(config.data.columns, sources)
    unread = UnreadKeys()
    raw = chain.from_iterable(source.read() for source in sources)
    for row in read_rows(raw, config.data.columns, config.system, answer_writer(Arguments(config, plugins))):
        ledger.add_row(row)
        count_messages(row, unread)
        if not scorers:  # they get all columns
            unread.count_row({name: row.columns[name] for name in row.columns if name not in READ_COLUMNS})
    file = CandidatesFile(Path(config.candidates_file).expanduser()) if config.candidates_file is not None else None
    if file:
        file.read_into(ledger, has_dataset=bool(sources))
        unread.add(file.unread)
    everything = range(ledger.count_rows())
    _check_rows(ledger, everything, config)
    _check_references(ledger, everything, config, scorers)
    check_parameters(scorers, ledger.columns(), ledger.count(f"{USABLE} AND NOT {NO_REFERENCE}", everything) > 0)
    tried = [row for at in tried_positions(len(everything)) for row in ledger.rows(range(at, at + 1))]
    check_judges([row for row in tried if not row.problem], scorers, plugins.registry, config.score_timeout)
    if file and config.include_reference:
        for row in ledger.rows(everything):
            if row.reference is not None and not row.problem and all(each.sampled for each in row.candidates):
                ledger.add_candidates(row.position, [reference_candidate(row, ledger.free_index(row.position))])
    ledger.put("config", config.plain())
    ledger.put("inputs", _inputs(config, plugins, sources))
    ledger.put("unread", unread.lines())
    ledger.put("scorers", [_fingerprint(scorer.plugin) for scorer in scorers])
    return file


def check_unchanged(ledger: Ledger, config: SampleConfig, plugins: RunPlugins, scorers: Sequence[Scorer]) -> str:
    """Refuse to resume a run whose config, data or sampling plugins have changed since it began.

    Scorers may change, so that they can be corrected: then every candidate is scored again. Returns a note to print.
    """
    if difference := config_difference(ledger.get("config"), config, free_options=free_options(plugins)):
        raise UserError(f"--resume: the folder holds another run: {difference}")
    before, inputs = ledger.get("inputs"), _inputs(config, plugins, _open_sources(config, plugins))
    for name, fingerprint in [*inputs, *before]:
        if [name, fingerprint] not in inputs or [name, fingerprint] not in before:
            raise UserError(
                f"--resume: {name} has changed since this run began; restore it, or start over with --overwrite"
            )
    fingerprints = [_fingerprint(scorer.plugin) for scorer in scorers]
    if fingerprints == ledger.get("scorers"):
        return ""
    with ledger.transaction():
        ledger.forget_rewards()
        ledger.put("scorers", fingerprints)
    return "a scorer has changed since this run began: every candidate is scored again"


def count_messages(row: Row, unread: UnreadKeys) -> None:
    """Count the keys of a row's messages that nothing reads."""
    for message in row.prompt:
        unread.count_message({key: message[key] for key in message.keys() - MESSAGE_KEYS})


def count_unrendered(row: Row, renderer: "ChatRenderer", unread: UnreadKeys) -> None:
    """Count those keys of a row and of its messages that the chat template does not read, although others do."""
    keys = [key for key in renderer.unread(row.as_conversation()) if key in (*MESSAGE_KEYS, "tools", TEMPLATE_KWARGS)]
    unread.count_rendered(keys, row.prompt)


def answer_writer(args: Arguments) -> WriteAnswer:
    """Writes an answer with calls or reasoning as the engine writes candidates: what ORMs compare is one text."""
    plugins = args.plugins
    tools_format: ToolsFormat = plugins.one("tools").bound
    if plugins.one("engine").bound.uses_chat:

        @cache
        def renderer() -> Any:
            from swiftplug.data.chat.render import ChatRenderer

            return ChatRenderer(args.load_tokenizer(), tools_format)

        return lambda conversation: str(renderer().render(conversation).last_answer)

    def write(conversation: Conversation) -> str:
        """With a `<think>` block, and calls in the tools format, or in that of servers' candidates."""
        answer = write_turns(conversation, tools_format).messages[-1]
        if "tool_calls" in answer:
            hermes = plugins.registry.resolve("tools", PluginChoice(name="swiftplug:hermes"), "tools")
            answer = write_turns(conversation, hermes.bound).messages[-1]
        return answer_text(answer)

    return write


def _open_sources(config: SampleConfig, plugins: RunPlugins) -> list[Source]:
    return [
        open_source(choice, plugins.registry, config.where("dataset", index))
        for index, choice in enumerate(config.dataset)
    ]


def _check_rows(ledger: Ledger, everything: range, config: SampleConfig) -> None:
    if not everything:
        names = ", ".join(choice.name for choice in config.dataset)
        raise UserError(f"{config.where('dataset')}: {names} has no rows")
    if not ledger.count(USABLE, everything):
        problem, dropped = next(iter(ledger.problems(everything).items()))
        counted, total = format_count(dropped.count, "row"), format_count(len(everything), "row")
        raise UserError(f"none of the {total} can be used: {problem} ({counted}): {dropped}")


def _check_references(ledger: Ledger, everything: range, config: SampleConfig, scorers: Sequence[Scorer]) -> None:
    """Refuse a run that needs references and has none; leave out the rows that a scorer cannot score."""
    needing = [scorer for scorer in scorers if scorer.bound.needs_reference]
    has_references = ledger.count(f"{USABLE} AND NOT {NO_REFERENCE}", everything) > 0
    check_references(needing, has_references, "--include-reference" if config.include_reference else "")
    if needing:
        ledger.set_problem(f"no reference for {needing[0].name}", NO_REFERENCE)


def _inputs(config: SampleConfig, plugins: RunPlugins, sources: Sequence[Source]) -> list[list[str]]:
    """What the candidates depend on besides the config, each as its name and its fingerprint."""
    inputs = [[f"the dataset {source.name}", source.fingerprint] for source in sources]
    if (name := config.candidates_file) is not None:
        try:
            with Path(name).expanduser().open("rb") as file:
                inputs.append([f"the file {name}", hashlib.file_digest(file, "sha256").hexdigest()])
        except OSError as error:
            raise UserError(f"--candidates-file {name}: {error.strerror}{broken_link(name)}") from None
    for kind in ("model", "engine", "tools"):
        inputs += [[str(plugin.found), _fingerprint(plugin)] for plugin in plugins.of(kind)]
    return inputs


def _fingerprint(plugin: LoadedPlugin) -> str:
    return f"{plugin.found.qualified_name} {plugin.found.version} {plugin.source_hash}"
