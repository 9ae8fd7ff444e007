"""The public API for plugin authors: contracts and base classes, decorators, and the parts of a model by name."""

from swiftplug.errors import UserError, nearest
from swiftplug.plugin.arguments import RunArguments
from swiftplug.plugin.engine import Answered, Chat, Completion, Engine, Prompt, Sampling
from swiftplug.plugin.loss import (
    IGNORED_LABEL,
    ContextType,
    LossScale,
    TokenLoss,
    split_parts_by_regex,
    split_str_parts_by,
)
from swiftplug.plugin.model_arch import MODEL_ARCH_MAPPING, ModelKeys, find_all_linears
from swiftplug.plugin.online import Drawn, Estimator, OnlineTask
from swiftplug.plugin.register import (
    LOSS_MAPPING,
    METRIC_MAPPING,
    NOT_IN_SWIFTPLUG,
    extra_callbacks,
    extra_tuners,
    loss_map,
    loss_mapping,
    loss_scale_map,
    metric_mapping,
    optimizers_map,
    orms,
    prms,
    register_callback,
    register_dataset,
    register_engine,
    register_loss_func,
    register_loss_scale,
    register_metric,
    register_model,
    register_optimizer,
    register_orm,
    register_prm,
    register_task,
    register_tools,
    register_tuner,
    swift_counterpart,
    tools_prompt,
    tuners_map,
)
from swiftplug.plugin.rewards import ORM, PRM, AsyncORM, InferRequest, Unscored
from swiftplug.plugin.task import (
    Batch,
    Labels,
    PreferenceTask,
    Rows,
    SequenceLogps,
    Task,
    TaskLoss,
    TaskModel,
    TokenLogps,
    row_count,
)
from swiftplug.plugin.tokenizer import set_chat_template
from swiftplug.plugin.tools_format import AgentKeyword, ToolsFormat, ToolTurns, as_text
from swiftplug.plugin.tuner import Tuner

__all__ = [
    "IGNORED_LABEL",
    "LOSS_MAPPING",
    "METRIC_MAPPING",
    "MODEL_ARCH_MAPPING",
    "ORM",
    "PRM",
    "AgentKeyword",
    "Answered",
    "AsyncORM",
    "Batch",
    "Chat",
    "Completion",
    "ContextType",
    "Drawn",
    "Engine",
    "Estimator",
    "InferRequest",
    "Labels",
    "LossScale",
    "ModelKeys",
    "OnlineTask",
    "PreferenceTask",
    "Prompt",
    "Rows",
    "RunArguments",
    "Sampling",
    "SequenceLogps",
    "Task",
    "TaskLoss",
    "TaskModel",
    "TokenLogps",
    "TokenLoss",
    "ToolTurns",
    "ToolsFormat",
    "Tuner",
    "Unscored",
    "UserError",
    "as_text",
    "extra_callbacks",
    "extra_tuners",
    "find_all_linears",
    "loss_map",
    "loss_mapping",
    "loss_scale_map",
    "metric_mapping",
    "nearest",
    "optimizers_map",
    "orms",
    "prms",
    "register_callback",
    "register_dataset",
    "register_engine",
    "register_loss_func",
    "register_loss_scale",
    "register_metric",
    "register_model",
    "register_optimizer",
    "register_orm",
    "register_prm",
    "register_task",
    "register_tools",
    "register_tuner",
    "row_count",
    "set_chat_template",
    "split_parts_by_regex",
    "split_str_parts_by",
    "tools_prompt",
    "tuners_map",
]


def __getattr__(name: str) -> object:
    """Refuse what plugin files import from SWIFT and what has no equal here, with what takes its place."""
    if name in NOT_IN_SWIFTPLUG:
        raise ImportError(swift_counterpart(name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
