"""Defaults, YAML, `--set` and options, merged into one checked config, and the way back to YAML."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from swiftplug.config.complain import explain, shown
from swiftplug.config.output_dir import default_output_dir
from swiftplug.config.overrides import Override, apply_overrides
from swiftplug.config.schema import TrainConfig
from swiftplug.config.tree import Origin, Origins, Tree
from swiftplug.config.yaml_text import read_yaml, write_yaml
from swiftplug.errors import UserError, nearest
from swiftplug.plugin.choice import PluginChoice

QUICKSTART = Path(__file__).with_name("quickstart.yaml")
_DEFAULTS = {
    key: field.default.name
    for key, field in TrainConfig.model_fields.items()
    if isinstance(field.default, PluginChoice)
}


class Loaded(NamedTuple):
    """A config, checked.

    Attributes:
        config: The config.
        quickstart: Whether it is the embedded quickstart, for want of a model, a dataset and a config.
    """

    config: TrainConfig
    quickstart: bool


def load_train_config(
    path: str | None, options: Mapping[str, Any], sets: Sequence[str], *, resume: bool = False
) -> Loaded:
    """Merge what the user said, where the later beats the earlier: defaults, YAML, `--set`, options.

    Without a config, a model and a dataset it is the embedded quickstart, on which `--set` and options act likewise.
    An option or a `--set` that names another plugin than the YAML drops the YAML's options; one that names the same
    keeps them. A repeated option replaces the YAML's list, but `plugins.files`, to which it adds.

    Args:
        path: The YAML file, relative to the current directory as all paths in it are. None: there is none.
        options: Values of options by config key (`{"loss": "focal", "metrics": ["acc"], "data.template": "x.jinja"}`);
            None and an empty list mean that the option was not given.
        sets: The `KEY=VALUE` of each `--set`, in order.
        resume: Whether the run goes on; it decides which run folder is meant where none is named.

    Raises:
        UserError: Something is unknown, of the wrong type or missing; the message says where.

    Example:
        >>> load_train_config(None, {"loss": "focal"}, ["loss.gamma=2"]).config.loss.options
        {'gamma': 2}
    """
    given = {key: value for key, value in options.items() if value not in (None, [], ())}
    overrides = [Override.parse(text) for text in sets]
    named = {*given, *(override.key for override in overrides if override.names_plugin)}
    quickstart = path is None and not named & {"model", "dataset"}
    if quickstart:
        path = str(QUICKSTART)
    tree = _read(path) if path is not None else Tree({}, Origins())
    apply_overrides(tree, given, overrides, _DEFAULTS)
    tree.value = {key: value for key, value in tree.value.items() if value is not None}
    try:
        config = TrainConfig.model_validate(tree.value)
    except ValidationError as error:
        raise explain(error, tree, TrainConfig) from error
    _require_input(config, path)
    if config.output_dir is None:
        config.output_dir = default_output_dir(Path(path).stem if path else config.task, resume)
    config.remember(tree.origins)
    return Loaded(config, quickstart)


def to_yaml(config: TrainConfig) -> str:
    """A config as YAML with every key in it; loading that gives an equal config."""
    return write_yaml({name: _plain(getattr(config, name)) for name in type(config).model_fields})


def _plain(value: Any) -> Any:
    if isinstance(value, PluginChoice):
        return value.to_yaml()
    if isinstance(value, BaseModel):
        return value.model_dump()
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _read(path: str) -> Tree:
    text = _read_text(path)
    value, lines = read_yaml(text, lambda line: f"{path}:{line}")
    if value is None:
        raise UserError(f"{path}: is empty, expected keys such as model and dataset")
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping of keys such as model and dataset, found {shown(value)}")
    return Tree(value, Origins({key: Origin(f"{path}:{line}", in_file=True) for key, line in lines.items()}))


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        folder = Path(path).parent
        configs = [str(file) for ending in ("yaml", "yml") for file in folder.glob(f"*.{ending}")]
        raise UserError(f"{path}: no such config{nearest(path, configs)}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _require_input(config: TrainConfig, path: str | None) -> None:
    where = f"{path}: " if path else ""
    if config.model is None:
        raise UserError(f"{where}no model; name a folder, a hub id or a model plugin with --model or the key 'model'")
    if not config.dataset:
        raise UserError(f"{where}no dataset; name a file, a hub id or a plugin with --dataset or the key 'dataset'")
