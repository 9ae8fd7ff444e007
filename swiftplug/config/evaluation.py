"""The configs of an evaluation: of each model one of a training, of which only the evaluation runs, and of sampling."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swiftplug.config.keys import Key, keys_of
from swiftplug.config.load import load_model_config, load_train_config
from swiftplug.config.resume import run_folder_of
from swiftplug.config.schema import (
    DRAW_KEYS,
    DataOptions,
    ModelOptions,
    PluginsSection,
    SampleConfig,
    SampleDataOptions,
    TrainConfig,
)
from swiftplug.errors import UserError, nearest
from swiftplug.formatting import shortest_ends

_MEASURED = (
    "task",
    "tools",
    "plugins",
    "dtype",
    "seed",
    "reference",
    "loss",
    "loss_scale",
    "metrics",
    "data",
    "training",
)
"""The keys of a training's config that decide what an evaluation gives, besides the model."""

_GENERATED = ("system", *DRAW_KEYS)
"""The keys of a sampling run that act in one whose answers are only scored."""

_TRAINING = {
    "bf16",
    "bf16_full_eval",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "eval_accumulation_steps",
    "fp16",
    "fp16_full_eval",
    "liger_kernel_config",
    "per_device_eval_batch_size",
    "tf32",
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
    "use_cpu",
    "use_liger_kernel",
}
"""The fields of TrainingArguments that act at an evaluation."""

_TRAIN, _SAMPLE = keys_of(TrainConfig), keys_of(SampleConfig)


def _chosen(keys: Mapping[str, Key], names: Sequence[str]) -> dict[str, Key]:
    return {name: key for name, key in keys.items() if name.partition(".")[0] in names}


KEYS: dict[str, Key] = {
    "dataset": _TRAIN["dataset"]._replace(
        help="Rows to evaluate on: file, hub id (org/name@revision:subset/split) or dataset plugin; append #N for the "
        "first N rows. Repeat to concatenate several. [dim]\\[default: the run's eval_dataset][/dim]"
    ),
    "model_options": _TRAIN["model_options"],
    **_chosen(_TRAIN, [*_MEASURED, "model_options"]),
    **_chosen(_SAMPLE, _GENERATED),
}
for _name, _help in {
    "task": "What is measured, such as sft (answers) or dpo (preferences).",
    "metrics": "Metric to compute, such as acc or nlg. Repeat for several.",
    "tools": _TRAIN["tools"].help,
    "loss": _TRAIN["loss"].help,
    "loss_scale": _TRAIN["loss_scale"].help,
}.items():
    KEYS[_name] = KEYS[_name]._replace(default=None, help=f"{_help} [dim]\\[default: the run's][/dim]")
KEYS["engine"] = KEYS["engine"]._replace(help="What generates the answers: transformers, vllm or openai.")
KEYS["num_return_sequences"] = KEYS["num_return_sequences"]._replace(default=1)
KEYS["temperature"] = KEYS["temperature"]._replace(
    default=None,
    help="Sampling temperature; 0 is greedy decoding. "
    "[dim]\\[default: 0 for one answer per question, 1 for several][/dim]",
)
"""What can be set in an evaluation, by key."""


class EvaluationConfig(NamedTuple):
    """What is evaluated, and how.

    Attributes:
        name: The model as it was given: a run, a checkpoint, a model folder, a hub id or a model plugin.
        label: A short name, which no other model of the evaluation has.
        weights: The folder with the trained weights of a run; None if the config's model itself is evaluated.
        train: The config of a training that would have these rows as its evaluation dataset.
        sample: The config of a sampling run for the answers that ORMs and PRMs score; None without any.
        sets_metrics: Whether the command line names metrics.
        like: The run as which a model that is none is measured; None if it is one, or no run is given.
    """

    name: str
    label: str
    weights: str | None
    train: TrainConfig
    sample: SampleConfig | None
    sets_metrics: bool
    like: str | None = None


def load_evaluation_configs(
    models: Sequence[str], options: Mapping[str, Any], sets: Sequence[str], output_dir: str
) -> list[EvaluationConfig]:
    """Merge the config of each run with the command line; a model without a run is measured as the first run is.

    Args:
        models: Runs, checkpoints, model folders, hub ids or model plugins.
        options: Values of options by key, of those in `KEYS`; None or an empty list if the option was not given.
        sets: The `KEY=VALUE` of each `--set`.
        output_dir: The folder of the evaluation.

    Raises:
        UserError: Something is unknown, of the wrong type or missing, or the models cannot be compared.

    Example:
        >>> [run, base] = load_evaluation_configs(["runs/first", "gpt2"], {"dataset": ["test.jsonl"]}, [], "runs/e")
        >>> base.train.task == run.train.task
        True
    """
    options = {name: value for name, value in options.items() if value not in (None, [])}
    shared, sampling = _split_sets(sets)
    given = {
        name.replace("dataset", "eval_dataset"): value for name, value in options.items() if name not in _GENERATED
    }
    generated = {name: value for name, value in options.items() if name in _GENERATED}
    if (generated or sampling) and not options.keys() & {"orm", "prm"}:
        first = KEYS[next(iter(generated))].flag if generated else f"--set {sampling[0]}"
        raise UserError(f"{first}: is for the answers that reward models score; name one with --orm or --prm")
    runs = [run_folder_of(model) for model in models]
    like = next((run for run in runs if run is not None), None)
    paths = [Path(model).expanduser() for model in models]
    labels = shortest_ends([path.resolve() if path.exists() else path for path in paths])
    if twice := [model for model, label in zip(models, labels, strict=True) if labels.count(label) > 1]:
        raise UserError(f"MODEL: {twice[-1]} is given twice")
    configs = []
    for model, run, label, name in zip(models, runs, labels, answer_folders(labels), strict=True):
        weights = None if run is None else str(Path(model).expanduser())
        train = _train_config(model, run, like, given, shared, output_dir)
        folder = str(Path(output_dir, name))
        sample = _sample_config(weights or model, train, generated, sampling, folder) if generated else None
        shares = None if run is not None or like is None else str(like)
        configs.append(EvaluationConfig(model, label, weights, train, sample, "metrics" in given, shares))
    _check_comparable(configs)
    return configs


def _split_sets(sets: Sequence[str]) -> tuple[list[str], list[str]]:
    """The settings for the config of a training, and those for the config of a sampling run.

    Raises:
        UserError: One sets what no evaluation has.
    """
    shared: list[str] = []
    sampling: list[str] = []
    for setting in sets:
        name = setting.partition("=")[0].strip()
        key, _, field = name.partition(".")
        if key not in KEYS or name == "dataset":
            known = {name.partition(".")[0] for name in KEYS}
            if key in _TRAIN or key in _SAMPLE:
                raise UserError(f"--set {setting}: does not act in an evaluation")
            raise UserError(f"--set {setting}: unknown key{nearest(key, known)}")
        if key == "training" and field not in _TRAINING:
            raise UserError(f"--set {setting}: does not act in an evaluation{nearest(field, _TRAINING)}")
        (sampling if key in _GENERATED else shared).append(f"eval_{setting}" if key == "dataset" else setting)
    return shared, sampling


def _train_config(
    model: str,
    run: Path | None,
    like: Path | None,
    options: Mapping[str, Any],
    sets: Sequence[str],
    output_dir: str,
) -> TrainConfig:
    """The config of the training whose evaluation is to run."""
    own = {"output_dir": output_dir, "model": model, "dataset": [model]} if run is None else {}
    source = run or like
    config = load_train_config(None if source is None else str(source), {**options, **own}, sets).config
    if run is None and like is not None:
        # Nothing that is about the run's own model is for another one: above all, not the permission to run its code.
        bare = load_train_config(None, {**options, **own}, sets).config
        config = bare.model_copy(update={name: getattr(config, name) for name in (*_MEASURED, "eval_dataset")})
    if "task" in options:  # what the run's own task draws with acts in no other
        own_draws = {name: TrainConfig.model_fields[name].get_default() for name in DRAW_KEYS}
        config = config.model_copy(update=own_draws)
    if not config.eval_dataset:
        has_none = "" if source is None else f"{source}: the run has no eval_dataset; "
        raise UserError(f"{has_none}name the rows to evaluate on with --dataset")
    defaults = TrainConfig.model_fields
    return config.model_copy(
        update={
            "dataset": config.eval_dataset,
            "callbacks": [],
            "optimizer": defaults["optimizer"].default,
            "data": config.data.model_copy(
                update={"packing": False, "val_size": 0, "mix": "shuffle", "mix_temperature": None, "streaming": False}
                | {"shuffle_buffer": DataOptions().shuffle_buffer}
            ),
            "training": {name: value for name, value in config.training.items() if name in _TRAINING},
        }
    )


def _sample_config(
    model: str, train: TrainConfig, options: Mapping[str, Any], sets: Sequence[str], output_dir: str
) -> SampleConfig:
    """The config of the sampling run that generates and scores the answers to the same rows."""
    count = options.get("num_return_sequences", KEYS["num_return_sequences"].default)
    defaults = {"num_return_sequences": count, "temperature": 0.0 if count == 1 else 1.0}
    own = {
        "dataset": [choice.name for choice in train.dataset],
        "output_dir": output_dir,
    }
    config = load_model_config(model, {**defaults, **options, **own}, sets)
    return config.model_copy(
        update={
            "dataset": train.dataset,
            "tools": train.tools,
            "plugins": PluginsSection.model_validate(train.plugins.model_dump()),
            "model_options": ModelOptions.model_validate({**train.model_options.model_dump(), "revision": None})
            if Path(model).expanduser().is_dir()
            else train.model_options,
            "dtype": train.dtype,
            "seed": train.seed,
            "data": SampleDataOptions(template=train.data.template, columns=train.data.columns),
        }
    )


def answer_folders(labels: Sequence[str]) -> list[str]:
    """The names of the folders that an evaluation has for models; where some are alike, with a hash of the label."""
    names = [re.sub(r"[^\w.-]+", "_", label).strip("_") or "model" for label in labels]
    lower = [name.lower() for name in names]  # not every file system tells them apart by their case
    hashes = [hashlib.sha256(label.encode(errors="surrogateescape")).hexdigest()[:8] for label in labels]
    return [
        f"{name}-{of_label}" if lower.count(name.lower()) > 1 else name
        for name, of_label in zip(names, hashes, strict=True)
    ]


def _check_comparable(configs: Sequence[EvaluationConfig]) -> None:
    """Refuse models whose numbers would have the same names and mean something else."""
    first = configs[0]
    for other in configs[1:]:
        for key, flag in {"dataset": "--dataset", "task": "--task"}.items():
            mine, its = (getattr(each.train, key) for each in (first, other))
            if mine != its:
                what = "eval_dataset" if key == "dataset" else key
                raise UserError(
                    f"{first.name} and {other.name} differ in their {what}, so their numbers cannot be compared; name "
                    f"one with {flag}"
                )


def differing_keys(configs: Sequence[EvaluationConfig]) -> list[str]:
    """The keys by which the models are measured differently, each as its own run is."""
    keys = [name for name in _MEASURED if name not in ("plugins", "dtype", "seed", "reference", "training")]
    first, *others = (config.train for config in configs)
    return [key for key in keys if any(getattr(other, key) != getattr(first, key) for other in others)]
