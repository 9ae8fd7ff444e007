"""The options that say what a run is; `train` and `preview` take the same ones, declared here once."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from typer import Argument, Option

from swiftplug.cli.options import DATA, PLUGINS, RUN, Dataset, Debug, OutputDir, PluginFiles, Tools


class RunRequest(NamedTuple):
    """What the command line says of a run, before it is merged with the config.

    Attributes:
        path: The YAML file, or None.
        options: Values of the options that stand for a config key, by that key; None and [] where not given.
        sets: The `KEY=VALUE` of each `--set`.
        debug: Whether errors show their traceback.
    """

    path: str | None
    options: dict[str, Any]
    sets: list[str]
    debug: bool

    def arguments(self) -> list[str]:
        """The command line that says the same."""
        from swiftplug.config.keys import keys_of
        from swiftplug.config.schema import TrainConfig

        values = {key: value if isinstance(value, list) else [value] for key, value in self.options.items() if value}
        return [
            *([self.path] if self.path else []),
            *(f"{keys_of(TrainConfig)[key].flag}={value}" for key, given in values.items() for value in given),
            *(f"--set={override}" for override in self.sets),
            *(["--debug"] if self.debug else []),
        ]


def _read_run_options(
    config: Annotated[
        str | None,
        Argument(metavar="CONFIG", help="A YAML file. Without it, a model and a dataset: the quickstart."),
    ] = None,
    task: Annotated[
        str | None, Option(metavar="TASK", help="pt (all text) or sft (answers).", rich_help_panel=DATA)
    ] = None,
    model: Annotated[
        str | None, Option(metavar="NAME", help="Folder, hub id or model plugin.", rich_help_panel=DATA)
    ] = None,
    dataset: Dataset = None,
    eval_dataset: Annotated[
        list[str] | None, Option(metavar="NAME", help="Likewise, to evaluate on.", rich_help_panel=DATA)
    ] = None,
    template: Annotated[
        str | None,
        Option(metavar="FILE.jinja", help="A chat template in place of the tokenizer's.", rich_help_panel=DATA),
    ] = None,
    loss: Annotated[str | None, Option(metavar="NAME", help="The loss.", rich_help_panel=PLUGINS)] = None,
    loss_scale: Annotated[
        str | None,
        Option(metavar="NAME", help="The weight of each token; + combines them.", rich_help_panel=PLUGINS),
    ] = None,
    metric: Annotated[
        list[str] | None, Option(metavar="NAME", help="A metric at evaluation. Repeat.", rich_help_panel=PLUGINS)
    ] = None,
    optimizer: Annotated[
        str | None, Option(metavar="NAME", help="The optimizer and its scheduler.", rich_help_panel=PLUGINS)
    ] = None,
    tools: Tools = None,
    tuner: Annotated[
        str | None, Option(metavar="NAME", help="Which parameters train, and how.", rich_help_panel=PLUGINS)
    ] = None,
    callback: Annotated[
        list[str] | None, Option(metavar="NAME", help="What acts during training. Repeat.", rich_help_panel=PLUGINS)
    ] = None,
    plugin: PluginFiles = None,
    output_dir: OutputDir = None,
    sets: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any key of the config, such as training.learning_rate=1e-4, tuner.r=8 or "
            "metrics.nlg.max_new_tokens=64. Repeat.",
            rich_help_panel=RUN,
        ),
    ] = None,
    debug: Debug = False,
) -> RunRequest:
    options = {
        "task": task,
        "model": model,
        "dataset": dataset,
        "eval_dataset": eval_dataset,
        "output_dir": output_dir,
        "tuner": tuner,
        "optimizer": optimizer,
        "loss": loss,
        "loss_scale": loss_scale,
        "tools": tools,
        "metrics": metric,
        "callbacks": callback,
        "plugins.files": plugin,
        "data.template": template,
    }
    return RunRequest(config, options, sets or [], debug)


def takes_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a run, before its own; it gets them as its first argument, a `RunRequest`."""
    shared = inspect.signature(_read_run_options).parameters
    own = list(inspect.signature(command).parameters.values())[1:]

    @functools.wraps(command)
    def parsed(**values: Any) -> None:
        request = _read_run_options(**{name: values.pop(name) for name in shared})
        command(request, **values)

    parameters = [*shared.values(), *own]
    vars(parsed)["__signature__"] = inspect.Signature(parameters)
    parsed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return parsed
