"""A plugin file in the documented form of SWIFT 3.0: module-level tables, and a decorator for the loss.

Only its import lines differ from one written for SWIFT. What acts says so in the file that `SWIFT3_TRACE` names.
"""

import math
import os
import re
import signal

import numpy as np
import torch
from peft import IA3Config, PeftModel, get_peft_model
from transformers import TrainerCallback

from swiftplug.plugin import (
    MODEL_ARCH_MAPPING,
    ContextType,
    LossScale,
    ModelKeys,
    Tuner,
    find_all_linears,
    register_loss_func,
)


def trace(line):
    with open(os.environ["SWIFT3_TRACE"], "a") as file:  # noqa: PTH123
        file.write(line + "\n")


class PowerCut(TrainerCallback):
    """Tells of a run's start and saves; pulls the plug after the step that POWER_CUT names."""

    def __init__(self, every=1):
        self.every = every

    def on_train_begin(self, args, state, control, **kwargs):
        trace(f"callback: begin at {state.global_step}")

    def on_save(self, args, state, control, **kwargs):
        trace(f"callback: save at {state.global_step}")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == int(os.environ.get("POWER_CUT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)


extra_callbacks = [PowerCut()]


@register_loss_func("custom-loss")
def squared_surprise(outputs, labels, loss_scale=None, num_items_in_batch=None) -> torch.Tensor:
    """Half of the squared cross entropy of every token."""
    trace("loss: called")
    shift_logits = outputs.logits[..., :-1, :]
    shift_labels = labels[..., 1:].to(shift_logits.device)
    masks = shift_labels != -100
    loss = torch.nn.CrossEntropyLoss(reduction="none")(shift_logits[masks], shift_labels[masks]) ** 2 / 2
    if loss_scale is not None:
        loss = loss * loss_scale[..., 1:].to(loss.device)[masks]
    return loss.mean() if num_items_in_batch is None else loss.sum() / num_items_in_batch


class ShoutingLossScale(LossScale):
    """Capitals weigh 3, when the query shouts as well."""

    def get_loss_scale(self, context: str, context_type: ContextType, is_last_round: bool, *, query=None):
        if context_type == ContextType.RESPONSE and query.isupper():
            trace("loss_scale: shouted")
            parts = [part for part in re.split("([A-Z]+)", context) if part]
            return parts, [3.0 if part.isupper() else 1.0 for part in parts]
        return super().get_loss_scale(context, context_type, is_last_round)


loss_scale_map = {
    "shouting": ShoutingLossScale(),
    "default": LossScale(),
}


def preprocess_logits_for_margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How much likelier the likeliest token is than the second."""
    if isinstance(logits, (list, tuple)):
        logits = logits[0]
    top = logits.float().log_softmax(-1).topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def compute_margin_metrics(prediction) -> dict[str, float]:
    trace("metric: computed")
    masks = prediction.label_ids[..., 1:] != -100
    return {"margin": float(np.mean(prediction.predictions[..., :-1][masks]))}


def compute_first_token_metrics(prediction) -> dict[str, float]:
    masks = prediction.label_ids[..., 1:] != -100
    hits = (prediction.predictions[..., :-1] == prediction.label_ids[..., 1:])[masks]
    return {"token_hits": float(np.mean(hits))}


METRIC_MAPPING = {
    "margin": (compute_margin_metrics, preprocess_logits_for_margin),
    "hits": (compute_first_token_metrics, None),
}


class TracedSGD(torch.optim.SGD):
    def load_state_dict(self, state_dict):
        if state_dict["state"]:  # empty when Accelerate loads it to move it to its device
            trace("optimizer: loaded")
        super().load_state_dict(state_dict)


def create_custom_optimizers(args, model, dataset):
    """SGD with momentum; the learning rate halves at every step that an epoch has."""
    steps_per_epoch = math.ceil(
        len(dataset) / (args.per_device_train_batch_size * args.training_args.gradient_accumulation_steps)
    )
    trace(f"optimizer: {steps_per_epoch} steps an epoch")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = TracedSGD(parameters, lr=args.learning_rate, momentum=0.9, weight_decay=args.weight_decay)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=steps_per_epoch, gamma=0.5)


optimizers_map = {
    "custom": create_custom_optimizers,
}


def format_custom(tool_names, tool_descs):
    trace(f"tools: {','.join(tool_names)}")
    return "TOOLS: {tool_list}".format(tool_list="\n\n".join(tool_descs))


tools_prompt = {
    "custom": format_custom,
}


class IA3(Tuner):
    @staticmethod
    def prepare_model(args, model: torch.nn.Module):
        model_arch: ModelKeys = MODEL_ARCH_MAPPING[model.model_meta.model_arch]
        feedforward = ".*" + model_arch.mlp.split("{}.")[1] + ".*"
        trace(f"tuner: prepare {feedforward}")
        ia3_config = IA3Config(target_modules=find_all_linears(model), feedforward_modules=feedforward)
        return get_peft_model(model, ia3_config)

    @staticmethod
    def save_pretrained(
        model: torch.nn.Module,
        save_directory: str,
        safe_serialization: bool = True,
        **kwargs,
    ):
        trace(f"tuner: save {type(model).__name__}")
        model.save_pretrained(save_directory, safe_serialization=safe_serialization, **kwargs)

    @staticmethod
    def from_pretrained(model: torch.nn.Module, model_id: str, **kwargs):
        trace(f"tuner: load {os.path.basename(model_id)} {kwargs}")  # noqa: PTH119
        return PeftModel.from_pretrained(model, model_id, **kwargs)


extra_tuners = {"ia3": IA3}
