"""What goes into the ledger before anything is sampled: every row, every existing candidate, and their checks."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from swiftplug.config.load import to_yaml
from swiftplug.config.schema import SampleConfig
from swiftplug.data.read.sources import Source, open_source
from swiftplug.errors import UserError
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.runs.folder import first_difference
from swiftplug.runs.plugins import RunPlugins
from swiftplug.sampling.candidates_file import CandidatesFile
from swiftplug.sampling.ledger import NO_REFERENCE, USABLE, Ledger
from swiftplug.sampling.rows import read_rows, reference_candidate
from swiftplug.sampling.scoring import Scorer


def read_inputs(
    ledger: Ledger, config: SampleConfig, plugins: RunPlugins, scorers: Sequence[Scorer]
) -> CandidatesFile | None:
    """Read every row and every existing candidate into a new ledger.

    Returns:
        The file of candidates, if there is one.

    Raises:
        UserError: Something cannot be read, no row can be used, or the scorers need references and there are none.
    """
    sources = _open_sources(config, plugins)
    for row in read_rows(sources, config.data.columns, config.system):
        ledger.add_row(row)
    file = CandidatesFile(Path(config.candidates_file).expanduser()) if config.candidates_file is not None else None
    if file:
        file.read_into(ledger, has_dataset=bool(sources))
    everything = range(ledger.count_rows())
    _check_rows(ledger, everything, config)
    _check_references(ledger, everything, config, scorers)
    if file and config.include_reference:
        for row in ledger.rows(everything):
            if row.reference is not None and not row.problem and all(it.sampled for it in row.candidates):
                reference = reference_candidate(row, ledger.free_index(row.position))
                ledger.add_candidates(row.position, [reference])
    ledger.put("config", _sampled_by(config))
    ledger.put("inputs", _inputs(config, plugins, sources))
    ledger.put("scorers", [_fingerprint(scorer.plugin) for scorer in scorers])
    return file


def check_unchanged(ledger: Ledger, config: SampleConfig, plugins: RunPlugins, scorers: Sequence[Scorer]) -> str:
    """Refuse to resume a run whose rows or sampling would differ from when it began.

    Scorers may have changed, because they were corrected: then every candidate is scored again.

    Returns:
        What to print; empty if nothing.

    Raises:
        UserError: The config, a dataset, the file of candidates or a plugin that samples has changed.
    """
    if (before := ledger.get("config")) != (now := _sampled_by(config)):
        raise UserError(f"--resume: the folder holds another run: {first_difference(before, now)}")
    inputs = _inputs(config, plugins, _open_sources(config, plugins))
    for (name, fingerprint), (_, before) in zip(inputs, ledger.get("inputs"), strict=True):
        if fingerprint != before:
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
        problem, count, origin = ledger.problems(everything)[0]
        raise UserError(f"none of the {len(everything)} rows can be used: {problem} ({count} rows): {origin}")


def _check_references(ledger: Ledger, everything: range, config: SampleConfig, scorers: Sequence[Scorer]) -> None:
    """Refuse a run that needs references and has none; leave out the rows that a scorer cannot score."""
    needing = [scorer for scorer in scorers if scorer.needs_reference]
    if not needing and not config.include_reference:
        return
    if not ledger.count(f"{USABLE} AND NOT {NO_REFERENCE}", everything):
        who = f"{needing[0].plugin.found} compares with" if needing else "--include-reference needs"
        raise UserError(
            f"{who} references, and no row has one: the last assistant message, or a column 'reference', 'solution' or "
            "'answer' (data.columns renames)"
        )
    if needing:
        ledger.set_problem(f"no reference for {needing[0].name}", NO_REFERENCE)


def _inputs(config: SampleConfig, plugins: RunPlugins, sources: Sequence[Source]) -> list[list[str]]:
    """What the candidates depend on besides the config: the name of each, and what changes when it changes."""
    inputs = [[f"the dataset {source.name}", source.fingerprint] for source in sources]
    if config.candidates_file is not None:
        inputs.append([f"the file {config.candidates_file}", _hash_of(config.candidates_file)])
    for kind in ("model", "engine", "tools"):
        inputs += [[str(plugin.found), _fingerprint(plugin)] for plugin in plugins.of(kind)]
    return inputs


def _sampled_by(config: SampleConfig) -> str:
    """The config without what may change on resuming: the place of the folder, and the time that scorers may take."""
    return to_yaml(config.model_copy(update={"output_dir": None, "score_timeout": SampleConfig().score_timeout}))


def _hash_of(candidates_file: str) -> str:
    try:
        with Path(candidates_file).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"--candidates-file {candidates_file}: {error.strerror}") from None


def _fingerprint(plugin: LoadedPlugin) -> str:
    return f"{plugin.found.qualified_name} {plugin.found.version} {plugin.source_hash}"
