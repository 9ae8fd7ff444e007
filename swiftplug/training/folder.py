"""The folder of a training run: whether it may be written into, and where to go on from."""

import json
from pathlib import Path

from swiftplug.config.load import to_yaml
from swiftplug.config.schema import TrainConfig
from swiftplug.errors import UserError
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.runs.manifest import CONFIG, MANIFEST, first_difference
from swiftplug.training.checkpoint import checkpoints, clear_leftovers

LOG = "log.jsonl"


def check_run_dir(folder: Path, resume: bool) -> None:
    """Refuse a folder that a run must not write into; nothing is made or changed.

    Raises:
        UserError: It holds another run and this one does not resume it, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir: {folder} is a file; expected a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not resume:
        held = "another run" if (folder / CONFIG).exists() else "other files"
        raise UserError(f"output_dir: {folder} holds {held}; name another folder, or go on with that run by --resume")
    partial = {f".{name}.partial" for name in (CONFIG, MANIFEST)}  # a run killed at once leaves no more
    if not (folder / CONFIG).exists() and {path.name for path in folder.iterdir()} - partial:
        raise UserError(f"--resume: {folder} holds other files, and no run to go on with; name another folder")


def open_run_dir(
    folder: Path, config: TrainConfig, plugins: list[LoadedPlugin], resume: bool, allow_changed: bool
) -> Path | None:
    """Make the folder ready for a run, and find the checkpoint to go on from.

    Args:
        folder: The run's folder.
        config: Its config, resolved.
        plugins: Its plugins.
        resume: Whether to go on with the run that is there.
        allow_changed: Whether to go on although a plugin changed since.

    Returns:
        The newest complete checkpoint when resuming, or None to start from the beginning.

    Raises:
        UserError: What is to be resumed is another run than this one, or a plugin of it has changed.
    """
    if not resume or not (folder / CONFIG).exists():
        folder.mkdir(parents=True, exist_ok=True)
        return None
    text = (folder / CONFIG).read_text(encoding="utf-8")
    if text != to_yaml(config):
        raise UserError(f"--resume: {folder / CONFIG} is another run's: {first_difference(text, to_yaml(config))}")
    if not allow_changed and (folder / MANIFEST).exists():
        _refuse_changed_plugins(folder, plugins)
    clear_leftovers(folder)
    found = checkpoints(folder)
    return found[-1] if found else None


def _refuse_changed_plugins(folder: Path, plugins: list[LoadedPlugin]) -> None:
    recorded = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["plugins"]
    before = {(record["kind"], record["name"]): record["source_sha256"] for record in recorded}
    for plugin in plugins:
        key = (plugin.found.kind, plugin.found.qualified_name)
        if key in before and before[key] != plugin.source_hash:
            raise UserError(
                f"--resume: the {key[0]} plugin {key[1]!r} ({plugin.source_file}) has changed since this run began; "
                "put it back, or go on with it as it is by --allow-changed-plugins"
            )
