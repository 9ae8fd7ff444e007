"""Earlier runs: where their folders are, and whether a config is the one that a run to resume began with."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from swiftplug.config.keys import keys_of
from swiftplug.config.schema import RunConfig
from swiftplug.config.yaml_file import read_config, write_inline
from swiftplug.errors import UserError

CONFIG = "config.yaml"
MANIFEST = "run.json"

# The keys that change neither the weights of a training nor the answers of a sampling run. What a plugin does follows
# from its source, which is compared by itself, wherever its file is.
_MAY_CHANGE = {
    "output_dir",
    "plugins",
    "score_timeout",
    "workers",
    "executor",
    "ray",
    "data.num_proc",
    "data.cache_dir",
    "training.logging_strategy",
    "training.logging_steps",
    "training.logging_first_step",
    "training.log_level",
    "training.log_level_replica",
    "training.log_on_each_node",
    "training.report_to",
    "training.run_name",
    "training.project",
    "training.trackio_space_id",
    "training.save_total_limit",
    "training.skip_memory_metrics",
    "training.ddp_timeout",
    "training.torch_empty_cache_steps",
    "training.per_device_eval_batch_size",
    "training.eval_accumulation_steps",
    "training.dataloader_num_workers",
    "training.dataloader_prefetch_factor",
    "training.dataloader_persistent_workers",
    "training.dataloader_pin_memory",
}
_LENGTH = ("training.num_train_epochs", "training.max_steps")
_SHOWN = 3


def config_difference(
    before: dict[str, Any],
    now: RunConfig,
    *,
    ignoring: Collection[str] = (),
    free_options: Mapping[str, Collection[str]] | None = None,
) -> str:
    """The keys in which the config of a run differs from the one that it began with; empty if there is none.

    Args:
        before: The config that the run began with, as its `config.yaml` has it.
        now: The config to continue it with.
        ignoring: Keys that are not compared, besides those that never change what a run gives.
        free_options: By plugin (`engine:openai`), the options that may change too.

    Example:
        >>> config_difference({"seed": 1}, TrainConfig(seed=2))
        'seed: 1 there, 2 here'
    """
    model = type(now)
    try:  # a key that an earlier version did not have acted as its default does
        begun = model.model_validate({key: value for key, value in before.items() if value is not None}).plain()
    except ValidationError:
        begun = before
    plugins = {key.name for key in keys_of(model).values() if key.is_plugin}

    def comparable(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: _plugins(key, value, free_options or {}) if key in plugins else value for key, value in values.items()
        }

    found = list(_differences(comparable(begun), comparable(now.plain()), "", {*_MAY_CHANGE, *ignoring}))
    shown = "; ".join(text for _, text in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    longer = any(key in _LENGTH for key, _ in found)
    return f"{shown}{more}{' (the learning rate is planned over the whole run)' if longer else ''}"


def _plugins(key: str, value: Any, free_options: Mapping[str, Collection[str]]) -> Any:
    """A plugin, or a list of them, each as a mapping of its name and those options that may not change."""
    if isinstance(value, list):
        return [_plugins(key, item, free_options) for item in value]
    if not isinstance(value, (str, dict)):
        return value
    fields = {"name": value} if isinstance(value, str) else dict(value)
    name = str(fields.pop("name", "")).removeprefix("swiftplug:")
    free = free_options.get(f"{key}:{name}", ())
    return {"name": name} | {option: item for option, item in fields.items() if option not in free}


def _differences(before: Any, now: Any, key: str, free: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each key that differs, and how it does; inside mappings that are of one plugin, or of none."""
    if key in free or before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict) and before.get("name") == now.get("name"):
        for name in {**before, **now}:
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}".lstrip("."), free)
    else:
        yield key, f"{key}: {_shown(before)} there, {_shown(now)} here"


def _shown(value: Any) -> str:
    """A value as a config writes it; a plugin without options by its name."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict) and value.keys() == {"name"}:
        return str(value["name"])
    return "not given" if value is None else write_inline(value)


def numbered_folders(name: str) -> dict[int, Path]:
    """The folders `runs/NAME`, `runs/NAME-2` and so on that hold something, by number, the newest first."""
    found = {}
    for folder in Path("runs").glob("*"):
        match = re.fullmatch(rf"{re.escape(name)}(?:-([2-9]|[1-9]\d+))?", folder.name)
        if match and folder.is_dir() and any(folder.iterdir()):
            found[int(match[1] or 1)] = folder
    return dict(sorted(found.items(), reverse=True))


def folder_to_resume(name: str, config: RunConfig) -> Path:
    """The newest of the folders that are named after a config whose run began with it; else the newest of them all."""
    folders = [*numbered_folders(name).values()]
    belonging = [folder for folder in folders if _belongs(folder, config)]
    return next(iter(belonging or folders), Path("runs", name))


def _belongs(folder: Path, config: RunConfig) -> bool:
    try:
        return not config_difference(read_config(str(folder / CONFIG))[0], config)
    except UserError:
        return False


def read_record(folder: Path) -> dict[str, Any]:
    """What `run.json` in a folder holds; nothing if there is none that swiftplug wrote."""
    try:
        record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return record if "swiftplug" in record["versions"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def run_folder_of(name: str) -> Path | None:
    """The folder of the run that a model is of: its own, or of a `checkpoint-N` the one around it; None if of none."""
    model = Path(name).expanduser()
    is_inside = re.fullmatch(r"checkpoint-\d+", model.name) and not (model / CONFIG).is_file()
    folder = model.parent if is_inside else model
    return folder if model.is_dir() and (folder / CONFIG).is_file() and read_record(folder) else None


def config_in_folder(folder: str, config: type[RunConfig]) -> str:
    """The config of the run in a folder.

    Raises:
        UserError: The folder holds no run of this command.
    """
    path = Path(folder).expanduser()
    if not (path / CONFIG).is_file():
        parent = path.resolve().parent
        hint = f"; did you mean {str(path.parent)!r}?" if (parent / CONFIG).is_file() else ""
        raise UserError(
            f"{folder}: is a folder, expected a YAML file, or the folder of a run, which has a {CONFIG}{hint}"
        )
    values, _ = read_config(str(path / CONFIG))
    is_training, wants_training = "task" in values, "task" in config.model_fields
    if wants_training and not is_training:
        raise UserError(
            f"{folder}: is the folder of a sampling run; to train on its rows, use --dataset {folder}/samples.jsonl"
        )
    if is_training and not wants_training:
        raise UserError(f"{folder}: is the folder of a training run; to sample from its model, use --model {folder}")
    return str(path / CONFIG)
