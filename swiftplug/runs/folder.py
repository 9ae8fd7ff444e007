"""The folder of a run: whether the run may write into it, and the files that every run writes there."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from swiftplug import __version__
from swiftplug.config.load import to_yaml
from swiftplug.config.resume import CONFIG, MANIFEST, read_record
from swiftplug.config.schema import RunConfig
from swiftplug.errors import UserError
from swiftplug.plugin import Labels
from swiftplug.plugin.registry import LoadedPlugin, PluginChoice, Registry

MARKER = "swiftplug.json"
KEPT_BASE = "base_model"  # the folder of a base model that exists nowhere else
STAGED_BASE = f".{KEPT_BASE}.partial"
_RECORDED_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")


def check_new_folder(folder: Path, option: str) -> None:
    """Check that a folder that must not exist can be made; nothing is created.

    Args:
        folder: The folder.
        option: What named it, for the message.

    Raises:
        UserError: It exists, or cannot be made.
    """
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{option}: exists; name a folder that does not")
    there = next(path for path in folder.absolute().parents if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise UserError(f"{option}: {there} is no folder, so none can be made in it")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{option}: {there} cannot be written; name another folder, or change its permissions")


def check_output_folder(folder: Path, *, is_own: bool, holds_results: bool, resume: bool, overwrite: bool) -> None:
    """Check that a run may write into a folder; nothing is created or changed.

    Args:
        folder: The run's folder.
        is_own: Whether a run of the same command has begun there.
        holds_results: Whether that run left anything that is worth keeping.
        resume: Whether to continue the run in it.
        overwrite: Whether to replace the run in it.

    Raises:
        UserError: It cannot be a folder, cannot be written, holds other files, or holds the results of a run that is
            neither resumed nor overwritten.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite cannot be combined: continue the run, or replace it")
    try:
        if folder.is_symlink() and not folder.exists():
            raise UserError(f"output_dir: {folder} is a broken symlink to {folder.readlink()}; expected a folder")
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise UserError(f"output_dir: {folder} cannot be a folder: {there} is a file")
        held = {path.name for path in folder.iterdir() if _holds_something(path)} if there == folder else set()
    except OSError as error:
        raise UserError(f"output_dir: cannot use {folder}: {error.strerror}") from None
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"output_dir: {there} cannot be written; name another folder, or change its permissions")
    if held and not is_own:
        what = "a run of another command" if {CONFIG, MANIFEST} <= held else "other files"
        raise UserError(f"output_dir: {folder} holds {what}; name another folder")
    if holds_results and not resume and not overwrite:
        raise UserError(
            f"output_dir: {folder} holds another run; name another folder, continue that run with --resume, or start "
            "over with --overwrite"
        )


def _holds_something(path: Path) -> bool:
    """Whether this is a file, or a folder with one; what a killed process had begun to write does not count."""
    if ".partial" in path.name:
        return False
    return path.is_symlink() or not path.is_dir() or any(map(_holds_something, path.iterdir()))


def check_inputs_are_kept(folder: Path, removed: Iterable[Path], inputs: Iterable[str]) -> None:
    """Check that a run that overwrites another removes nothing that it reads.

    Args:
        folder: The run's folder.
        removed: The files and folders in it that will be removed.
        inputs: What the run reads, as its config names it.

    Raises:
        UserError: It reads one of them, or a model that they make up.
    """
    gone = {path.resolve() for path in removed}
    for name in inputs:
        path = Path(name.partition("#")[0]).expanduser()
        place = path.resolve()
        if place == folder.resolve() or not gone.isdisjoint({place, *place.parents}):
            raise UserError(f"output_dir: --overwrite would remove {path}, which this run reads; name another folder")


@contextmanager
def run_folder(folder: Path) -> Iterator[None]:
    """The folder of a run, made if it does not exist, and removed again if nothing was written into it.

    Raises:
        UserError: It cannot be made.
    """
    existed = folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir: cannot make the folder {folder}: {error.strerror}") from None
    try:
        yield
    finally:
        if not existed:
            with suppress(OSError):  # not empty: this run or another process's has begun there
                folder.rmdir()


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from running in a folder at the same time.

    Raises:
        UserError: One does.
    """
    if sys.platform == "win32":  # no folder can be opened there
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"output_dir: another process is running in {folder}") from None
    except OSError:
        pass  # the file system has no locks
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to: renamed to `path` if the block succeeds, removed if it fails."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into: renamed to `folder`, which must not exist, or removed if the block fails.

    Raises:
        UserError: It cannot be made, or another process is writing it.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    with run_folder(folder.parent), run_folder(partial), locked_folder(partial):
        try:
            _empty(partial)  # a killed process may have left something
            yield partial
            if folder.exists():
                raise UserError(f"{folder}: has appeared meanwhile; nothing in it was changed")
            partial.rename(folder)
        finally:
            if partial.is_dir():
                _empty(partial)
                partial.rmdir()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_atomically(path: Path, text: str) -> None:
    """Write a file that appears only when it is complete."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def begin_record(
    folder: Path,
    config: RunConfig,
    plugins: Iterable[LoadedPlugin],
    *,
    resumed: bool,
    step: int | None = None,
    **more: Any,
) -> None:
    """Write `run.json` and `config.yaml` at the start of a run: they record what is needed to reproduce it.

    Args:
        folder: The run's folder.
        config: Its config.
        plugins: Its plugins.
        resumed: Whether the record of the run's earlier commands is continued.
        step: The step from which a training is resumed; it is recorded with the command.
        more: Other entries of `run.json`.
    """
    before = read_record(folder) if resumed else {}
    records = [plugin_record(plugin) for plugin in plugins]
    command: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "command": sys.argv[1:]}
    if step is not None:
        command["step"] = step
    if replaced := changed_plugins(before.get("plugins", []), records):
        command["replaced_plugins"] = replaced
    record = {
        "commands": [*before.get("commands", []), command],
        "seed": config.seed,
        **describe_environment(),
        "plugins": records,
        **more,
    }
    _write_record(folder, {**before, **record})
    write_atomically(folder / CONFIG, to_yaml(config))


def describe_environment() -> dict[str, Any]:
    """What a run runs with: the Git commit of the current folder, Python, the platform, and versions of libraries."""
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {
            "swiftplug": __version__,
            **{name: importlib.metadata.version(name) for name in _RECORDED_LIBRARIES},
        },
    }


def changed_plugins(before: Iterable[dict[str, Any]], now: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of some recorded plugins whose source or version others of the same kind and name do not have."""

    def key(plugin: dict[str, Any]) -> tuple[str, str]:
        return plugin["kind"], plugin["name"]

    facts = {key(plugin): (plugin["version"], plugin["source_sha256"]) for plugin in now}
    return [each for each in before if facts.get(key(each), ()) not in ((), (each["version"], each["source_sha256"]))]


def add_to_record(folder: Path, **entries: Any) -> None:
    """Add entries to `run.json`, or replace them."""
    _write_record(folder, {**read_record(folder), **entries})


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    write_atomically(folder / MANIFEST, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


class Head(NamedTuple):
    """The output head of a model, if it is not that of a language model.

    Attributes:
        kind: As in `Task.head`: what it gives numbers for.
        labels: What these numbers stand for.
    """

    kind: Literal["sequence", "token"]
    labels: Labels


class Marker(NamedTuple):
    """`swiftplug.json`: how to load the weights beside it.

    Attributes:
        base_model: The base model as in the config (a folder, hub id or model plugin, with its options), and the path
            to its folder, if it has one, from the folder of this file: what is moved together stays together.
        model_options: The config's `model_options`.
        seed: The run's seed, which a model plugin may have used to initialize its weights.
        tuner: The qualified name of the tuner plugin, with its options. The Python file of a plugin is not recorded:
            a downloaded folder must not decide which code runs here.
        task: The qualified name of the task, its `head` with the names and the `problem_type` of its labels, and its
            `step_separator`, if it has steps; None in older files, whose models are language models.
    """

    base_model: dict[str, Any]
    model_options: dict[str, Any]
    seed: int
    tuner: dict[str, Any]
    task: dict[str, Any] | None = None

    @property
    def head(self) -> Head | None:
        """The model's head; None if it is that of a language model."""
        if self.task is None or self.task["head"] == "language":
            return None
        return Head(self.task["head"], Labels(tuple(self.task["labels"]), self.task["problem_type"]))

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


def base_models(name: str) -> list[str]:
    """The base model of a run's adapter, its own base model, and so on."""
    found: list[str] = []
    while is_adapter_run(name) and (marker := Marker.read(name)):
        name = str(marker.base_choice(name)["name"])
        if name in found:
            break
        found.append(name)
    return found


def plugin_record(plugin: LoadedPlugin) -> dict[str, Any]:
    """What identifies a plugin: kind, name with its distribution, version, source and options."""
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
