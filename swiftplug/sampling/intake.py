"""What goes into the ledger before anything is sampled: every row, every candidate that exists, and their checks."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from swiftplug.config.load import to_yaml
from swiftplug.config.sample_schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Completion
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.runs.manifest import first_difference
from swiftplug.sampling.candidates_file import Read, read_candidates
from swiftplug.sampling.ledger import NO_REFERENCE, Ledger
from swiftplug.sampling.plugins import SamplePlugins, Scorer
from swiftplug.sampling.records import REFERENCE
from swiftplug.sampling.rows import open_sources, read_questions

_CONFIG, _SOURCES, _FILE, _PARTS, _SCORERS = "config", "sources", "file", "parts", "scorers"


class Intake(NamedTuple):
    """What was read.

    Attributes:
        file: What became of the file of candidates; None where there is none.
    """

    file: Read | None


def fill(ledger: Ledger, config: SampleConfig, plugins: SamplePlugins) -> Intake:
    """Read every row and every candidate that exists into a new ledger.

    Args:
        ledger: An empty one.
        config: The run's config.
        plugins: Its plugins.

    Raises:
        UserError: Something cannot be read, no row can be used, or the scorers want references and there are none.
    """
    sources = open_sources(config, plugins.registry)
    ledger.add_rows(read_questions(sources, config.data.columns, config.system))
    read = None
    if config.candidates_file is not None:
        read = read_candidates(Path(config.candidates_file).expanduser(), ledger, bool(sources))
    _check_rows(ledger, config)
    _check_references(ledger, config, plugins.scorers)
    if config.include_reference and read is not None:
        add_references(ledger)
    ledger.put(_CONFIG, _sampled_by(config))
    ledger.put(_SOURCES, json.dumps([source.fingerprint for source in sources]))
    ledger.put(_FILE, _hash_of(config.candidates_file))
    ledger.put(_PARTS, _fingerprint(_parts(plugins)))
    ledger.put(_SCORERS, _fingerprint([scorer.plugin for scorer in plugins.scorers]))
    return Intake(read)


def check_unchanged(ledger: Ledger, config: SampleConfig, plugins: SamplePlugins) -> list[str]:
    """Refuse to go on with a run whose rows or sampling would be other than when it began.

    Scorers may have changed, were they mended say: then every candidate is scored again.

    Returns:
        What the user should know.

    Raises:
        UserError: The config is another one, or a dataset, a file of candidates or a plugin that samples has changed.
    """
    config_before, config_now = ledger.get(_CONFIG) or "", _sampled_by(config)
    if config_before != config_now:
        raise UserError(f"--resume: the folder holds another run: {first_difference(config_before, config_now)}")
    sources = open_sources(config, plugins.registry)
    for source, before in zip(sources, json.loads(ledger.get(_SOURCES) or "[]"), strict=True):
        if source.fingerprint != before:
            raise UserError(f"--resume: the dataset {source.name} has changed since this run began")
    if _hash_of(config.candidates_file) != ledger.get(_FILE):
        raise UserError(f"--resume: the file {config.candidates_file} has changed since this run began")
    before_parts = json.loads(ledger.get(_PARTS) or "[]")
    for plugin, told in zip(_parts(plugins), before_parts, strict=True):
        if json.loads(_fingerprint([plugin])) != [told]:
            raise UserError(
                f"--resume: {plugin.found} has changed since this run began; put it back, or begin the run again by "
                "--overwrite"
            )
    scorers = _fingerprint([scorer.plugin for scorer in plugins.scorers])
    if scorers == ledger.get(_SCORERS):
        return []
    with ledger.transaction():
        ledger.forget_rewards()
        ledger.put(_SCORERS, scorers)
    return ["a scorer has changed since this run began: every candidate is scored again"]


def add_references(ledger: Ledger) -> None:
    """Put the reference answer of every row among its candidates."""
    for row in ledger.rows(range(ledger.count_rows())):
        taken = any(it.finish_reason == REFERENCE for it in ledger.candidates(row.position))
        if row.reference is not None and not row.problem and not taken:
            ledger.add_candidate(row.position, None, Completion(str(row.reference), REFERENCE))


def _check_rows(ledger: Ledger, config: SampleConfig) -> None:
    everything = range(ledger.count_rows())
    if not everything:
        names = ", ".join(choice.name for choice in config.dataset)
        raise UserError(f"{config.where('dataset')}: {names} has no rows")
    if not ledger.count("problem = ''", everything):
        problem, count, origin = ledger.problems(everything)[0]
        raise UserError(f"none of the {len(everything)} rows can be used: {problem} ({count} rows): {origin}")


def _check_references(ledger: Ledger, config: SampleConfig, scorers: Sequence[Scorer]) -> None:
    """Refuse a run without any reference where something wants them; leave rows out that a scorer cannot score."""
    needing = [scorer for scorer in scorers if scorer.needs_reference]
    if not needing and not config.include_reference:
        return
    usable = "problem = '' AND NOT " + NO_REFERENCE
    if not ledger.count(usable, range(ledger.count_rows())):
        who = f"{needing[0].plugin.found} compares with" if needing else "--include-reference needs"
        raise UserError(
            f"{who} references, and no row has one: the last assistant message, or a column 'reference', 'solution' or "
            "'answer' (data.columns renames)"
        )
    if needing:
        ledger.mark(f"no reference for {needing[0].name}", NO_REFERENCE)


def _parts(plugins: SamplePlugins) -> list[LoadedPlugin]:
    """The plugins that what is sampled depends on."""
    return [*([plugins.model] if plugins.model else []), plugins.engine, plugins.tools]


def _sampled_by(config: SampleConfig) -> str:
    """What of a config tells one run from another: neither where it lies nor how long a scorer may take does."""
    return to_yaml(config.model_copy(update={"output_dir": None, "score_timeout": SampleConfig().score_timeout}))


def _hash_of(candidates_file: str | None) -> str:
    if candidates_file is None:
        return ""
    try:
        with Path(candidates_file).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"--candidates-file {candidates_file}: {error.strerror}") from None


def _fingerprint(used: Sequence[LoadedPlugin]) -> str:
    return json.dumps([[it.found.qualified_name, it.found.version, it.source_hash] for it in used])
