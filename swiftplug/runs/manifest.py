"""`config.yaml` and `run.json`: with them a run can be made again, and its parts be told from others."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swiftplug import __version__
from swiftplug.plugin.registry import LoadedPlugin

CONFIG = "config.yaml"
MANIFEST = "run.json"


def write_run_files(
    folder: Path, config: str, seed: int, plugins: Sequence[LoadedPlugin], facts: dict[str, Any] | None = None
) -> None:
    """Write `config.yaml` and `run.json`.

    Args:
        folder: The run's folder.
        config: The resolved config, as YAML.
        seed: Of all that is random in the run.
        plugins: The plugins of the run.
        facts: What else `run.json` should tell.
    """
    write_atomically(folder / CONFIG, config)
    manifest = {
        "command": sys.argv[1:],
        "seed": seed,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {"swiftplug": __version__, **_versions()},
        "plugins": [_plugin_record(plugin) for plugin in plugins],
        **(facts or {}),
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that nobody ever sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _plugin_record(plugin: LoadedPlugin) -> dict[str, Any]:
    found = plugin.found
    return {
        "kind": found.kind,
        "name": found.qualified_name,
        "version": found.version,
        "source_sha256": plugin.source_hash,
        "options": json.loads(json.dumps(plugin.options, default=str)),
    }


def first_difference(before: str, now: str) -> str:
    """Where two configs differ, for the message that refuses to go on with another run."""
    pairs = zip((before + "\n(end)").splitlines(), (now + "\n(end)").splitlines(), strict=False)
    old, new = next((old, new) for old, new in pairs if old != new)
    return f"it has {old.strip()!r} where this one has {new.strip()!r}"


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")
    return {name: importlib.metadata.version(name) for name in names}


def _git_commit() -> str | None:
    """The commit of the folder that the command was given in, with `+` behind it where files have changed since."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, env=environment, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            env=environment,
            timeout=10,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+" if changed.strip() else commit
