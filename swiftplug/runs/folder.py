"""The folder of a run: whether the run may write into it, and the files that every run writes there."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from swiftplug import __version__
from swiftplug.config.load import to_yaml
from swiftplug.config.schema import RunConfig
from swiftplug.errors import UserError
from swiftplug.plugin.registry import LoadedPlugin, PluginChoice, Registry

CONFIG = "config.yaml"
MANIFEST = "run.json"
MARKER = "swiftplug.json"
KEPT_BASE = "base_model"  # the folder of a base model that exists nowhere else
_RECORDED_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")


def check_output_folder(folder: Path, begun: str, *, resume: bool, overwrite: bool | None = None) -> None:
    """Check that a run may write into a folder; nothing is created or changed.

    Args:
        folder: The run's folder.
        begun: The file that shows that a run of the same command has begun there.
        resume: Whether to continue the run in it.
        overwrite: Whether to replace the run in it; None for a command without --overwrite.

    Raises:
        UserError: It is a file, or holds other files, or a run that is neither resumed nor overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir: {folder} is a file; expected a folder")
    held = {path.name for path in folder.iterdir() if ".partial" not in path.name} if folder.is_dir() else set()
    if held and begun not in held:
        what = "a run of another command" if CONFIG in held else "other files"
        raise UserError(f"output_dir: {folder} holds {what}; name another folder")
    if held and not resume and not overwrite:
        start_over = "" if overwrite is None else ", or start over with --overwrite"
        raise UserError(
            f"output_dir: {folder} holds another run; name another folder, continue that run with --resume{start_over}"
        )


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to: renamed to `path` if the block succeeds, removed if it fails."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a file that appears only when it is complete."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_run_files(
    folder: Path, config: RunConfig, plugins: Iterable[LoadedPlugin], results: dict[str, Any] | None = None
) -> None:
    """Write `config.yaml` and `run.json`: they record what is needed to reproduce the run."""
    write_atomically(folder / CONFIG, to_yaml(config))
    manifest = {
        "command": sys.argv[1:],
        "seed": config.seed,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {
            "swiftplug": __version__,
            **{name: importlib.metadata.version(name) for name in _RECORDED_LIBRARIES},
        },
        "plugins": [_plugin_record(plugin) for plugin in plugins],
        **({} if results is None else {"results": results}),
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def config_difference(before: Any, now: Any, key: str = "") -> str:
    """The first key in which two configs differ, whatever the order of their keys; empty if there is none."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = {**before, **now}
        found = (config_difference(before.get(name), now.get(name), f"{key}.{name}".lstrip(".")) for name in names)
        return next(filter(None, found), "")
    shown = [json.dumps(value, ensure_ascii=False, default=str) for value in (before, now)]
    return "" if before == now else f"{key}: {shown[0]} there, {shown[1]} here"


class Marker(NamedTuple):
    """`swiftplug.json`: how to load the weights beside it.

    Attributes:
        base_model: The base model as in the config (a folder, hub id or model plugin, with its options), and the path
            to its folder, if it has one, from the folder of this file: what is moved together stays together.
        model_options: The config's `model_options`.
        seed: The run's seed, which a model plugin may have used to initialize its weights.
        tuner: The qualified name of the tuner plugin, with its options. The Python file of a plugin is not recorded:
            a downloaded folder must not decide which code runs here.
    """

    base_model: dict[str, Any]
    model_options: dict[str, Any]
    seed: int
    tuner: dict[str, Any]

    def base_choice(self, folder: str) -> dict[str, Any]:
        """The base model of what is in a folder, as a config names it.

        Raises:
            UserError: Its folder is not there any more.
        """
        name, relative = self.base_model["name"], self.base_model.get("relative")
        places = [name if Path(name).is_absolute() else None, relative]
        if relative and Path(relative).name == KEPT_BASE:
            places.reverse()
        found = [Path(os.path.normpath(Path(folder).expanduser().resolve() / place)) for place in places if place]
        for path in found:
            if path.is_dir():
                return {"name": str(path)}
        if Path(name).is_absolute():
            raise UserError(
                f"{folder}: its base model is not at {' or '.join(map(str, found))}; if it was moved, write its new "
                f"folder into {Path(folder) / MARKER} as base_model.name"
            )
        return {"name": name, "options": self.base_model.get("options", {})}

    def write(self, folder: Path) -> None:
        """Write it into a folder, as the last file of a save: its presence shows that the save is complete."""
        text = json.dumps(self._asdict(), indent=2, ensure_ascii=False) + "\n"
        (folder / MARKER).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> "Marker | None":
        """Read the one in a folder; None if there is none.

        Raises:
            UserError: The file is not valid.
        """
        path = Path(folder).expanduser() / MARKER
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: is not a valid {MARKER}: {error}") from error


def load_tuner(folder: str, registry: Registry) -> Any:
    """The tuner that saved what is in the folder of a run.

    Raises:
        UserError: It is not installed, or does not take its recorded options.
    """
    marker = Marker.read(folder)
    assert marker is not None
    return registry.resolve("tuner", PluginChoice.model_validate(marker.tuner), f"{folder}/{MARKER}").bound


def absolute_name(name: str) -> str:
    """A model's name, with a relative folder made absolute."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def is_adapter_run(name: str) -> bool:
    """Whether a name is the folder of a run that saved only an adapter."""
    return Marker.read(name) is not None and not (Path(name).expanduser() / "config.json").is_file()


def _plugin_record(plugin: LoadedPlugin) -> dict[str, Any]:
    found = plugin.found
    return {
        "kind": found.kind,
        "name": found.qualified_name,
        "version": found.version,
        "source_sha256": plugin.source_hash,
        "options": json.loads(json.dumps(plugin.options, default=str)),
    }


def _git_commit() -> str | None:
    """The commit of the current folder, followed by `+` if files have changed since; None outside a Git repository."""

    def git(*arguments: str) -> str:
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, env=environment, timeout=10, check=True
        ).stdout.strip()

    try:
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+" if changed else commit
