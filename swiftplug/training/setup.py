"""What comes before the model of a training run: plugins, arguments, tokenizer, data, and the plan of it all."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swiftplug.config.load import to_yaml
from swiftplug.config.schema import TrainConfig
from swiftplug.data.prepare import PreparedData, prepare_data
from swiftplug.data.tokens import check_offsets
from swiftplug.errors import UserError
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import plugin_fact
from swiftplug.runs.errors import naming_plugins
from swiftplug.runs.folder import CONFIG, MANIFEST, first_difference
from swiftplug.runs.plugins import RunPlugins, resolve_plugins
from swiftplug.training.arguments import training_arguments
from swiftplug.training.checkpoint import checkpoints, clear_leftovers


@dataclass(frozen=True)
class RunSetup:
    """A training run before its data is read; everything in it has been checked.

    Attributes:
        config: The run's config.
        plugins: Its plugins.
        args: Its arguments, as plugins get them.
        tokenizer: Its tokenizer, with the chat template.
    """

    config: TrainConfig
    plugins: RunPlugins
    args: Arguments
    tokenizer: Any


def set_up(config: TrainConfig) -> RunSetup:
    """Resolve the plugins, check the arguments, and load the tokenizer; a preview needs no more.

    Raises:
        UserError: Something is wrong with the input.
    """
    plugins = resolve_plugins(config)
    has_eval = bool(config.eval_dataset) or config.data.val_size > 0
    if plugins.of("metric") and not has_eval:
        raise UserError("metrics: need eval_dataset or data.val_size")
    args = Arguments(config, plugins, training_arguments(config, str(config.output_dir), has_eval))
    with naming_plugins(plugins.all()):
        tokenizer = args.load_tokenizer()
    check_offsets(tokenizer)
    return RunSetup(config, plugins, args, tokenizer)


def read_data(setup: RunSetup) -> PreparedData:
    """Read and encode the data of a run.

    Raises:
        UserError: A dataset cannot be read, no row of it can be used, or its weights do not fit the loss.
    """
    config, plugins = setup.config, setup.plugins
    with naming_plugins(plugins.all()):
        return prepare_data(
            dataset=config.dataset,
            eval_dataset=config.eval_dataset,
            registry=plugins.registry,
            tokenizer=setup.tokenizer,
            tools=plugins.one("tools"),
            loss_scales=plugins.of("loss_scale"),
            task=config.task,
            options=config.data,
            seed=config.seed,
            generation=any(metric.bound.generate for metric in plugins.of("metric")),
        )


def plan_facts(setup: RunSetup, data: PreparedData) -> Iterator[tuple[str, str]]:
    """What a run would do, as labelled facts: its plugins with their options, batches, steps, and where it writes."""
    config, arguments = setup.config, setup.args.training_args
    yield "task", config.task
    yield "model", str(config.model and config.model.name)
    yield from map(plugin_fact, setup.plugins.all())
    sizes = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps, arguments.world_size
    yield "batch", f"{sizes[0]} x {sizes[1]} accumulated x {sizes[2]} processes = {math.prod(sizes)}"
    yield "steps", _steps(setup, data)
    yield "precision", "bf16 autocast" if arguments.bf16 else "fp16 autocast" if arguments.fp16 else "float32"
    yield "run folder", str(config.output_dir)


def _steps(setup: RunSetup, data: PreparedData) -> str:
    """The optimizer steps that a run will take, as Trainer counts them, and how they come about."""
    arguments = setup.args.training_args
    rounded = math.floor if arguments.dataloader_drop_last else math.ceil
    batches = rounded(rounded(len(data.train) / arguments.per_device_train_batch_size) / arguments.world_size)
    per_epoch = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    if arguments.max_steps > 0:
        return f"{arguments.max_steps} (max_steps; {per_epoch} per epoch)"
    total = math.ceil(arguments.num_train_epochs * per_epoch)
    return f"{total} ({per_epoch} per epoch x {arguments.num_train_epochs:g} epochs)"


def find_checkpoint(folder: Path, setup: RunSetup, allow_changed_plugins: bool) -> Path | None:
    """The newest complete checkpoint of the run to resume; None to start from the beginning.

    Raises:
        UserError: What is to be resumed is another run than this one, or a plugin of it has changed.
    """
    if not (folder / CONFIG).exists():
        return None
    before, now = (folder / CONFIG).read_text(encoding="utf-8"), to_yaml(setup.config)
    if before != now:
        raise UserError(f"--resume: {folder / CONFIG} is another run's: {first_difference(before, now)}")
    if not allow_changed_plugins and (folder / MANIFEST).exists():
        _check_plugins_unchanged(folder, setup.plugins.all())
    clear_leftovers(folder)
    found = checkpoints(folder)
    return found[-1] if found else None


def _check_plugins_unchanged(folder: Path, plugins: list[LoadedPlugin]) -> None:
    recorded = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["plugins"]
    before = {(record["kind"], record["name"]): record["source_sha256"] for record in recorded}
    for plugin in plugins:
        kind, name = plugin.found.kind, plugin.found.qualified_name
        if before.get((kind, name), plugin.source_hash) != plugin.source_hash:
            raise UserError(
                f"--resume: the {kind} plugin {name!r} ({plugin.source_file}) has changed since this run began; put it "
                "back, or continue with it as it is by --allow-changed-plugins"
            )
