"""What the folder of a training run tells about the run: its config, its rows, and what it measured."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from swiftplug.config.resume import CONFIG, run_folder_of
from swiftplug.config.yaml_file import read_config
from swiftplug.data.read.conversation import Conversation, RowError
from swiftplug.data.read.formats import to_conversation
from swiftplug.data.read.sources import open_source
from swiftplug.errors import UserError
from swiftplug.plugin import Rows
from swiftplug.plugin.registry import PluginChoice, Registry, fields_of


def recorded_config(name: str) -> dict[str, Any]:
    """The config of the run that a model is of, as YAML has it; empty if it is of none."""
    folder = run_folder_of(name)
    return read_config(str(folder / CONFIG))[0] if folder is not None else {}


def recorded_rows(config: Mapping[str, Any], registry: Registry, count: int) -> tuple[str, list[Conversation]]:
    """The first usable rows of the first dataset of a run that is a file here, and its name; none if there is no such.

    Args:
        config: The run's config; what it says of plugins is left alone: a downloaded one must not decide which code
            runs here.
        registry: Where plugins are found.
        count: The maximum number of rows.
    """
    columns = (config.get("data") or {}).get("columns") or {}
    for each in config.get("dataset") or []:
        fields = fields_of(each)
        name = str(fields["name"])
        if not Path(name.rpartition("#")[0] or name).expanduser().is_file() or registry.has("dataset", name):
            continue
        rows: list[Conversation] = []
        with suppress(UserError):
            source = open_source(PluginChoice(name=name), registry, "dataset")
            for raw in islice(source.read(), count):
                with suppress(RowError):
                    rows.append(to_conversation(raw.row, raw.origin, Rows.PROMPTS, columns))
        if rows:
            return name, rows
    return "", []


def recorded_metrics(name: str) -> dict[str, float]:
    """What a run measured last at or before a model was saved, by name: `eval_loss`, `train_loss` and so on."""
    folder = run_folder_of(name)
    if folder is None:
        return {}
    return {key: value for entry in _logged(Path(name).expanduser(), folder) for key, value in entry.items()}


def _logged(model: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """The entries of the log, of a checkpoint those up to its step."""
    if model != folder:
        with suppress(OSError, ValueError):
            yield from json.loads((model / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        return
    with suppress(OSError, ValueError):
        yield from map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
