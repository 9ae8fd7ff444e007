"""What training and preview share: plugins, arguments, tokenizer and data; everything before the model."""

from dataclasses import dataclass

from swiftplug.config.schema import TrainConfig
from swiftplug.data.prepare import PreparedData, prepare_data
from swiftplug.errors import UserError
from swiftplug.training.arguments import RunArguments, training_arguments
from swiftplug.training.model import ModelSource, open_model
from swiftplug.training.plugins import RunPlugins, resolve_plugins


@dataclass(frozen=True)
class RunSetup:
    """A run before its model is loaded; everything in it has been checked.

    Attributes:
        config: The run's config.
        plugins: Its plugins.
        args: Its arguments, as plugins see them.
        source: Its tokenizer, and how its base model is loaded.
        data: Its encoded datasets.
    """

    config: TrainConfig
    plugins: RunPlugins
    args: RunArguments
    source: ModelSource
    data: PreparedData


def set_up(config: TrainConfig) -> RunSetup:
    """Resolve the plugins, check the arguments, and read and encode the data.

    Raises:
        UserError: Something is wrong with the input.
    """
    plugins = resolve_plugins(config)
    has_eval = bool(config.eval_dataset) or config.data.val_size > 0
    if plugins.metrics and not has_eval:
        raise UserError("metrics: need eval_dataset or data.val_size")
    args = RunArguments(config, training_arguments(config, str(config.output_dir), has_eval))
    source = open_model(config, plugins, args)
    data = prepare_data(config, plugins, source.tokenizer)
    return RunSetup(config, plugins, args, source, data)
