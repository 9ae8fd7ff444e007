"""Defaults, YAML, `--set` and options, merged into one checked config, and the way back to YAML."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from swiftplug.config.complain import explain, shown
from swiftplug.config.output_dir import default_output_dir, last_quickstart_run
from swiftplug.config.overrides import PLUGIN_KEYS, Override, apply_overrides
from swiftplug.config.sample_schema import SampleConfig
from swiftplug.config.schema import RunConfig, TrainConfig
from swiftplug.config.tree import Origin, Origins, Tree
from swiftplug.config.yaml_text import read_yaml, write_yaml
from swiftplug.errors import UserError, nearest
from swiftplug.plugin.registry.choice import PluginChoice

QUICKSTART = Path(__file__).with_name("quickstart.yaml")
QUICKSTART_SAMPLE = Path(__file__).with_name("quickstart_sample.yaml")

C = TypeVar("C", bound=RunConfig)


class Loaded(NamedTuple, Generic[C]):
    """A config, checked.

    Attributes:
        config: The config.
        quickstart: Whether it is the embedded quickstart, for want of a model, a dataset and a config.
    """

    config: C
    quickstart: bool


def load_train_config(
    path: str | None, options: Mapping[str, Any], sets: Sequence[str], *, resume: bool = False
) -> Loaded[TrainConfig]:
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
    said = _Said.of(options, sets)
    quickstart = path is None and not said.named & {"model", "dataset"}
    if quickstart:
        path = str(QUICKSTART)
    config = _merged(TrainConfig, path, said)
    _require(config.model, "model", "a folder, a hub id or a model plugin", path)
    _require(config.dataset, "dataset", "a file, a hub id or a plugin", path)
    if config.output_dir is None:
        config.output_dir = default_output_dir(Path(path).stem if path else config.task, resume)
    return Loaded(config, quickstart)


def load_sample_config(
    path: str | None, options: Mapping[str, Any], sets: Sequence[str], *, resume: bool = False
) -> Loaded[SampleConfig]:
    """Merge what the user said of a sampling run, as `load_train_config` does of a training run.

    Without a config, a model, a dataset and a file of candidates it samples from the last finished quickstart run in
    the current folder.

    Raises:
        UserError: Something is unknown, of the wrong type or missing; the message says where.

    Example:
        >>> load_sample_config(None, {"model": "gpt2", "dataset": ["test.jsonl"], "orm": ["math"]}, []).config.orm
        [ScorerChoice(name='math', options={}, weight=1.0)]
    """
    said = _Said.of(options, sets)
    quickstart = path is None and not said.named & {"model", "dataset", "candidates_file"}
    if quickstart:
        said = said.with_default("model", last_quickstart_run())
        path = str(QUICKSTART_SAMPLE)
    config = _merged(SampleConfig, path, said)
    _check_candidates_file(config)
    if config.candidates_file is None:
        _require(config.dataset, "dataset", "a file, a hub id or a plugin", path)
    if config.output_dir is None:
        config.output_dir = default_output_dir(_run_name(path), resume)
    return Loaded(config, quickstart)


def _run_name(path: str | None) -> str:
    if path is None:
        return "sample"
    return "quickstart-samples" if path == str(QUICKSTART_SAMPLE) else Path(path).stem


def _check_candidates_file(config: SampleConfig) -> None:
    """Candidates that exist and an engine that makes new ones exclude each other."""
    scores_only = config.engine.name in ("none", "swiftplug:none")
    if scores_only and config.candidates_file is None:
        raise UserError(f"{config.where('engine')}: none samples nothing; name the candidates with --candidates-file")
    if config.candidates_file is not None and not scores_only:
        raise UserError(
            f"{config.where('candidates_file')}: existing candidates are scored with --engine none, and the engine is "
            f"{config.engine.name!r}"
        )


class _Said(NamedTuple):
    """What the command line says.

    Attributes:
        options: The values of options that were given.
        overrides: Every `--set`.
    """

    options: dict[str, Any]
    overrides: list[Override]

    @classmethod
    def of(cls, options: Mapping[str, Any], sets: Sequence[str]) -> "_Said":
        given = {key: value for key, value in options.items() if value not in (None, [], ())}
        return cls(given, [Override.parse(text) for text in sets])

    @property
    def named(self) -> set[str]:
        """The keys that something was named for."""
        of_sets = {it.key for it in self.overrides if it.names_plugin or it.key not in PLUGIN_KEYS}
        return {*self.options, *of_sets}

    def with_default(self, key: str, value: str) -> "_Said":
        return self._replace(options={key: value, **self.options})


def _merged(model: type[C], path: str | None, said: _Said) -> C:
    tree = _read(path) if path is not None else Tree({}, Origins())
    fields = model.model_fields.items()
    defaults = {key: field.default.name for key, field in fields if isinstance(field.default, PluginChoice)}
    apply_overrides(tree, said.options, said.overrides, defaults)
    tree.value = {key: value for key, value in tree.value.items() if value is not None}
    try:
        config = model.model_validate(tree.value)
    except ValidationError as error:
        raise explain(error, tree, model) from error
    config.remember(tree.origins)
    return config


def _require(value: Any, key: str, what: str, path: str | None) -> None:
    if not value:
        where = f"{path}: " if path else ""
        raise UserError(f"{where}no {key}; name {what} with --{key} or the key {key!r}")


def to_yaml(config: RunConfig) -> str:
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
