"""How a `--plugin` file names its plugins: with decorators, or in module-level tables as in SWIFT 3.

An installed distribution needs neither: it declares entry points.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, overload

T = TypeVar("T")


class Registered(NamedTuple):
    """A plugin that a file names.

    Attributes:
        kind: The kind of plugin.
        name: The name that a config uses.
        plugin: The object.
        always_on: Whether it is used without being chosen.
    """

    kind: str
    name: str
    plugin: Any
    always_on: bool = False


registered: list[Registered] = []  # what decorators registered in this process, in order


@dataclass(frozen=True)
class Register:
    """Registers plugins of one kind, as a decorator or by a call.

    Attributes:
        kind: The kind of plugin.

    Example:
        >>> @register_optimizer("sgd")
        ... def sgd(args, model, dataset, *, momentum: float = 0.9):
        ...     return torch.optim.SGD(model.parameters(), args.learning_rate, momentum), None
        >>> register_metric("accuracy", (compute, None))
    """

    kind: str

    @overload
    def __call__(self, name: str) -> Callable[[T], T]: ...
    @overload
    def __call__(self, name: str, plugin: T) -> T: ...
    def __call__(self, name: str, plugin: Any = None) -> Any:
        """Register a plugin.

        Args:
            name: The name that a config uses.
            plugin: The function, class or instance; leave it out to decorate it.

        Returns:
            The plugin itself, or the decorator.
        """
        if plugin is None:
            return lambda decorated: self(name, decorated)
        registered.append(Registered(self.kind, name, plugin))
        return plugin


register_task = Register("task")
register_callback = Register("callback")
register_loss_scale = Register("loss_scale")
register_metric = Register("metric")
register_optimizer = Register("optimizer")
register_tools = Register("tools")
register_tuner = Register("tuner")
register_prm = Register("prm")
register_orm = Register("orm")
register_model = Register("model")
register_dataset = Register("dataset")
register_engine = Register("engine")
register_environment = Register("environment")


@overload
def register_loss_func(loss_type: str) -> Callable[[T], T]: ...
@overload
def register_loss_func(loss_type: str, loss_func: T) -> T: ...
def register_loss_func(loss_type: str, loss_func: Any = None) -> Any:
    """Register a loss, as a decorator or by a call. The parameter names are those of SWIFT 3.0.

    Args:
        loss_type: The name that a config uses.
        loss_func: The function or the class; leave it out to decorate it.

    Returns:
        The loss itself, or the decorator.
    """
    return Register("loss")(loss_type, loss_func)


# The tables of SWIFT 3. A file defines tables with these names, or imports these and adds to them.
extra_callbacks: list[Any] = []  # instances or classes; every run that is given the file uses them
LOSS_MAPPING: dict[str, Any] = {}  # name -> function, or {"loss_func": function}
loss_mapping = loss_map = LOSS_MAPPING  # later names of the same table
loss_scale_map: dict[str, Any] = {}  # name -> instance or class
METRIC_MAPPING: dict[str, Any] = {}  # name -> (compute, preprocess or None)
metric_mapping = METRIC_MAPPING
optimizers_map: dict[str, Any] = {}  # name -> function (args, model, dataset)
tools_prompt: dict[str, Any] = {}  # name -> function (tool_names, tool_descs), or (function, AgentKeyword)
extra_tuners: dict[str, Any] = {}  # name -> class
tuners_map = extra_tuners
prms: dict[str, Any] = {}  # name -> class or function
orms: dict[str, Any] = {}  # name -> class or function

_TOOLS_FORMAT = "write a tools format: a function (tool_names, tool_descs) with @register_tools"
_METRIC = "a metric is a pair (compute, preprocess) in METRIC_MAPPING; one with `generate = True` gets texts"
_LOSS = "a loss is a function (outputs, labels, loss_scale=None, num_items_in_batch=None) in loss_mapping"
_LOSS_SCALE = "override LossScale.get_loss_scale, or give --loss-scale keywords its table of words and patterns"
_CALLBACK = (
    "list instances in extra_callbacks, or register a function (args) -> TrainerCallback with @register_callback"
)
_REWARD = "a reward model in orms or prms returns one number per answer"
# What plugin files of SWIFT 3 and 4 import or define that has no equal here, and what takes its place.
NOT_IN_SWIFTPLUG = {
    **dict.fromkeys(("agent_templates", "agent_template_map", "BaseAgentTemplate"), _TOOLS_FORMAT),
    **dict.fromkeys(("metrics_map", "eval_metrics_map", "EvalMetrics", "Serializer"), _METRIC),
    **dict.fromkeys(("ConfigLossScale", "ALL_BASE_STRATEGY", "calculate_loss_scale"), _LOSS_SCALE),
    **dict.fromkeys(("rm_plugins", "DefaultRMPlugin", "multi_turns", "MultiTurnScheduler"), _REWARD),
    **dict.fromkeys(("ChatCompletionResponse", "ChatCompletionResponseChoice", "ChatMessage"), _REWARD),
    "callbacks_map": _CALLBACK,
    "BaseLoss": _LOSS,
    "OptimizerCallback": "an optimizer is a function (args, model, dataset) in optimizers_map",
    "PeftTuner": "subclass Tuner, and save and load with PeftModel",
    "get_model_arch": "MODEL_ARCH_MAPPING[model.model_meta.model_arch]",
    "get_logger": "logging.getLogger",
}


def swift_counterpart(name: str) -> str:
    """The end of an error message about a name of SWIFT that has no equal here."""
    return f"{name} of SWIFT is not in swiftplug; instead: {NOT_IN_SWIFTPLUG[name]}"
