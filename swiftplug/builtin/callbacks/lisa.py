"""LISA: layerwise importance sampled training (arXiv 2403.17919)."""

import random
from typing import Any

import torch
from peft import PeftModel
from pydantic import PositiveInt
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import unwrap_model

from swiftplug.errors import UserError
from swiftplug.plugin.model_arch import MODEL_ARCH_MAPPING


class Lisa(TrainerCallback):
    """Trains a few decoder layers at a time, drawn anew every `interval` steps; all else trains throughout.

    Which layers is a function of the seed and the step alone, so that a resumed run draws as an unbroken one does. A
    layer that rests keeps its optimizer state and gets neither gradient nor weight decay.

    Args:
        n_layers: How many layers train at a time.
        interval: After how many steps others are drawn.
    """

    def __init__(self, n_layers: PositiveInt = 2, interval: PositiveInt = 20) -> None:
        self.n_layers = n_layers
        self.interval = interval
        self._layers: list[list[torch.nn.Parameter]] = []
        self._period: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the layers; the optimizer, made before, has the parameters of all of them.

        Raises:
            UserError: If the model has adapters, or too few layers, or several processes would wait for gradients.
        """
        model: Any = unwrap_model(kwargs["model"])
        if isinstance(model, PeftModel):
            raise UserError("callback lisa: an adapter's layers are small as they are; it goes with the tuner full")
        if args.world_size > 1 and not args.ddp_find_unused_parameters:
            raise UserError("callback lisa: several processes need training.ddp_find_unused_parameters: true")
        keys = MODEL_ARCH_MAPPING[model.model_meta.model_arch]
        layers = list(model.get_submodule(keys.module_list).children())
        if self.n_layers > len(layers):
            raise UserError(f"callback lisa: n_layers is {self.n_layers}, but the model has {len(layers)} layers")
        self._layers = [[parameter for parameter in layer.parameters() if parameter.requires_grad] for layer in layers]
        self._period = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw layers where an interval begins, or where a resumed run enters one."""
        period = state.global_step // self.interval
        if period == self._period:
            return
        self._period = period
        chosen = random.Random(f"{args.seed} {period}").sample(range(len(self._layers)), self.n_layers)
        for index, parameters in enumerate(self._layers):
            for parameter in parameters:
                parameter.requires_grad_(index in chosen)
                parameter.grad = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let all layers train again, as the tuner had it."""
        for parameters in self._layers:
            for parameter in parameters:
                parameter.requires_grad_(True)
