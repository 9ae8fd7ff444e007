"""The public API for plugin authors: contracts and base classes, decorators, and the parts of a model by name."""

from swiftplug.errors import UserError, nearest
from swiftplug.plugin.arguments import RunArguments
from swiftplug.plugin.engine import Answered, Completion, Engine, Prompt, Sampling
from swiftplug.plugin.loss import IGNORED_LABEL, ContextType, LossScale, TokenLoss
from swiftplug.plugin.model_arch import MODEL_ARCH_MAPPING, ModelKeys, find_all_linears
from swiftplug.plugin.register import (
    LOSS_MAPPING,
    METRIC_MAPPING,
    extra_callbacks,
    extra_tuners,
    loss_scale_map,
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
    register_tools,
    register_tuner,
    tools_prompt,
)
from swiftplug.plugin.rewards import ORM, PRM, InferRequest, Unscored
from swiftplug.plugin.tokenizer import set_chat_template
from swiftplug.plugin.tools_format import ToolsFormat, ToolTurns
from swiftplug.plugin.tuner import Tuner

__all__ = [
    "IGNORED_LABEL",
    "LOSS_MAPPING",
    "METRIC_MAPPING",
    "MODEL_ARCH_MAPPING",
    "ORM",
    "PRM",
    "Answered",
    "Completion",
    "ContextType",
    "Engine",
    "InferRequest",
    "LossScale",
    "ModelKeys",
    "Prompt",
    "RunArguments",
    "Sampling",
    "TokenLoss",
    "ToolTurns",
    "ToolsFormat",
    "Tuner",
    "Unscored",
    "UserError",
    "extra_callbacks",
    "extra_tuners",
    "find_all_linears",
    "loss_scale_map",
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
    "register_tools",
    "register_tuner",
    "set_chat_template",
    "tools_prompt",
]
