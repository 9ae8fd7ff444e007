"""What training and preview share: plugins, arguments, tokenizer and data; everything before the model."""

from dataclasses import dataclass

import torch

from swiftplug.config.schema import TrainConfig
from swiftplug.data.prepare import PreparedData, prepare_data
from swiftplug.data.tokens import check_offsets
from swiftplug.errors import UserError
from swiftplug.plugin.registry.choice import PluginChoice
from swiftplug.plugin.tokenizer import set_chat_template
from swiftplug.runs.blame import blaming
from swiftplug.runs.model import ModelRequest, ModelSource, open_model
from swiftplug.training.arguments import RunArguments, training_arguments
from swiftplug.training.plugins import RunPlugins, resolve_plugins
from swiftplug.training.precision import half_type


@dataclass(frozen=True)
class RunSetup:
    """A run before its model is loaded; everything in it has been checked.

    Attributes:
        config: The run's config.
        plugins: Its plugins.
        args: Its arguments, as plugins see them.
        source: Its tokenizer, and how its base model is loaded.
        data: Its encoded datasets.
        notes: What the user should know of the tokenizer.
    """

    config: TrainConfig
    plugins: RunPlugins
    args: RunArguments
    source: ModelSource
    data: PreparedData
    notes: list[str]


@dataclass(frozen=True)
class OpenedRun:
    """A run before its data is read; a preview needs no more.

    Attributes:
        plugins: Its plugins.
        args: Its arguments, as plugins see them.
        source: Its tokenizer, with its chat template, and how its base model is loaded.
        notes: What the user should know of the tokenizer.
    """

    plugins: RunPlugins
    args: RunArguments
    source: ModelSource
    notes: list[str]


def open_run(config: TrainConfig) -> OpenedRun:
    """Resolve the plugins, check the arguments, and load the tokenizer.

    Raises:
        UserError: Something is wrong with the input.
    """
    plugins = resolve_plugins(config)
    has_eval = bool(config.eval_dataset) or config.data.val_size > 0
    if plugins.metrics and not has_eval:
        raise UserError("metrics: need eval_dataset or data.val_size")
    args = RunArguments(config, training_arguments(config, str(config.output_dir), has_eval))
    with blaming(plugins.all()):
        source = open_model(_request(config, plugins, args))
    check_offsets(source.tokenizer)
    notes = set_chat_template(source.tokenizer, config.data.template)
    return OpenedRun(plugins, args, source, notes)


def set_up(config: TrainConfig) -> RunSetup:
    """Resolve the plugins, check the arguments, and read and encode the data.

    Raises:
        UserError: Something is wrong with the input.
    """
    opened = open_run(config)
    plugins, source = opened.plugins, opened.source
    with blaming(plugins.all()):
        data = prepare_data(
            dataset=config.dataset,
            eval_dataset=config.eval_dataset,
            registry=plugins.registry,
            tokenizer=source.tokenizer,
            tools=plugins.tools,
            loss_scales=plugins.loss_scales,
            task=config.task,
            options=config.data,
            seed=config.seed,
            generation=any(metric.bound.generate for metric in plugins.metrics),
        )
    return RunSetup(config, plugins, opened.args, source, data, opened.notes)


def _request(config: TrainConfig, plugins: RunPlugins, args: RunArguments) -> ModelRequest:
    half = half_type(args)

    def arguments(choice: PluginChoice, seed: int) -> RunArguments:
        return RunArguments(config.model_copy(update={"model": choice, "seed": seed}), args.training_args)

    return ModelRequest(
        name=str(config.model and config.model.name),
        plugin=plugins.model,
        registry=plugins.registry,
        options=config.model_options,
        seed=config.seed,
        arguments=arguments,
        # In mixed precision the checkpoint's own type is kept until the tuner has said what trains.
        dtype=torch.float32 if half == torch.float32 else "auto",
        compute_dtype=half,
    )
