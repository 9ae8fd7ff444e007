"""Merges defaults, YAML, `--set` and options into one checked config, and writes a config as YAML."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple

from swiftplug.config.draft import C, Draft
from swiftplug.config.resume import config_in_folder, folder_to_resume, numbered_folders
from swiftplug.config.schema import RunConfig, SampleConfig, TrainConfig
from swiftplug.config.yaml_file import write_yaml
from swiftplug.errors import UserError
from swiftplug.formatting import format_command
from swiftplug.plugin.registry import Registry
from swiftplug.plugin.task import Rows

QUICKSTART = Path(__file__).with_name("quickstart.yaml")
QUICKSTART_ONLINE = Path(__file__).with_name("quickstart_online.yaml")
QUICKSTART_SAMPLE = Path(__file__).with_name("quickstart_sample.yaml")


class Loaded(NamedTuple, Generic[C]):
    """A checked config.

    Attributes:
        config: The config.
        quickstart: Whether it is the built-in quickstart, because no model, dataset or config was given.
    """

    config: C
    quickstart: bool


def load_train_config(
    path: str | None, options: Mapping[str, Any], sets: Sequence[str], *, resume: bool = False
) -> Loaded[TrainConfig]:
    """Merge defaults, YAML, `--set` and options; each overrides those before it.

    With no config, model or dataset, the built-in quickstart is the YAML, or for a task that draws answers another one,
    which goes on from the model of the last quickstart run in `runs/`.
    An option or a `--set` that names another plugin than the YAML drops the YAML's options; one that names the same
    keeps them. A repeated option replaces the YAML's list, except `plugins.files`, to which it adds.

    Args:
        path: The YAML file, the folder of a run to take its config and its folder, or None. Paths, also those in the
            file, are relative to the current directory.
        options: Values of options by config key (`{"loss": "focal", "metrics": ["acc"], "data.template": "x.jinja"}`);
            None or an empty list if the option was not given.
        sets: The `KEY=VALUE` of each `--set`, in order.
        resume: Whether the run continues an earlier one; the default `output_dir` is then the newest folder
            of those that are named after the config whose run began with it.

    Raises:
        UserError: Something is unknown, of the wrong type or missing; the message says where.

    Example:
        >>> load_train_config(None, {"loss": "focal"}, ["loss.gamma=2"]).config.loss.options
        {'gamma': 2}
    """
    draft = Draft(TrainConfig, options, sets)
    path = _config_path(path, draft, resume, "model", "dataset")
    quickstart = path is None and not draft.names_any("model", "dataset")
    config = draft.merge_onto(str(QUICKSTART) if quickstart else path)
    name = Path(path).stem if path else config.task.name.rpartition(":")[2]
    if quickstart and _rows_of(config) == Rows.PROMPTS:
        example = format_command("train", "--task", name, "--model", "FOLDER", "--dataset", "FILE", "--orm", "math")
        draft.options["model"] = _last_quickstart_run("train further", f"name both, and a reward: {example}")
        config = draft.merge_onto(str(QUICKSTART_ONLINE))
    elif quickstart:
        name = QUICKSTART.stem
    _require(config.model, "model", "a folder, a hub id or a model plugin", path)
    _require(config.dataset, "dataset", "a file, a hub id or a plugin", path)
    if config.output_dir is None:
        config.output_dir = _default_output_dir(config, name, resume)
    return Loaded(config, quickstart)


def load_sample_config(
    path: str | None, options: Mapping[str, Any], sets: Sequence[str], *, resume: bool = False
) -> Loaded[SampleConfig]:
    """Merge the config of a sampling run, as `load_train_config` does for training.

    With no config, model, dataset or file of candidates, it samples from the last finished quickstart run in `runs/`.

    Raises:
        UserError: Something is unknown, of the wrong type or missing; the message says where.

    Example:
        >>> load_sample_config(None, {"model": "gpt2", "dataset": ["test.jsonl"], "orm": ["math"]}, []).config.orm
        [ScorerChoice(name='math', options={}, weight=1.0)]
    """
    draft = Draft(SampleConfig, options, sets)
    path = _config_path(path, draft, resume, "model", "dataset", "candidates_file")
    quickstart = path is None and not draft.names_any("model", "dataset", "candidates_file")
    if quickstart:
        draft.options["model"] = _last_quickstart_run("sample from", "give --model and --dataset")
        path = str(QUICKSTART_SAMPLE)
    config = draft.merge_onto(path)
    _check_candidates_file(config)
    if config.candidates_file is None:
        _require(config.dataset, "dataset", "a file, a hub id or a plugin", path)
    if config.output_dir is None:
        name = "quickstart-samples" if quickstart else Path(path).stem if path else "sample"
        config.output_dir = _default_output_dir(config, name, resume)
    return Loaded(config, quickstart)


def load_model_config(model: str, options: Mapping[str, Any], sets: Sequence[str]) -> SampleConfig:
    """The config of a command that only uses a model, as for sampling from it.

    Args:
        model: A folder of a run, a model folder, a hub id or a model plugin.
        options: Values of options by config key; None if the option was not given.
        sets: The `KEY=VALUE` of each `--set`, in order.

    Raises:
        UserError: Something is unknown or of the wrong type, or the engine is `none`; the message says where.
    """
    config = Draft(SampleConfig, {"model": model, **options}, sets).merge_onto(None)
    if not config.generates:
        raise UserError(
            f"{config.where('engine')}: 'none' generates no answers; name one that does, such as transformers"
        )
    return config


def _check_candidates_file(config: SampleConfig) -> None:
    """Existing candidates need engine `none`, and engine `none` needs existing candidates."""
    if not config.generates and config.candidates_file is None:
        raise UserError(
            f"{config.where('engine')}: engine 'none' only scores; name existing candidates with --candidates-file"
        )
    if config.generates and config.candidates_file is not None:
        raise UserError(
            f"{config.where('candidates_file')}: scoring existing candidates needs --engine none, but the engine "
            f"is {config.engine.name!r}"
        )


def _require(value: Any, key: str, what: str, path: str | None) -> None:
    if not value:
        where = f"{path}: " if path else ""
        raise UserError(f"{where}no {key}; name {what} with --{key} or the key {key!r}")


def _config_path(path: str | None, draft: Draft[C], resume: bool, *own: str) -> str | None:
    """The config file: of the run, if a folder is given; None if nothing is given that says what to run.

    Args:
        path: What was given for CONFIG.
        draft: The rest of the command line.
        resume: Whether to continue a run.
        own: The keys that say what to run where there is no config.
    """
    output_dir = draft.given("output_dir")
    if path is None and resume and not draft.names_any(*own):
        command = "train" if "task" in draft.model.model_fields else "sample"
        if not output_dir:
            example = format_command(command, "FOLDER", "--resume")
            raise UserError(f"--resume: nothing says which run; name its folder or its config: {example}")
        path = str(output_dir)
    if path is None or not Path(path).expanduser().is_dir():
        return path
    if not output_dir:
        draft.options["output_dir"] = path  # the folder may have been renamed since the config was written
    return config_in_folder(path, draft.model)


def _default_output_dir(config: RunConfig, name: str, resume: bool) -> str:
    """`runs/NAME`, or `runs/NAME-2` and so on if there are such folders already; to resume, see `folder_to_resume`.

    The processes that `torchrun` starts must agree, although one may create the folder before another looks: they take
    `runs/NAME` without looking. With `--nproc`, the folder is chosen before the processes start.
    """
    if resume:
        return str(folder_to_resume(name, config))
    return numbered_folder(name, resume=False)


def numbered_folder(name: str, *, resume: bool) -> str:
    """The first free of the folders `runs/NAME`, `runs/NAME-2` and so on; to resume, the last that holds something."""
    last = max(numbered_folders(name), default=0) if "WORLD_SIZE" not in os.environ else 0
    number = last if resume and last else last + 1
    return str(Path("runs", f"{name}-{number}" if number > 1 else name))


def _rows_of(config: TrainConfig) -> str:
    """The rows that the task of the quickstart reads, as far as its source says; of a plugin file it is not known.

    Raises:
        UserError: The quickstart's problems make no such rows.
    """
    name = config.task.name
    if config.task == TrainConfig.model_fields["task"].default:
        return Rows.ANSWERS
    from swiftplug.plugin.registry.definitions import describe  # no other run needs it

    found = Registry.discover(allow=config.plugins.allow).found("task")
    rows = next((describe(it).rows for it in found if name in (it.name, it.qualified_name)), "")
    if rows not in ("", Rows.ANSWERS, Rows.TEXT, Rows.PROMPTS):
        example = format_command("train", "--task", name, "--model", "FOLDER", "--dataset", "FILE")
        raise UserError(
            f"{config.where('task')}: no model and no dataset given, and task {name} reads rows of {rows}, which the "
            f"built-in quickstart does not have; name both: {example}"
        )
    return rows


def _last_quickstart_run(use: str, instead: str) -> str:
    """The last finished quickstart training under `runs/`, whose model is to be used; what to do instead of that."""
    finished = [folder for folder in numbered_folders("quickstart").values() if (folder / "swiftplug.json").is_file()]
    if not finished:
        raise UserError(
            f"no model and no dataset given, and no finished quickstart run in ./runs to {use}; make one with "
            f"`swiftplug train` (about a minute), or {instead}"
        )
    return str(finished[0])


def to_yaml(config: RunConfig) -> str:
    """A config as YAML with every key in it; loading that gives an equal config."""
    return write_yaml(config.plain())
