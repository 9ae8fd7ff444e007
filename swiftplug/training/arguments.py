"""The `training:` section of a config, checked and made into `TrainingArguments`."""

import dataclasses
import os
from pathlib import Path
from typing import Any, get_type_hints

import accelerate
import torch
import transformers
from accelerate.utils import is_deepspeed_available
from packaging.version import Version
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.training_args import OptimizerNames
from transformers.utils.import_utils import is_liger_kernel_available

from swiftplug.config.counterparts import counterparts
from swiftplug.config.schema import TrainConfig
from swiftplug.errors import UserError, closest
from swiftplug.formatting import format_count
from swiftplug.plugin.registry.options import expected_instead
from swiftplug.training.checkpoint import STEP, step_shares
from swiftplug.training.trackers import check_trackers

# Fields of TrainingArguments that cannot be set, and what to do instead.
NOT_SETTABLE = {
    "output_dir": "use the key output_dir",
    "seed": "use the key seed",
    "data_seed": "use the key seed",
    "resume_from_checkpoint": "use the option --resume",
    "label_smoothing_factor": "use loss: {name: label_smoothing}",
    "train_sampling_strategy": "use data.group_by_length",
    "length_column_name": "use data.group_by_length",
    "hub_token": "use the environment variable HF_TOKEN",
    "do_train": "`swiftplug train` always trains",
    "do_eval": "use eval_dataset",
    "do_predict": "use eval_dataset",
    "local_rank": "use torchrun, or the option --nproc",
    "save_on_each_node": "all machines share output_dir, into which the first process saves",
    "auto_find_batch_size": "use training.per_device_train_batch_size: with one found at run time no resume is exact",
    "enable_jit_checkpoint": "use training.save_steps: a run may be killed at any moment",
    # What Trainer pushes has its arguments pickled beside the weights.
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"),
        "push the folder of the finished run with `hf upload REPOSITORY FOLDER`",
    ),
    **dict.fromkeys(
        (
            "remove_unused_columns",
            "label_names",
            "include_num_input_tokens_seen",
            "logging_nan_inf_filter",
            "batch_eval_metrics",
            "eval_do_concat_batches",
            "include_for_metrics",
            "prediction_loss_only",
            "restore_callback_states_from_checkpoint",
            "ignore_data_skip",
            "disable_tqdm",
        ),
        "swiftplug sets it itself",
    ),
}

# Fields that say something about evaluations.
EVALUATION = (
    "eval_steps",
    "eval_delay",
    "eval_on_start",
    "metric_for_best_model",
    "greater_is_better",
    "load_best_model_at_end",
)

# The least value of fields that Transformers does not check.
LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
}


def training_arguments(config: TrainConfig, output_dir: str, has_eval: bool, group: int = 1) -> TrainingArguments:
    """Check the `training:` section and build the `TrainingArguments` of the run.

    Args:
        config: The run's config.
        output_dir: The run's folder.
        has_eval: Whether there is an evaluation dataset.
        group: The candidates that an online task draws for a prompt.

    Raises:
        UserError: A field is unknown, of the wrong type, not settable, or contradicts another key.
    """
    given = check_training_section(config)
    if given.get("deepspeed") and not is_deepspeed_available():
        raise UserError(f"{config.where('training', 'deepspeed')}: needs DeepSpeed; pip install deepspeed")
    if _launched_with("DEEPSPEED") and not given.get("deepspeed"):
        raise UserError(
            "the config of accelerate launch: asks for DeepSpeed; name DeepSpeed's own config in training.deepspeed"
        )
    _check_agreement(config, given, has_eval)
    _check_devices(given)
    if given.get("fsdp") and isinstance(sharding := given.get("fsdp_config") or {}, dict):
        given["fsdp_config"] = {"version": 2, **sharding}  # as newer versions of Transformers have it
    streams = config.data.streaming  # where an epoch ends is not known
    defaults = {
        "logging_steps": 10,
        "logging_first_step": True,
        "eval_strategy": "no" if not has_eval else "steps" if streams or "eval_steps" in given else "epoch",
        **({"eval_steps": given.get("save_steps", 500)} if streams else {}),
        # Without this, processes on a machine that has no accelerator would not find each other.
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Every trained parameter has a gradient in every step, and the head runs outside the wrapped forward.
        "ddp_find_unused_parameters": False,
        "log_level": "error",
        "run_name": Path(output_dir).expanduser().resolve().name,
        "project": "swiftplug",
    }
    defaults |= dict(zip(STEP, step_shares(given, group), strict=True))
    fixed = {
        "output_dir": output_dir,
        "seed": config.seed,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "restore_callback_states_from_checkpoint": False,  # `CheckpointKeeper` does so, in place
        "disable_tqdm": True,
    }
    values = {**defaults, **given, **_precision(config, given), **fixed}
    if given.get("use_liger_kernel"):
        # Our loss computes logits in chunks by itself, for every loss plugin.
        own = {"fused_linear_cross_entropy": False, "cross_entropy": False}
        values["liger_kernel_config"] = own | (given.get("liger_kernel_config") or {})
    try:
        arguments = TrainingArguments(**values)
        check_trackers(arguments.report_to or (), config.where("training", "report_to"))
        _check_early(arguments)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from error
    # One process drives one device; several devices are several processes (--nproc), never DataParallel.
    _ = arguments.device
    arguments._n_gpu = min(arguments._n_gpu, 1)
    _settle_sharding(arguments)
    return arguments


def _check_devices(given: dict[str, Any]) -> None:
    """Refuse more processes on this machine than it has devices: two on one device share nothing but its memory."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes == 1 or given.get("use_cpu") or not torch.accelerator.is_available():
        return
    if (devices := torch.accelerator.device_count()) < processes:
        name = str(torch.accelerator.current_accelerator()).upper()
        raise UserError(
            f"{processes} processes on this machine, which has {format_count(devices, f'{name} device')}: start "
            f"{devices} (--nproc {devices}), or compute on the CPU with training.use_cpu=true"
        )


def asks_for_fsdp(config: TrainConfig) -> bool:
    """Whether the config, or that of `accelerate launch`, asks for weights that are shared out among processes."""
    return bool(config.training.get("fsdp")) or _launched_with("FSDP")


def _launched_with(library: str) -> bool:
    """Whether `accelerate launch` says so, which does it by a variable."""
    return os.environ.get(f"ACCELERATE_USE_{library}", "").lower() == "true"


def _settle_sharding(arguments: TrainingArguments) -> None:
    """Let `fsdp` say what is in force: several processes share out the weights, whoever has asked for it.

    Raises:
        UserError: It is FSDP1, or a library is too old.
    """
    asked = arguments.fsdp
    if arguments.world_size == 1:
        arguments.fsdp, arguments.fsdp_plugin_args = "", None  # older versions of Transformers take its length
    elif _launched_with("FSDP") and not asked:
        arguments.fsdp, arguments.fsdp_config = "full_shard", arguments.fsdp_config or {}  # the rest is accelerate's
    if arguments.fsdp:
        place = "training.fsdp_config: version" if asked else "the config of accelerate launch: fsdp_version"
        version = (arguments.fsdp_plugin_args or {}).get("fsdp_version", os.environ.get("FSDP_VERSION", "1"))
        if int(version) != 2:
            raise UserError(f"{place}: found {version}, expected 2: FSDP1 is not supported")
        for library, least in ((transformers, "5.23"), (accelerate, "1.15")):
            if Version(library.__version__) < Version(least):
                raise UserError(
                    f"training.fsdp: needs {library.__name__} {least} or newer, found {library.__version__}; "
                    f"pip install -U {library.__name__}"
                )


def _check_early(arguments: TrainingArguments) -> None:
    """Check now what Trainer would check only when the model is loaded: learning rate, schedule, optimizer."""
    schedule: Any = arguments.lr_scheduler_kwargs
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
    get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=1,
        num_training_steps=1_000_000,
        scheduler_specific_kwargs=schedule,
    )
    try:
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        if optimizer_class.__module__.startswith("torch.optim"):
            optimizer_class([torch.zeros(1)], **{"weight_decay": arguments.weight_decay, **options})
    except (ValueError, ImportError) as error:
        if "pass a" not in str(error):  # a few need the model, which is not loaded yet
            raise ValueError(f"optim {OptimizerNames(arguments.optim).value}: {error}") from error
    if arguments.use_liger_kernel and not is_liger_kernel_available():
        raise ImportError("use_liger_kernel needs liger-kernel; pip install liger-kernel")


def check_training_section(config: TrainConfig) -> dict[str, Any]:
    """The `training:` section with its values in the types that `TrainingArguments` declares.

    Raises:
        UserError: A field is unknown, not settable, or of the wrong type.
    """
    names = [field.name for field in dataclasses.fields(TrainingArguments)]
    hints = get_type_hints(TrainingArguments)
    checked = {}
    for name, value in config.training.items():
        where = config.where("training", name)
        if name in NOT_SETTABLE:
            raise UserError(f"{where}: cannot be set; {NOT_SETTABLE[name]}")
        if name not in names:
            here = counterparts(name, {"training"})
            close = f"; did you mean {here[0]!r}?" if here else closest(name, set(names) - set(NOT_SETTABLE))
            raise UserError(f"{where}: unknown field{close or '; expected one of transformers.TrainingArguments'}")
        if name.endswith("_strategy") and value is False:
            value = "no"  # what YAML makes of a bare `no`
        if name == "fsdp" and isinstance(value, bool):  # its declared type is that of the command line
            checked[name] = value
            continue
        adapter: TypeAdapter[Any] = TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True))
        try:
            checked[name] = adapter.validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UserError(f"{where}: found {value!r}; {reason[0].lower()}{reason[1:]}") from error
        if expected := expected_instead(value, checked[name]):
            raise UserError(f"{where}: found {value!r}; input should be {expected}")
    return checked


def _check_agreement(config: TrainConfig, given: dict[str, Any], has_eval: bool) -> None:
    """Refuse settings that contradict each other: neither is ignored in silence."""
    if "optim" in given and config.optimizer.name not in ("default", "swiftplug:default"):
        raise UserError(
            f"training.optim: {given['optim']!r} is for the default optimizer, and optimizer is "
            f"{config.optimizer.name!r}; drop one of them"
        )
    for name in ("bf16", "fp16"):
        if given.get(name) and config.dtype != "auto":
            raise UserError(f"training.{name}: excludes dtype: {config.dtype}; set only one of them")
    for name, least in LEAST.items():
        if given.get(name) is not None and given[name] < least:
            raise UserError(f"training.{name}: found {given[name]}, expected {least} or more")
    strategy = given.get("eval_strategy")
    if strategy not in (None, "no") and not has_eval:
        raise UserError(f"training.eval_strategy: {strategy!r} needs eval_dataset or data.val_size")
    if given.get("save_strategy") == "best" and not has_eval:
        raise UserError("training.save_strategy: 'best' needs eval_dataset or data.val_size")
    for name in EVALUATION:
        if given.get(name) not in (None, False) and not has_eval:
            raise UserError(f"training.{name}: needs eval_dataset or data.val_size")
    steps = given.get("max_steps", -1)
    if steps == 0 or steps < -1:
        raise UserError(
            f"training.max_steps: found {steps}, expected 1 or more; -1 leaves the length to num_train_epochs"
        )
    for name in ("num_train_epochs", "save_steps", "eval_steps", "logging_steps"):
        if given.get(name) is not None and given[name] <= 0:
            raise UserError(f"training.{name}: found {given[name]}, expected more than 0")
    best = given.get("metric_for_best_model")
    if given.get("save_strategy") == "best" and best is None:
        raise UserError("training.save_strategy: best needs training.metric_for_best_model, eval_loss for instance")
    if strategy == "no" and config.metrics and not given.get("eval_on_start"):
        raise UserError("metrics: nothing is measured with training.eval_strategy: no; drop one of them")


def _precision(config: TrainConfig, given: dict[str, Any]) -> dict[str, bool]:
    """Autocast's type, by `dtype` or, where that is `auto`, by `training.bf16`, `training.fp16` or the device."""
    on_cpu = given.get("use_cpu") or not torch.accelerator.is_available()  # Accelerate has no fp16 autocast there
    if config.dtype != "auto":
        return {"bf16": config.dtype == "bfloat16", "fp16": config.dtype == "float16" and not on_cpu}
    if given.get("bf16") or given.get("fp16"):
        return {"bf16": bool(given.get("bf16")), "fp16": bool(given.get("fp16")) and not on_cpu}
    on_gpu = torch.cuda.is_available() and not on_cpu
    return {"bf16": on_gpu and "bf16" not in given and torch.cuda.is_bf16_supported(), "fp16": False}
