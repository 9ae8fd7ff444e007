"""What comes before the model of a training run: plugins, arguments, tokenizer, data, and the plan of it all."""

import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from swiftplug.config.schema import DataOptions, TrainConfig
from swiftplug.data.prepare import PreparedData, prepare_data
from swiftplug.data.tokens import check_offsets
from swiftplug.errors import UserError, nearest
from swiftplug.formatting import format_count
from swiftplug.plugin import Labels, OnlineTask, Rows
from swiftplug.processes import num_processors
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import RunProgress, on_disk, plugin_fact
from swiftplug.runs.errors import naming_plugins
from swiftplug.runs.model import check_loadable
from swiftplug.runs.plugins import resolve_plugins
from swiftplug.sampling.scoring import resolve_scorers
from swiftplug.training.arguments import asks_for_fsdp, training_arguments
from swiftplug.training.evaluation import measured_names
from swiftplug.training.loss import optional_arguments
from swiftplug.training.online.prompts import check_settings, draw_sampler, not_in_force, read_prompts
from swiftplug.training.online.rollouts import evaluated_names
from swiftplug.training.reference import planned_reference

_STRATEGIES = ("save", "eval", "logging")


def set_up(config: TrainConfig, kept_base: Path | None = None) -> Arguments:
    """Resolve the plugins, check the arguments, and load the tokenizer; a preview needs no more.

    `kept_base` is the folder of the model to use if that of the config is gone.

    Raises:
        UserError: Something is wrong with the input.
    """
    plugins = resolve_plugins(config)
    has_eval = bool(config.eval_dataset) or config.data.val_size > 0
    if plugins.of("metric") and not has_eval:
        raise UserError("metrics: need eval_dataset or data.val_size")
    is_online = plugins.one("task").bound.rows is Rows.PROMPTS
    group = config.num_return_sequences if is_online else 1
    arguments = training_arguments(config, str(config.output_dir), has_eval, group)
    args = Arguments(config, plugins, arguments)
    if kept_base and config.model and not plugins.model and not Path(config.model.name).expanduser().exists():
        args.kept_base = str(kept_base)
        args.notes.append(f"model: there is no folder {config.model.name} any more; {kept_base} is used")
    if args.task.head == "language":
        args.check_writes()
    if is_online:
        check_settings(args)
    _check_mix(config, is_online)
    _check_streaming(config, args)
    _check_metrics(args)
    with naming_plugins(plugins.all()):
        args.check_plugins()
        check_loadable(config.model_options)
        check_offsets(args.load_tokenizer())
        if args.task.rows is not Rows.TEXT:
            args.load_chat()  # notes a chat template without an end-of-turn token
    if config.data.packing and args.task.rows not in (Rows.TEXT, Rows.ANSWERS):
        raise UserError(f"data.packing: task {plugins.one('task').found.name} keeps each row apart; drop it")
    if config.reference != "auto" and not args.task.needs_reference:
        task = plugins.one("task").found.name
        raise UserError(f"{config.where('reference')}: task {task} needs no reference model; drop it")
    args.notes += _not_in_force(config, arguments)
    if is_online:
        args.notes += not_in_force(args)
    here, cores = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), num_processors()
    if arguments.device.type == "cpu" and here > cores:
        args.notes.append(f"{here} processes share {format_count(cores, 'core')}: no faster than {cores} of them")
    return args


def _check_mix(config: TrainConfig, is_online: bool) -> None:
    """Refuse a mixture that the datasets of the run cannot make."""
    data, count = config.data, len(config.dataset)
    if not data.mixes:
        return
    where = config.where("data", "mix" if data.mix != "shuffle" else "mix_temperature")
    if data.mix != "shuffle" and data.mix_temperature is not None:
        raise UserError(f"{where}: found {data.mix}, and mix_temperature {data.mix_temperature:g}; drop one of them")
    if count < 2:
        raise UserError(f"{where}: mixes several datasets, found {count}")
    if isinstance(data.mix, list) and len(data.mix) != count:
        raise UserError(f"{where}: found {len(data.mix)} weights, expected {count}, one for each dataset")
    if is_online:
        raise UserError(f"{where}: tasks that draw answers take all prompts alike; drop it")
    if data.val_size and not config.eval_dataset and not data.streaming and isinstance(data.val_size, int):
        raise UserError(
            f"{config.where('data', 'val_size')}: found {data.val_size}, expected a fraction, as each of the datasets "
            "that data.mix keeps apart gives its share; or name an eval_dataset"
        )


def _check_streaming(config: TrainConfig, args: Arguments) -> None:
    """Refuse what needs all rows before the first step."""
    data, training, task = config.data, config.training, args.plugins.one("task").found.name
    if not data.streaming:
        return
    refused = {
        "data.mix": len(config.dataset) > 1 and data.mix == "shuffle" and data.mix_temperature is None,
        "data.mix_temperature": data.mix_temperature is not None,
        "data.val_size": data.val_size and not config.eval_dataset,
        "training.num_train_epochs": "num_train_epochs" in training,
        **{f"training.{name}_strategy": training.get(f"{name}_strategy") == "epoch" for name in _STRATEGIES},
        "training.dataloader_num_workers": args.training_args.dataloader_num_workers,
        "reference": config.reference == "precompute",
        "task": args.task.rows in (Rows.LABELLED, Rows.PROMPTS),
    }
    instead = {
        "data.mix": "the sizes of the datasets are not known; expected data.mix: order, or its list of weights",
        "data.mix_temperature": "the sizes of the datasets are not known; expected weights in data.mix",
        "data.val_size": "all rows would have to be read; expected an eval_dataset",
        "training.num_train_epochs": "where an epoch ends is not known; expected training.max_steps alone",
        **{f"training.{name}_strategy": "where an epoch ends is not known; expected steps" for name in _STRATEGIES},
        "training.dataloader_num_workers": "the process that trains reads and encodes the rows; drop it",
        "reference": "precompute reads all rows; expected auto",
        "task": f"{task} reads all rows before it trains",
    }
    for name in filter(refused.get, refused):
        raise UserError(f"{config.where(*name.split('.'))}: with data.streaming {instead[name]}")
    if training.get("max_steps", -1) < 1:
        where = config.where("data", "streaming")
        raise UserError(f"{where}: needs training.max_steps, as where the data ends is not known")


def _not_in_force(config: TrainConfig, arguments: TrainingArguments) -> Iterator[str]:
    """What a config asks for and this run does not do."""
    if asks_for_fsdp(config) and not arguments.fsdp:
        yield "training.fsdp: not in force, as this run has one process, which holds the whole model"
    if (config.dtype == "float16" or config.training.get("fp16")) and not arguments.fp16:
        key = "training.fp16" if config.dtype == "auto" else "dtype: float16"
        yield f"{key}: not in force, as a CPU has no fp16 autocast: this run computes in float32"
    if not config.data.streaming and config.data.shuffle_buffer != DataOptions().shuffle_buffer:
        yield "data.shuffle_buffer: not in force without data.streaming, as all rows are shuffled together"
    if config.data.streaming and config.data.num_proc > 1:
        yield "data.num_proc: not in force with data.streaming, where the process that trains encodes"
    for name in _STRATEGIES:
        strategy = getattr(arguments, f"{name}_strategy").value
        if config.training.get(f"{name}_steps") is not None and strategy != "steps":
            yield f"training.{name}_steps: not in force, as training.{name}_strategy is {strategy}"


def _check_metrics(args: Arguments) -> None:
    """Refuse metrics that cannot be computed, and a best model by one that no evaluation gives."""
    texts = [metric for metric in args.plugins.of("metric") if metric.bound.generate]
    if texts and args.task.rows is not Rows.ANSWERS:
        task = args.plugins.one("task").found.name
        raise UserError(
            f"metrics: {texts[0].found.name} compares generated answers, and rows of task {task} have none; use task "
            "sft"
        )
    _know_eval_names(args)


def _know_eval_names(args: Arguments) -> None:
    """Find out what an evaluation gives; refuse metrics that do not fit the task, and a best model by none of them."""
    wanted = args.training_args.metric_for_best_model
    names, failed = measured_names(args.plugins.of("metric"), args.task, args.labels)
    logged = () if "loss" in args.task.kinds else args.task.log_names()
    if logged and (both := sorted(names.intersection(logged))):
        raise UserError(f"{args.plugins.one('task').found} logs {both[0]!r}, which a metric returns too; rename one")
    if isinstance(args.task, OnlineTask):
        args.eval_names = evaluated_names(args)
    elif not failed:
        args.eval_names = None if logged is None else names.union(logged)
    elif (wanted or args.plugins.of("callback")) and (args.labels or args.task.rows is not Rows.LABELLED):
        args.notes.append(f"metrics: {'; '.join(failed)}, so what they return is known at the first evaluation only")
    if wanted and args.eval_names is not None and wanted.removeprefix("eval_") not in args.eval_names:
        given = [f"eval_{name}" for name in args.eval_names]
        raise UserError(f"training.metric_for_best_model: no evaluation gives {wanted!r}{nearest(wanted, given)}")


def read_data(args: Arguments, progress: RunProgress, labels: Labels | None = None) -> PreparedData:
    """Read and encode the data of a run.

    Args:
        args: The run's arguments.
        progress: Shows what is done.
        labels: Those of a model that is trained already; None to find them in the rows.

    Raises:
        UserError: A dataset cannot be read, no row of it can be used, it makes no batch, or its weights do not fit the
            loss.
    """
    config, plugins = args.config, args.plugins
    tokenizer: Any = args.load_tokenizer()
    names = [choice.name for choice in [*config.dataset, *config.eval_dataset]]
    is_online = args.task.rows is Rows.PROMPTS
    with naming_plugins(plugins.all()), progress.start("reading the data", live=on_disk(names)):
        data = (
            read_prompts(args, progress)
            if is_online
            else prepare_data(
                dataset=config.dataset,
                eval_dataset=config.eval_dataset,
                registry=plugins.registry,
                tokenizer=tokenizer,
                tools=plugins.one("tools"),
                loss_scales=plugins.of("loss_scale"),
                task=args.task,
                options=config.data,
                seed=config.seed,
                progress=partial(progress.start, noun="row"),
                generation=any(metric.bound.generate for metric in plugins.of("metric")),
                labels=labels,
            )
        )
    if data.labels is not None:
        args.labels = data.labels
        _know_eval_names(args)
    with naming_plugins(plugins.all()):
        args.notes += args.task.check_data(data.train)
    args.notes += args.explain_model()
    if data.eval is not None and data.report.eval is not None and "prompt_ids" in data.eval.column_names:
        rows = data.report.eval.kept
        if unasked := rows - sum(len(ids) > 0 for ids in data.eval["prompt_ids"]):
            found = f"{format_count(unasked, 'evaluation row')} {'has' if unasked == 1 else 'have'} no prompt to answer"
            if unasked == rows:
                raise UserError(f"metrics: {found}; expected a message before the answer")
            args.notes.append(f"metrics: {found}; generated answers are compared on the others")
    loss = next(iter(plugins.of("loss")), None)
    if loss and "loss_scale" in data.train.column_names and "loss_scale" not in optional_arguments(loss.bound):
        scales = "+".join(scale.found.name for scale in plugins.of("loss_scale"))
        raise UserError(
            f"loss: {loss.found} takes no loss_scale, but tokens have weights other than 0 and 1 "
            f"(loss_scale: {scales}); choose another of the two"
        )
    rows, batch = len(data.train), args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < batch and not (is_online or data.stream):
        raise UserError(
            f"training.dataloader_drop_last: drops all {format_count(rows, 'example')}, as a batch takes {batch}"
        )
    return data


def plan_facts(args: Arguments, data: PreparedData) -> Iterator[tuple[str, str]]:
    """What a run would do, as labelled facts: its plugins with their options, batches, steps, and where it writes."""
    config, arguments = args.config, args.training_args
    if not args.plugins.model:
        yield "model", str(config.model and config.model.name)
    is_online = args.task.rows is Rows.PROMPTS
    weights = {id(it.plugin): it.weight for it in resolve_scorers(config, args.plugins)} if is_online else {}
    for plugin in args.plugins.all():
        weight = weights.get(id(plugin), 1)
        yield plugin_fact(plugin, **({} if weight == 1 else {"weight": weight}))
    sizes = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps, arguments.world_size
    batch = f"{sizes[0]} x {sizes[1]} accumulated x {format_count(sizes[2], 'process')} = {math.prod(sizes)}"
    if is_online:
        group = config.num_return_sequences
        prompts = format_count(math.prod(sizes) // group, "prompt")
        yield "batch", f"{batch}: {prompts} per step, {format_count(group, 'candidate')} per prompt"
        yield "steps", _steps(arguments, len(draw_sampler(args, len(data.train))))
    else:
        yield "batch", batch
        streamed = f"{arguments.max_steps} (max_steps; the data is streamed)"
        yield "steps", streamed if data.stream else _steps(arguments, len(data.train))
    if args.task.needs_reference:
        yield "reference", planned_reference(args)
    yield "precision", "bf16 autocast" if arguments.bf16 else "fp16 autocast" if arguments.fp16 else "float32"
    yield "run folder", str(config.output_dir)


def _steps(arguments: TrainingArguments, rows: int) -> str:
    """The optimizer steps that a run will take, as Trainer counts them, and how they come about."""
    rounded = math.floor if arguments.dataloader_drop_last else math.ceil
    batches = rounded(rounded(rows / arguments.per_device_train_batch_size) / arguments.world_size)
    per_epoch = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    if arguments.max_steps > 0:
        return f"{arguments.max_steps} (max_steps; {per_epoch} per epoch)"
    total = math.ceil(arguments.num_train_epochs * per_epoch)
    return f"{total} ({per_epoch} per epoch, num_train_epochs {arguments.num_train_epochs:g})"
